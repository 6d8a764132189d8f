"""Points in columns, as the store holds them: times, and values that are floats or integers, point by point."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Points"]


@dataclass(frozen=True, eq=False, slots=True)
class Points:
    """n points of one series. The arrays are never written to after construction, so they may be shared by threads.

    Values are kept as their 64 bits, so that a NaN keeps its payload, -0.0 its sign, and an int64 all its digits.

    Attributes:
        times: int64, shape (n,): nanoseconds since the Unix epoch, greater than 0.
        words: int64, shape (n,): the bits of a float64, or an int64.
        integers: bool, shape (n,): which of the words are int64.
    """

    times: NDArray[np.int64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]

    @classmethod
    def of(cls, times: NDArray[np.int64], values: NDArray[np.float64] | NDArray[np.int64]) -> "Points":
        """Points with values of one kind."""
        return cls(times, values.view(np.int64), np.full(len(times), values.dtype.kind == "i"))

    @classmethod
    def concat(cls, parts: Iterable["Points"]) -> "Points":
        """All points of the parts, in their order."""
        listed = list(parts)
        if len(listed) == 1:
            return listed[0]
        if not listed:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))
        return cls(
            np.concatenate([part.times for part in listed]),
            np.concatenate([part.words for part in listed]),
            np.concatenate([part.integers for part in listed]),
        )

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: "slice | NDArray[np.bool_] | NDArray[np.intp]") -> "Points":
        return Points(self.times[index], self.words[index], self.integers[index])

    def distinct(self) -> "Points":
        """The points by ascending time; of points with the same time, the first."""
        if np.all(self.times[1:] > self.times[:-1]):
            return self
        ordered = self[np.argsort(self.times, kind="stable")]
        return ordered[np.concatenate(([True], ordered.times[1:] != ordered.times[:-1]))]

    def values(self) -> list[int | float]:
        """The values as Python numbers, each of its own kind."""
        numbers: list[int | float]
        if self.integers.all():
            numbers = self.words.tolist()
            return numbers
        numbers = self.words.view(np.float64).tolist()
        for index in np.flatnonzero(self.integers).tolist():
            numbers[index] = int(self.words[index])
        return numbers
