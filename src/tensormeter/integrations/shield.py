"""Protection of a training from errors in an adapter."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from tensormeter import SettingsError

__all__ = ["shielded"]

logger: Final = logging.getLogger("tensormeter")

_P = ParamSpec("_P")
_R = TypeVar("_R")

_warned: Final[set[str]] = set()
"""Names of the functions that have failed."""


def shielded(function: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """Return a function that warns once, with a traceback, and returns None where the given one raises an exception.

    Invalid settings still raise `SettingsError`, because they are our users' own and known when the training starts.
    """

    @functools.wraps(function)
    def call(*arguments: _P.args, **named: _P.kwargs) -> Any:
        try:
            return function(*arguments, **named)
        except SettingsError:
            raise
        except Exception as error:  # telemetry never ends a training
            if function.__qualname__ not in _warned:
                _warned.add(function.__qualname__)
                logger.warning(
                    "%s failed, so parts of the run are not recorded: %s: %s",
                    *(function.__qualname__, type(error).__name__, error),
                    exc_info=True,
                )
            return None

    return call
