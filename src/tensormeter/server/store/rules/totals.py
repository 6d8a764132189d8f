"""Mergeable statistics of metrics: count, extremes, mean and last value."""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tensormeter.server.store.models.points import Points

__all__ = ["Totals"]

_WORD, _FLOAT = struct.Struct("q"), struct.Struct("d")


@dataclass(frozen=True, slots=True)
class Totals:
    """Statistics of numeric points.

    Attributes:
        count: Number of points.
        numbers: Number of points that are not NaN. `total`, `minimum` and `maximum` cover only these points.
        total: Sum of the values.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch.
        last_word: Value of the latest point, as an int64 or as the bits of a float64.
        last_integer: Whether `last_word` is an int64.
        last_step: Step logged at `last_time`; None if there is none or the step is not yet known.
    """

    count: int
    numbers: int
    total: float
    minimum: float
    maximum: float
    last_time: int
    last_word: int
    last_integer: bool
    last_step: int | None = None

    @classmethod
    def of(cls, points: Points, last_step: int | None = None) -> "Totals":
        """Compute the statistics of one or more points."""
        values = points.floats()
        index = int(points.times.argmax())
        with np.errstate(all="ignore"):
            total = float(values.sum())
            numbers = len(values)
            minimum, maximum = float(values.min()), float(values.max())
            if math.isnan(total):  # a value is NaN, or the values include infinities of both signs
                present = values[~np.isnan(values)]
                numbers = len(present)
                total = float(present.sum())
                minimum = float(present.min()) if numbers else math.nan
                maximum = float(present.max()) if numbers else math.nan
        return cls(
            len(values),
            numbers,
            total,
            minimum,
            maximum,
            int(points.times[index]),
            int(points.words[index]),
            bool(points.integers[index]),
            last_step,
        )

    @classmethod
    def merge(cls, totals: Iterable["Totals"]) -> "Totals":
        """Merge one or more statistics. If several have the same last time, the last point of the first one is kept."""
        parts = list(totals)
        if len(parts) == 1:
            return parts[0]
        last = max(parts, key=lambda part: part.last_time)
        with_numbers = [part for part in parts if part.numbers]
        return cls(
            sum(part.count for part in parts),
            sum(part.numbers for part in parts),
            sum(part.total for part in with_numbers),
            min((part.minimum for part in with_numbers), default=math.nan),
            max((part.maximum for part in with_numbers), default=math.nan),
            last.last_time,
            last.last_word,
            last.last_integer,
            last.last_step,
        )

    def without_statistics(self) -> "Totals":
        """Return a copy without sum and extremes, which are meaningless if series differ in unit or kind."""
        return replace(self, total=math.nan, minimum=math.nan, maximum=math.nan)

    @property
    def mean(self) -> float:
        """Mean of the values that are not NaN; NaN if there are none."""
        return self.total / self.numbers if self.numbers else math.nan

    @property
    def last(self) -> int | float:
        """Value of the latest point."""
        if self.last_integer:
            return self.last_word
        number: float = _FLOAT.unpack(_WORD.pack(self.last_word))[0]
        return number
