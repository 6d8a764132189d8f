"""Waiting on conditions, with a deadline that only a failure reaches."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually", "wait_for"]

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = 300) -> T:
    """Wait until a condition holds, and return its value.

    Args:
        condition: A function whose result is true once the condition holds.
        what: The condition in words, for the failure.
        seconds: Time after which the test fails.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.01)
    return value


def eventually(condition: Callable[[], T], seconds: float = 300) -> T:
    """Wait until a condition holds that needs no words, and return its value."""
    return wait_for(condition, "the condition holds", seconds)
