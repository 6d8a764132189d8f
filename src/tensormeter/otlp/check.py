"""Checks that interrupt the work of a request."""

from collections.abc import Callable

__all__ = ["Check", "no_check"]

Check = Callable[[], None]
"""Function that raises an error to stop the work, because the request has used its time or its client has disconnected."""


def no_check() -> None:
    """Never stop the work."""
