"""The run that a framework's callback records in: the script's, or one that the callback starts."""

import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import tensormeter

__all__ = ["CallbackRun", "join_or_start"]


class CallbackRun(NamedTuple):
    """A run that a callback records in.

    Attributes:
        run: The run.
        owned: Whether the callback has started the run.
    """

    run: tensormeter.Run
    owned: bool

    def finish(self) -> None:
        """Finish the run if the callback has started it, and wait for delivery."""
        if self.owned:
            self.run.finish()


_threads: "Final[WeakKeyDictionary[tensormeter.Run, int]]" = WeakKeyDictionary()
"""Threads that have started runs for callbacks."""


def join_or_start(run: tensormeter.Run | None, options: Mapping[str, Any], project: str) -> CallbackRun:
    """Return the run for a callback: the stated one, the script's, or one that is started now.

    A run that an earlier callback has started in this thread is finished first, because it describes another training. Without
    this rule, the folds of a cross-validation would share a run.

    Args:
        run: Run that the script states, or None.
        options: Arguments for `tensormeter.init`. With any of them, a run is started even if the script has one.
        project: Project of a new run if neither the options nor the environment name one.

    Raises:
        SettingsError: An option is invalid.
    """
    if run is not None:
        return CallbackRun(run, owned=False)
    current = tensormeter.run
    if current is not None:
        starter = _threads.get(current)
        if starter is None and not options:
            return CallbackRun(current, owned=False)
        if starter == threading.get_ident():
            current.finish()
    arguments = dict(options)
    defaults = {"project": project, **(arguments.pop("defaults", None) or {})}
    started = tensormeter.init(**arguments, defaults=defaults)
    _threads[started] = threading.get_ident()
    return CallbackRun(started, owned=True)
