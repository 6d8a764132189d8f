"""The runs that summary writers log to.

Writers of the same folder share a run, as they share a run in TensorBoard. If the script has started a run, writers log to it.
"""

import os
import threading
from collections.abc import Mapping
from hashlib import sha256
from types import TracebackType
from typing import Any, Final

from tensormeter import api
from tensormeter.session import open_runs
from tensormeter.session.run import Run
from tensormeter.settings import Settings
from tensormeter.tensorboard.folders import namespaces_of, run_group, run_name

__all__ = ["WriterRun", "join_run", "log_finished_run"]

_PROJECT: Final = "tensorboard"
"""Project of runs if neither the arguments nor the environment name one."""


class WriterRun:
    """A run that one or more writers log to.

    Attributes:
        run: The run.
        folder: Absolute path of the writers' folder.
        prefix: Prefix of the tags; None before the first value, because the prefix depends on the folders of other writers.
        owned: Whether writers have started the run, and therefore finish it.
        is_reopened: Whether the run is another attempt at a run of this process. Then the last writer does not finish it.
        writers: Number of writers that have not been closed.
    """

    def __init__(
        self, run: Run, folder: str, *, prefix: str | None = "", owned: bool, is_reopened: bool = False
    ) -> None:
        self.run = run
        self.folder = folder
        self.prefix = prefix
        self.owned = owned
        self.is_reopened = is_reopened
        self.writers = 1

    def find_prefix(self) -> str:
        """Return the prefix of the tags. From now on, it stays the same."""
        if self.prefix is None:
            self.prefix = namespaces_of(self.run).prefix(self.folder)
        return self.prefix

    @property
    def first_step(self) -> int:
        """Step of the first row: 0, or in a later attempt, the step after the last one of the earlier attempts."""
        return self.run._process.first_step if self.owned and self.run._process is not None else 0

    def leave(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Remove a writer. The last one finishes a run that writers have started, and waits for delivery.

        Some scripts close a writer in a loop and go on with it. From the second time on, the run therefore stays open until the
        program ends, unless an exception ended the writer's block. Without this rule, each iteration would be an attempt.

        Args:
            kind: Type of the exception that ended the writer's `with` block, or None.
            error: The exception.
            trace: Its traceback.
        """
        with _lock:
            self.writers -= 1
            if self.writers or (self.is_reopened and error is None):
                return
            if _by_folder.get(self.folder) is self:
                del _by_folder[self.folder]
        if self.owned:
            self.run.__exit__(kind, error, trace)


_by_folder: Final[dict[str, WriterRun]] = {}
"""Runs of the writers that have not been closed, by folder."""

_ids: Final[dict[str, str]] = {}
"""IDs of the runs that writers have started in this process, by folder."""

_lock = threading.RLock()


def join_run(folder: str, run: Run | None, options: Mapping[str, Any], *, is_default: bool = False) -> WriterRun:
    """Return the run of a new writer, and start it if it is not open. The call does not use the network.

    Args:
        folder: Folder of the writer, as the script states it.
        run: Run to log to, if the script states one.
        options: Arguments for `tensormeter.init`.
        is_default: Whether the script has not stated a folder.

    Raises:
        SettingsError: An option is invalid.
        TypeError: `tensormeter.init` has no such option.
    """
    key = folder if "://" in folder else os.path.abspath(folder)
    with _lock:
        current = run if run is not None or options else open_runs.current_run()
        for place in [place for place, joined in _by_folder.items() if joined.run.finished]:
            del _by_folder[place]
        shared = _by_folder.get(key)
        if shared is not None and (shared.run is current or (shared.owned and run is None)):
            shared.writers += 1
            if options.get("config"):
                shared.run.config.update(options["config"])
            return shared
        if run is not None:
            joined = WriterRun(run, key, owned=False)
        elif current is not None:
            namespaces_of(current).add(key)
            joined = WriterRun(current, key, prefix=None, owned=False)
        else:
            is_reopened = key in _ids
            started = _start(folder, key, options, is_default=is_default)
            joined = WriterRun(started, key, owned=True, is_reopened=is_reopened)
        _by_folder[key] = joined
        return joined


def log_finished_run(
    parent: Run, name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], step: int | None
) -> None:
    """Record a run that has only a configuration and results, in the group of another run, and wait for its delivery.

    Args:
        parent: Run whose settings apply. Its group, or else its name, becomes the group.
        name: Name of the new run.
        config: Configuration.
        metrics: Results by name.
        step: Step of the results. Default: 0.
    """
    settings = parent.settings.replace(run_id=None, name=name, group=parent.group or parent.name, attempt=None)
    run = api.init(config=dict(config), settings=settings, concurrent=True)
    run.log(metrics, 0 if step is None else step)
    run.finish()


def _start(folder: str, key: str, options: Mapping[str, Any], *, is_default: bool) -> Run:
    """Start the run of a folder. If this process has already finished one for it, start another attempt at that run."""
    name = run_name(folder)
    arguments = dict(options)
    defaults = {"project": _PROJECT, "group": run_group(folder), **(arguments.pop("defaults", None) or {})}
    if is_default:
        defaults.setdefault("name", name)
    else:
        arguments.setdefault("name", name)
    if arguments.get("id") is None:
        arguments["id"] = _ids.get(key) or _id_of_further_run(name)
    run = api.init(**arguments, defaults=defaults, concurrent=True)
    _ids[key] = run.id
    return run


def _id_of_further_run(name: str) -> str | None:
    """Return an ID for the run if the environment states one that another folder's run already has, and otherwise None.

    All ranks derive the same ID.
    """
    stated = Settings().run_id
    if stated is None or stated not in _ids.values():
        return None
    return f"{stated}-{sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
