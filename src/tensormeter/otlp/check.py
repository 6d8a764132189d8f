"""The type of a check that the loops of a request's work call, so that the work can be ended, and its default."""

from collections.abc import Callable

__all__ = ["Check", "no_check"]

Check = Callable[[], None]
"""Raises something if the work has to end: the request has used its time, or its client has gone."""


def no_check() -> None:
    """Let the work go on."""
