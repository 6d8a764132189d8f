"""Warnings about what is not kept, once per cause, and exceptions for what is not supported."""

from collections.abc import Callable
from typing import Any, Final, NoReturn

from tensormeter.record.warn_once import WarnOnce, shown
from tensormeter.wandb.errors import UnsupportedError

__all__ = ["refuse", "refusing", "warn_ignored", "warn_once"]

_notices: Final = WarnOnce()


def warn_once(about: object, message: str, *arguments: object) -> None:
    """Log a warning, unless one was logged for the same cause."""
    _notices.once(about, message, *arguments)


def warn_ignored(what: str, remedy: str) -> None:
    """Warn once that something is not recorded.

    Args:
        what: The call or argument, such as "wandb.init(anonymous=)".
        remedy: Sentence about the alternative or the reason.
    """
    _notices.once(("ignored", what), "%s is ignored: %s", what, remedy)


def refuse(what: str, remedy: str) -> NoReturn:
    """Raise the error of a function that is not supported.

    Args:
        what: The function, such as "wandb.sweep".
        remedy: Sentence about the alternative.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(f"{what} is not supported by tensormeter.wandb: {remedy}")


def refusing(what: str, remedy: str) -> Callable[..., Any]:
    """Return a function that takes any arguments and raises `UnsupportedError`."""

    def refused(*arguments: Any, **named: Any) -> NoReturn:
        refuse(what, remedy)

    refused.__name__ = what.rpartition(".")[2]
    refused.__doc__ = f"Raise `UnsupportedError`: {remedy}"
    return refused


def warn_unknown(function: str, names: dict[str, Any]) -> None:
    """Warn once about each unknown keyword argument of a function."""
    for name in names:
        warn_ignored(f"{function}({shown(name)[1:-1]}=)", "W&B 0.31 has no such argument")
