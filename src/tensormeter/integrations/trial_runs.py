"""The runs of a sweep's trials, which one process records at once."""

import secrets
import threading
from collections.abc import Hashable, Mapping
from typing import Any, Final

import tensormeter
from tensormeter import Run
from tensormeter.integrations.framework_run import check_options
from tensormeter.integrations.shield import shielded

__all__ = ["TrialRuns"]

_MOST_ENDING: Final = 16
"""Maximum number of finished trials that wait for delivery. Each has a ring buffer."""

_DEFAULTS: Final[Mapping[str, Any]] = {"agent": "thread", "buffer_bytes": 1 << 20, "quiet": True}
"""Settings that keep a run cheap, because a sweep may have thousands."""


class TrialRuns:
    """Runs by trial. Thread-safe.

    Runs are finished in the background, so that a slow server does not delay the next trial. If more than 16 finished
    runs wait for delivery, `finish` waits for the first of them.
    """

    def __init__(self, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """
        Args:
            options: Arguments of `tensormeter.init` for every run. Those that identify a trial take precedence.
            defaults: Settings that apply if neither `options` nor the environment gives them.

        Raises:
            TypeError: `tensormeter.init` has no such argument, or the argument identifies a single run.
            SettingsError: An argument, a setting or a `TENSORMETER_*` variable is invalid.
        """
        for name in ("id", "name", "resume", "concurrent", "defaults"):
            if name in options:
                raise TypeError(f"the argument {name!r} would be the same for all trials; leave it out")
        check_options(options)
        self._options = dict(options)
        self._defaults = {**_DEFAULTS, **defaults}
        self._open: dict[Hashable, Run] = {}
        self._ending: list[threading.Thread] = []  # a pool would not start threads in a forked child
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the options only. The runs stay in the process that has started them."""
        return {"options": self._options, "defaults": self._defaults}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["options"], state["defaults"])  # type: ignore[misc]

    def start(
        self, trial: Hashable, name: str, *, run_id: str | None = None, group: str = "", config: Any = None
    ) -> Run:
        """Start the run of a trial. The run does not become the current run.

        Args:
            trial: Key of the trial.
            name: Display name of the run.
            run_id: ID of the run. If it had a run before, the run continues. Default: a random ID.
            group: Name of the run's group, unless the options or the environment give another.
            config: Configuration of the run.
        """
        defaults = {**self._defaults, **({"group": group} if group else {})}
        run = tensormeter.init(
            **{**self._options, "config": {**_mapping(self._options.get("config")), **(config or {})}},
            name=name,
            id=run_id or secrets.token_hex(5),
            defaults=defaults,
            concurrent=True,
        )
        with self._lock:
            self._open[trial] = run
        return run

    def get(self, trial: Hashable) -> Run | None:
        """Return the unfinished run of a trial, or None."""
        return self._open.get(trial)

    def finish(self, trial: Hashable, state: str = "finished", error: BaseException | None = None) -> None:
        """Finish the run of a trial in the background. Without such a run, this does nothing.

        Args:
            trial: Key of the trial.
            state: Final state of the run.
            error: Exception that ended the trial, which then counts as failed.
        """
        with self._lock:
            run = self._open.pop(trial, None)
            if run is None:
                return
            self._ending = [ending for ending in self._ending if ending.is_alive()]
            oldest = self._ending[0] if len(self._ending) >= _MOST_ENDING else None
            ending = threading.Thread(target=_end, args=(run, state, error), name="tensormeter-finish")
            ending.start()
            self._ending.append(ending)
        if oldest is not None:
            oldest.join()

    def wait(self) -> None:
        """Wait until the data of all finished trials is delivered, or on disk if the receiver is unreachable."""
        with self._lock:
            ending = list(self._ending)
        for thread in ending:
            thread.join()


@shielded
def _end(run: Run, state: str, error: BaseException | None) -> None:
    if error is None:
        run.finish(state)
    else:
        run.__exit__(type(error), error, error.__traceback__)


def _mapping(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else {} if config is None else dict(vars(config))
