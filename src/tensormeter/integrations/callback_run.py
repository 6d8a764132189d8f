"""The run of a callback that may be told which run to record in."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tensormeter import Run
from tensormeter.integrations.framework_run import script_run, start_run

__all__ = ["CallbackRun", "join_or_start"]


class CallbackRun(NamedTuple):
    """A run that a callback records in.

    Attributes:
        run: The run.
        owned: Whether the callback has started the run.
    """

    run: Run
    owned: bool

    def finish(self) -> None:
        """Finish the run if the callback has started it, and wait for delivery."""
        if self.owned:
            self.run.finish()


def join_or_start(run: Run | None, options: Mapping[str, Any], project: str) -> CallbackRun:
    """Return the run for a callback: the stated one, the script's, or one that is started now.

    A run that an earlier callback has started in this thread is finished first, because it describes another training.

    Args:
        run: Run that the script states, or None.
        options: Arguments for `tensormeter.init`. With any of them, a run is started even if the script has one.
        project: Project of a new run if neither the options nor the environment name one.

    Raises:
        SettingsError: An option is invalid.
    """
    chosen = run if run is not None or options else script_run()
    if chosen is not None:
        return CallbackRun(chosen, owned=False)
    return CallbackRun(start_run(options, {"project": project}, finish_previous=True), owned=True)
