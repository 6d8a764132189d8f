"""Checks that interrupt the processing of a request."""

from collections.abc import Callable

__all__ = ["Check", "no_check"]

Check = Callable[[], None]
"""Function that raises an error to stop processing a request that has run out of time or whose client has disconnected."""


def no_check() -> None:
    """Do nothing, so that processing is never stopped."""
