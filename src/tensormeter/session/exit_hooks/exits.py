"""Detection of the exit status that ends the interpreter, even if the script first catches other exits.

`sys.exit` only raises an exception. A script may catch it, and in another thread it ends only that thread. Our `sys.exit`
therefore raises `_ObservedExit`, whose status the interpreter reads, without any Python code, just before it ends.
"""

import builtins
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["observe", "replace_exit"]

_code: Any = SystemExit.__dict__["code"]
"""The attribute of `SystemExit` that contains the status."""

_observers: list[Callable[[object], None]] = []


class _ObservedExit(SystemExit):
    """An exit that reports its status when the interpreter handles it."""

    @property
    def code(self) -> Any:
        status = _code.__get__(self)
        try:
            sys._getframe(1)
        except ValueError:  # the interpreter itself reads the status, because the exit ends it
            for observer in _observers:
                observer(status)
        return status

    @code.setter
    def code(self, status: Any) -> None:
        _code.__set__(self, status)

    def __reduce__(self) -> tuple[type[SystemExit], tuple[Any, ...]]:
        return SystemExit, self.args


_ObservedExit.__name__ = _ObservedExit.__qualname__ = "SystemExit"
_ObservedExit.__module__ = "builtins"


def observe(observer: Callable[[object], None]) -> None:
    """Call a function with the status of the exit that ends the interpreter."""
    _observers.append(observer)
    for name in ("exit", "quit"):
        _observe_quitter(getattr(builtins, name, None))


def replace_exit() -> None:
    """Chain our `sys.exit` with the previous one.

    This must happen when the package is imported: ``sys.exit(main())`` looks up `sys.exit` before `main` starts a run.
    """
    previous = sys.exit

    def leave(status: Any = None, /) -> NoReturn:
        _observed(previous, status)

    leave.__name__ = leave.__qualname__ = "exit"
    leave.__doc__ = previous.__doc__
    sys.exit = leave


def _observed(leave: Callable[..., Any], *status: Any) -> NoReturn:
    """Call a function that raises `SystemExit`, and raise an exit that is observed instead."""
    try:
        leave(*status)
    except SystemExit as error:
        # Threads ignore only `SystemExit` itself, and an exit in a thread does not end the interpreter.
        if not _observers or type(error) is not SystemExit or threading.current_thread() is not threading.main_thread():
            raise
        arguments = error.args
    else:
        raise AssertionError("an exit raises SystemExit")
    raise _ObservedExit(*arguments)


def _observe_quitter(quitter: Any) -> None:
    """Observe the built-in function `exit` or `quit`. Those of interactive shells stay as they are."""
    kind = type(quitter)
    if (kind.__module__, kind.__name__) != ("_sitebuiltins", "Quitter"):
        return

    class Quitter(kind):  # type: ignore[misc, valid-type]
        def __call__(self, code: Any = None) -> NoReturn:
            _observed(super().__call__, code)

    quitter.__class__ = Quitter
