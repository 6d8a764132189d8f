"""Detection of how a training process ends: normally, by an exception, with an exit status, or by SIGTERM.

The previous exception hook, `sys.exit`, `exit` and SIGTERM handler run after ours. SIGTERM is handled only if its previous
action was the default or a Python handler, and only if a run starts on the main thread. The previous handler is
restored when the last run ends, and immediately in a forked child. Python cannot run a handler while native code blocks
the main thread; `_sigterm.c` handles that case if it could be compiled.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from tensormeter.session.exit_hooks.exits import observe, replace_exit
from tensormeter.session.exit_hooks.failure import Failure, describe_failure, describe_status

try:
    from tensormeter.session.exit_hooks import _sigterm
except ImportError:
    _sigterm = None  # type: ignore[assignment]

__all__ = [
    "Failure",
    "Outcome",
    "clear_sigterm_word",
    "defer_sigterm",
    "describe_failure",
    "install",
    "install_sigterm",
    "outcome",
    "restore_sigterm",
    "set_sigterm_word",
]

_Handler = Callable[[int, FrameType | None], Any]

_failure = Failure()
"""Description of the exception or exit status that ended the interpreter; empty if it did not end with a failure."""

_last_value: BaseException | None = None
"""Exception that the interpreter had stored before our hooks were installed."""

_sigterm_received = False
_chained_hooks: list[Callable[..., Any]] = []
"""Previous exception hook, which ours calls; empty until our hooks are installed."""

_previous_handlers: list[_Handler | int] = []
"""Previous SIGTERM handler; empty while our handler is not installed."""

_deferring: list[None] = []
"""One entry for each active `defer_sigterm` block."""

_deferred_signals: list[int] = []
_installed_in = 0
"""PID of the process that installed our handler."""

_callbacks: list[Callable[[bool], None]] = []


def install(at_exit: Callable[[], None]) -> None:
    """Record how the interpreter ends, and call a function when it exits. Calls after the first do nothing."""
    if _chained_hooks:
        return
    global _last_value
    _last_value = getattr(sys, "last_value", None)
    _chained_hooks.append(sys.excepthook)
    sys.excepthook = _record_exception
    observe(_record_exit)
    atexit.register(at_exit)


class Outcome(NamedTuple):
    """End of a run: its state and the cause.

    Attributes:
        state: State of the run: `finished`, `failed` or `preempted`.
        failure: Cause: exception, exit status or SIGTERM.
    """

    state: str
    failure: Failure = Failure()


def outcome() -> Outcome:
    """Return the default state of a run that ends now, and its cause."""
    if _sigterm_received:
        return Outcome("preempted", Failure("SIGTERM"))
    failure = _failure if _failure.message else _unhandled()
    return Outcome("failed", failure) if failure.message else Outcome("finished")


def _unhandled() -> Failure:
    """Describe the exception that ended the main thread if other code has replaced our exception hook.

    The interpreter stores the exception before it calls the hook. An interactive shell also stores exceptions that do not end it.
    """
    error = getattr(sys, "last_value", None)
    is_interactive = hasattr(sys, "ps1") or "IPython" in sys.modules or sys.flags.interactive
    if error is None or error is _last_value or is_interactive or threading.main_thread().is_alive():
        return Failure()
    return describe_failure(type(error), error)


def install_sigterm(callback: Callable[[bool], None], limit: float) -> None:
    """Make SIGTERM call a function before the previous handler runs. Do nothing if that is impossible.

    Args:
        callback: Function to call. Its argument is True if the signal's default action then ends the process.
        limit: Seconds after which the default action ends the process if Python cannot run the handler.
    """
    global _installed_in
    if _previous_handlers or threading.current_thread() is not threading.main_thread():
        return
    previous = signal.getsignal(signal.SIGTERM)
    if previous is None or previous == signal.SIG_IGN:  # written in C, which ours cannot call, or ignored
        return
    _previous_handlers.append(previous)
    _callbacks[:] = [callback]
    _installed_in = os.getpid()
    signal.signal(signal.SIGTERM, _handle)
    if _sigterm is not None:
        with contextlib.suppress(OSError):  # if no timer is free, do without `_sigterm.c`
            _sigterm.watch(0.0 if callable(previous) else limit)


def set_sigterm_word(word: memoryview) -> None:
    """While our handler is installed, store the arrival time of a SIGTERM in this int64."""
    if _sigterm is not None:
        _sigterm.mark(word)


def clear_sigterm_word(word: memoryview) -> None:
    """Stop storing the arrival time of a SIGTERM in this int64."""
    if _sigterm is not None:
        _sigterm.unmark(word)


@contextlib.contextmanager
def defer_sigterm() -> Iterator[None]:
    """Defer a SIGTERM that arrives during this block until the block ends, if our handler is installed."""
    _deferring.append(None)
    try:
        yield
    finally:
        _deferring.pop()
        if _deferred_signals and not _deferring:
            _deferred_signals.clear()
            os.kill(os.getpid(), signal.SIGTERM)


def restore_sigterm() -> None:
    """Restore the previous SIGTERM handler, unless other code has replaced ours in the meantime."""
    if (
        _previous_handlers
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _handle
    ):
        signal.signal(signal.SIGTERM, _previous_handlers.pop())


def _handle(number: int, frame: FrameType | None) -> None:
    global _sigterm_received
    if _sigterm is not None:
        _sigterm.answered()
    if _deferring and os.getpid() == _installed_in:
        _sigterm_received = True
        _deferred_signals.append(number)
        return
    previous = _previous_handlers[-1] if _previous_handlers else signal.SIG_DFL
    try:
        if os.getpid() == _installed_in:
            _sigterm_received = True
            for callback in _callbacks:
                callback(not callable(previous))
    finally:
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _before_fork() -> None:
    """Block SIGTERM during the fork, because a SIGTERM that arrives in the child before `restore_sigterm` is lost."""
    if _previous_handlers:
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))


def _after_fork_in_parent() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    """Restore the previous handler, so that SIGTERM ends a worker as usual, even if the worker hangs in native code."""
    _deferring.clear()
    _deferred_signals.clear()
    with contextlib.suppress(ValueError):
        restore_sigterm()
    _after_fork_in_parent()


_masks: list[set[int | signal.Signals]] = []
"""Signal masks to restore in the parent and the child after a fork."""

os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _record_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    global _failure
    _failure = describe_failure(kind, error)
    _chained_hooks[0](kind, error, trace)


def _record_exit(status: object) -> None:
    global _failure
    _failure = Failure(describe_status(status))


replace_exit()
