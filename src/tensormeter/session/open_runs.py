"""The unfinished runs of this process, and the current one in each thread and asynchronous task.

A thread or task that has started runs itself uses the latest of them, so that parallel trials do not mix. All other threads
use the run that any of them started last.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensormeter.session.run import Run

__all__ = ["add", "all_open", "current_run", "remove"]

_open: Final[list["Run"]] = []
"""Unfinished runs, in the order in which they were started."""

_started_here: Final[ContextVar[tuple["Run", ...]]] = ContextVar("tensormeter_runs", default=())
"""Runs that this thread or task, or the task that created it, has started. Finished runs are removed with the next start."""


def add(run: "Run") -> None:
    """Register a run, which becomes the current run of this thread or task."""
    _open.append(run)
    _started_here.set((*(earlier for earlier in _started_here.get() if earlier in _open), run))


def remove(run: "Run") -> None:
    """Remove a run that has finished, unless it has already been removed."""
    if run in _open:
        _open.remove(run)


def all_open() -> list["Run"]:
    """Return a copy of the list of unfinished runs, in the order in which they were started."""
    return _open.copy()


def current_run() -> "Run | None":
    """Return the current run of this thread or task.

    Returns:
        None if there is no unfinished run, or if all runs that this thread or task has started have finished.
    """
    started = _started_here.get()
    if not started:
        return _open[-1] if _open else None
    for run in reversed(started):
        if run in _open:
            return run
    return None
