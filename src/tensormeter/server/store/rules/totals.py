"""Summaries of metrics: count, extremes, mean and last value, added up as points are folded."""

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
    """What is known of some numbers.

    Attributes:
        count: Points.
        numbers: Points that are not NaN; `total`, `minimum` and `maximum` are about them, NaN if there are none.
        last_time: Of the latest point; `last_word`, `last_integer` and `last_step` are about it.
        last_step: None if no step was logged at that time, or it is not known yet.
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
        """Of points, not empty."""
        values = points.floats()
        index = int(points.times.argmax())
        with np.errstate(all="ignore"):
            total = float(values.sum())
            numbers = len(values)
            minimum, maximum = float(values.min()), float(values.max())
            if math.isnan(total):  # a NaN among them, or infinities of both signs
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
        """Of several, not none; of equal last times the first wins."""
        listed = list(totals)
        if len(listed) == 1:
            return listed[0]
        last = max(listed, key=lambda one: one.last_time)
        with_numbers = [one for one in listed if one.numbers]
        return cls(
            sum(one.count for one in listed),
            sum(one.numbers for one in listed),
            sum(one.total for one in with_numbers),
            min((one.minimum for one in with_numbers), default=math.nan),
            max((one.maximum for one in with_numbers), default=math.nan),
            last.last_time,
            last.last_word,
            last.last_integer,
            last.last_step,
        )

    def without_statistics(self) -> "Totals":
        """Without sum and extremes, which mean nothing where series differ in unit or kind."""
        return replace(self, total=math.nan, minimum=math.nan, maximum=math.nan)

    @property
    def mean(self) -> float:
        """NaN if there are no numbers."""
        return self.total / self.numbers if self.numbers else math.nan

    @property
    def last(self) -> int | float:
        """The latest value."""
        if self.last_integer:
            return self.last_word
        number: float = _FLOAT.unpack(_WORD.pack(self.last_word))[0]
        return number
