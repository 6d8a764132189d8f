"""Checks that can stop the processing of a request."""

from collections.abc import Callable

__all__ = ["Check", "no_check"]

Check = Callable[[], None]
"""Function that raises an error if a request has run out of time or its client has disconnected. The error stops processing."""


def no_check() -> None:
    """Do nothing. Use this check if processing must not be stopped."""
