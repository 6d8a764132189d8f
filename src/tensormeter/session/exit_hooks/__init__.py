"""How a training process ends: by itself, by an exception, with an exit status, or because it was told to.

What is hooked is chained, never replaced: the exception hook, `sys.exit`, and SIGTERM.
SIGTERM is taken only from its default action or from a handler in Python, only on the main thread, and given back when there
is no run left. A forked child gets back at once what was there before. Python cannot run a handler while native code keeps the main
thread; what happens then is in `_sigterm.c`, if that could be compiled.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

try:
    from tensormeter.session.exit_hooks import _sigterm
except ImportError:
    _sigterm = None  # type: ignore[assignment]

__all__ = [
    "describe_exception",
    "give_sigterm_back",
    "mark_sigterm",
    "outcome",
    "sigterm_held",
    "take_sigterm",
    "unmark_sigterm",
    "watch",
]

_Handler = Callable[[int, FrameType | None], Any]

_failure = ""
"""What ended the interpreter, if that was a failure."""

_told_to_end = False
_watching: list[Callable[..., Any]] = []
"""The exception hook and the `sys.exit` that were there before ours, once ours are installed."""

_previous: list[_Handler | int] = []
"""What SIGTERM did before, while it is ours."""

_holding: list[None] = []
"""One for each thread in `sigterm_held`."""

_held: list[int] = []
_taken_by = 0
_handlers: list[Callable[[bool], None]] = []


def watch(at_exit: Callable[[], None]) -> None:
    """See how the interpreter ends, and be called then. The first call counts."""
    if _watching:
        return
    _watching.extend((sys.excepthook, sys.exit))
    sys.excepthook = _note_exception
    sys.exit = _note_exit
    atexit.register(at_exit)


def outcome() -> tuple[str, str]:
    """The state of a run that ends now and says nothing else, and what ended it."""
    if _told_to_end:
        return "preempted", "SIGTERM"
    return ("failed", _failure) if _failure else ("finished", "")


def describe_exception(kind: type[BaseException], error: BaseException | None) -> str:
    """What an exception says about the end of a run; "" if it is no failure. The exception's text may hold secrets."""
    if issubclass(kind, SystemExit):
        return _describe_status(getattr(error, "code", None))
    return kind.__qualname__


def take_sigterm(handle: Callable[[bool], None], limit: float) -> None:
    """Have a function called at SIGTERM, before whoever it was for. Does nothing where that is not possible.

    Args:
        handle: Is given whether the process ends with it, because the default action follows.
        limit: Seconds after which the default action follows, should it be impossible to call anything.
    """
    global _taken_by
    if _previous or threading.current_thread() is not threading.main_thread():
        return
    previous = signal.getsignal(signal.SIGTERM)
    if previous is None or previous == signal.SIG_IGN:  # a handler in C cannot be chained
        return
    _previous.append(previous)
    _handlers[:] = [handle]
    _taken_by = os.getpid()
    signal.signal(signal.SIGTERM, _handle)
    if _sigterm is not None:
        with contextlib.suppress(OSError):  # no timer is left: then as where it could not be compiled
            _sigterm.watch(0.0 if callable(previous) else limit)


def mark_sigterm(word: memoryview) -> None:
    """Have the time of a SIGTERM stored in this int64 the moment it comes, if it is ours."""
    if _sigterm is not None:
        _sigterm.mark(word)


def unmark_sigterm(word: memoryview) -> None:
    """No longer."""
    if _sigterm is not None:
        _sigterm.unmark(word)


@contextlib.contextmanager
def sigterm_held() -> Iterator[None]:
    """Let a SIGTERM that comes meanwhile do its work afterwards, if it is ours."""
    _holding.append(None)
    try:
        yield
    finally:
        _holding.pop()
        if _held and not _holding:
            _held.clear()
            os.kill(os.getpid(), signal.SIGTERM)


def give_sigterm_back() -> None:
    """Put back what was there, unless somebody else has taken it in the meantime."""
    if (
        _previous
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _handle
    ):
        signal.signal(signal.SIGTERM, _previous.pop())


def _handle(number: int, frame: FrameType | None) -> None:
    global _told_to_end
    if _sigterm is not None:
        _sigterm.answered()
    if _holding and os.getpid() == _taken_by:
        _told_to_end = True
        _held.append(number)
        return
    previous = _previous[-1] if _previous else signal.SIG_DFL
    try:
        if os.getpid() == _taken_by:
            _told_to_end = True
            for handle in _handlers:
                handle(not callable(previous))
    finally:
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _before_fork() -> None:
    """A SIGTERM that comes to the child before it has its own action back must wait, not be noted by ours and forgotten."""
    if _previous:
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))


def _after_fork_in_parent() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    """A worker that is told to end ends as it would without us, also while it hangs in native code."""
    _holding.clear()
    _held.clear()
    with contextlib.suppress(ValueError):
        give_sigterm_back()
    _after_fork_in_parent()


_masks: list[set[int | signal.Signals]] = []

os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _note_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    global _failure
    _failure = describe_exception(kind, error)
    _watching[0](kind, error, trace)


def _note_exit(status: Any = None, /) -> NoReturn:
    global _failure
    _failure = _describe_status(status)
    _watching[1](status)
    raise AssertionError("sys.exit raises")


def _describe_status(status: object) -> str:
    if status is None or status == 0:
        return ""
    return f"exit status {status if isinstance(status, int) else 1}"
