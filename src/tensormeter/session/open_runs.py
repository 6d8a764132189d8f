"""The unfinished runs of this process, and the current one in each thread and asynchronous task.

A thread or task that has started runs itself uses the latest of them, so that parallel trials do not mix. All other threads
use the run that any of them started last. Concurrent runs are current only where `as_current` makes them so. All unfinished
runs are finished when the process ends.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from tensormeter.session import exit_hooks

if TYPE_CHECKING:
    from tensormeter.session.run import Run

__all__ = ["add", "all_open", "as_current", "current_run", "finish_all", "finish_replaced", "remove"]

_open: Final[list["Run"]] = []
"""Unfinished runs, in the order in which they were started."""

_concurrent: Final[list["Run"]] = []
"""Unfinished runs that do not become the current run when they start, and that no other run replaces."""

_started_here: Final[ContextVar[tuple["Run", ...]]] = ContextVar("tensormeter_runs", default=())
"""Runs that this thread or task, or the task that created it, has started. Finished runs are removed with the next start."""


def add(run: "Run", *, concurrent: bool = False) -> None:
    """Register a started run, which becomes the current run of this thread or task unless it is concurrent."""
    exit_hooks.install(finish_all)
    if run._sigterm_word is not None:
        exit_hooks.install_sigterm(_on_sigterm, run.settings.sigterm_timeout)
        exit_hooks.set_sigterm_word(run._sigterm_word)
    if concurrent:
        _concurrent.append(run)
    _open.append(run)
    if not concurrent:
        _started_here.set((*(earlier for earlier in _started_here.get() if earlier in _open), run))


def remove(run: "Run") -> None:
    """Remove a run that has finished, unless it has already been removed."""
    if run in _open:
        _open.remove(run)
        if run in _concurrent:
            _concurrent.remove(run)
        if run._sigterm_word is not None:
            exit_hooks.clear_sigterm_word(run._sigterm_word)
    if not _open:
        exit_hooks.restore_sigterm()


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
        return next((run for run in reversed(all_open()) if run not in _concurrent), None)
    for run in reversed(started):
        if run in _open:
            return run
    return None


@contextmanager
def as_current(run: "Run") -> Iterator[None]:
    """Return a context manager in whose block a run is the current run of this thread or task."""
    token = _started_here.set((*_started_here.get(), run))
    try:
        yield
    finally:
        with suppress(ValueError):  # a generator may be closed in another context, which the block has not changed
            _started_here.reset(token)


def finish_all() -> None:
    """Finish all unfinished runs, latest first, with a state that depends on how the process ends."""
    _finish(all_open())


def finish_replaced() -> None:
    """Finish the unfinished runs that a new run in a notebook replaces: all that are not concurrent."""
    _finish([run for run in all_open() if run not in _concurrent])


def _finish(runs: list["Run"]) -> None:
    outcome = exit_hooks.outcome()
    for run in reversed(runs):
        run._end(outcome, run.settings.finish_timeout)


def _on_sigterm(process_ends: bool) -> None:
    """Record the SIGTERM. If the process is about to end, also finish all runs; otherwise the script continues.

    The runs share the time that each may wait for delivery, because the process may have many.
    """
    start = time.monotonic()
    runs = [run for run in reversed(all_open()) if run._sigterm_word is not None]
    for run in runs:
        run._sigterm_word[0] = time.time_ns()  # type: ignore[index]
    for run in runs if process_ends else ():
        timeout = min(run.settings.sigterm_timeout, run.settings.finish_timeout)
        run._end(exit_hooks.outcome(), max(0.0, timeout - (time.monotonic() - start)))


def _after_fork() -> None:
    for run in all_open():
        run._after_fork()


os.register_at_fork(after_in_child=_after_fork)
