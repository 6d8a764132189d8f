"""The x axis: the time, the step, or the value of another metric of the same process."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.errors import UsageError
from tensormeter.otlp.batch import STEP_METRIC

__all__ = ["NEVER", "Axis"]

_METRIC: Final = "metric:"

NEVER: Final = (1 << 63) - 1
"""Nanoseconds since the Unix epoch: a time after that of any point."""

_TIMES: Final = range(NEVER)

_NEAR: Final = 4096
"""Nanoseconds by which times computed with floats usually differ at most."""


@dataclass(frozen=True)
class Axis:
    """An x axis.

    Attributes:
        metric: Metric whose values are the x values; None for time.
        relative: Whether time counts from the start of the run.
    """

    metric: str | None
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Parse `step`, `time`, `relative` or `metric:NAME`.

        Raises:
            UsageError: The text has none of these formats.
        """
        if text in ("time", "relative"):
            return cls(None, relative=text == "relative")
        if text == "step":
            return cls(STEP_METRIC)
        if text.startswith(_METRIC) and len(text) > len(_METRIC):
            return cls(text.removeprefix(_METRIC))
        raise UsageError(f"x: expected step, time, relative or metric:NAME, got {text[:80]!r}")

    @property
    def is_time(self) -> bool:
        """Whether x is a time in seconds."""
        return self.metric is None

    @property
    def is_step(self) -> bool:
        """Whether x is the step."""
        return self.metric == STEP_METRIC

    def origin(self, started: int) -> float:
        """Return the time at which x is 0, in seconds since the Unix epoch.

        Args:
            started: Start of the run in nanoseconds since the Unix epoch.
        """
        return started / 1e9 if self.relative else 0.0

    @staticmethod
    def nanoseconds(x: float | None, origin: float) -> int | None:
        """Return the earliest time whose x value, as `seconds` computes it, is not below `x`; None stays None.

        Times, including the result, are in nanoseconds since the Unix epoch. If no point's time has such an x value, the
        result is `NEVER`.
        """
        if x is None:
            return None
        whole = int(origin) * 10**9
        part = origin - int(origin)

        def seconds(time: int) -> float:
            return (time - whole) / 1e9 - part

        guess = int(min(max((x + origin) * 1e9, 0.0), 2.0**63))
        first, last = max(guess - _NEAR, 0), min(guess + _NEAR, NEVER)
        if first > 0 and seconds(first) >= x:
            first = 0
        if last < NEVER and seconds(last) < x:
            last = NEVER
        return bisect_left(_TIMES, x, first, last, key=seconds)

    @staticmethod
    def seconds(times: NDArray[np.int64], origin: float) -> NDArray[np.float64]:
        """Convert times in nanoseconds since the Unix epoch to x values in seconds."""
        whole = int(origin)  # subtract whole seconds as integers to keep every digit
        return (times - whole * 10**9) / 1e9 - (origin - whole)
