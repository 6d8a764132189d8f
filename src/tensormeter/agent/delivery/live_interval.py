"""The interval at which a receiver wants new data while the run has viewers."""

import time
from typing import Final

from tensormeter.exporter import Accepted

__all__ = ["LiveInterval"]

_LASTS: Final = 30.0
"""Seconds for which a receiver's answer holds. The next answer replaces it."""

_SHARE: Final = 1 / 4
"""Maximum share of the time that live requests may take. A slow receiver thus gets fewer requests."""


class LiveInterval:
    """The last answer of one destination's receiver. Any thread may use it."""

    def __init__(self) -> None:
        self._answer: tuple[float, float] | None = None
        """Interval, and the time until which it holds."""

    def note(self, outcome: Accepted, seconds: float) -> None:
        """Store the interval in an answer that took `seconds` to arrive."""
        if outcome.live is None:
            self._answer = None
        else:
            self._answer = max(outcome.live, seconds / _SHARE), time.monotonic() + _LASTS

    def current(self) -> float | None:
        """Return the seconds from one request to the next; None if the run has no viewers."""
        answer = self._answer
        return answer[0] if answer is not None and time.monotonic() < answer[1] else None
