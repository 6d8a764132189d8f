"""Columns of points, as the store keeps them: floats, integers or distributions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blobs", "Column", "Newest", "Points", "beginning", "newest", "steps_at"]

_EXPONENT: Final = 0x7FF0_0000_0000_0000
"""Bits of the exponent of a float64. All of them are set in NaN and infinite values only."""

_Index = slice | NDArray[np.bool_] | NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Column(ABC):
    """The n points of one series. The arrays are never modified after construction, so threads can share them.

    Attributes:
        times: int64, shape (n,): times in nanoseconds since the Unix epoch, greater than 0.
    """

    times: NDArray[np.int64]

    @abstractmethod
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return all arrays, each of length n, in the order of the constructor's arguments."""

    @classmethod
    @abstractmethod
    def empty(cls) -> Self:
        """Return a column without points."""

    @classmethod
    def concat(cls, parts: Iterable[Self]) -> Self:
        """Return the points of all parts, in order."""
        columns = list(parts)
        if len(columns) == 1:
            return columns[0]
        if not columns:
            return cls.empty()
        return cls(*map(np.concatenate, zip(*(column.arrays() for column in columns), strict=True)))

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: _Index) -> Self:
        return type(self)(*(array[index] for array in self.arrays()))

    def distinct(self) -> Self:
        """Return the points in time order, keeping only the first of points with equal times."""
        if len(self.times) < 2 or np.all(self.times[1:] > self.times[:-1]):
            return self
        ordered = self[np.argsort(self.times, kind="stable")]
        return ordered[np.concatenate(([True], ordered.times[1:] != ordered.times[:-1]))]


@dataclass(frozen=True, eq=False)
class Points(Column):
    """Numeric points, stored as 64-bit words to preserve NaN payloads, the sign of -0.0 and every digit of an int64.

    Attributes:
        words: int64, shape (n,): values, each an int64 or the bits of a float64.
        integers: bool, shape (n,): whether each value is an int64.
    """

    words: NDArray[np.int64]
    integers: NDArray[np.bool_]

    @classmethod
    def of(cls, times: NDArray[np.int64], values: NDArray[np.float64] | NDArray[np.int64]) -> "Points":
        """Create points from values of one type."""
        return cls(times, values.view(np.int64), np.full(len(times), values.dtype.kind == "i"))

    @classmethod
    def empty(cls) -> "Points":
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))

    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.times, self.words, self.integers

    def floats(self) -> NDArray[np.float64]:
        """Return the values as float64; integers with more than 53 bits are rounded."""
        if not self.integers.any():
            return self.words.view(np.float64)
        if self.integers.all():
            return self.words.astype(np.float64)
        return np.where(self.integers, self.words.astype(np.float64), self.words.view(np.float64))

    def non_finite(self) -> NDArray[np.bool_]:
        """bool, shape (n,): whether each value is NaN or infinite."""
        has_exponent: NDArray[np.bool_] = (self.words & _EXPONENT) == _EXPONENT
        return has_exponent & ~self.integers

    def values(self) -> list[int | float]:
        """Return the values as Python ints and floats."""
        numbers: list[int | float]
        if self.integers.all():
            numbers = self.words.tolist()
            return numbers
        numbers = self.words.view(np.float64).tolist()
        for index in np.flatnonzero(self.integers).tolist():
            numbers[index] = int(self.words[index])
        return numbers


@dataclass(frozen=True, eq=False)
class Blobs(Column):
    """Distributions, each stored as an encoded OTLP data point without attributes.

    Attributes:
        blobs: bytes, shape (n,): encoded data points.
    """

    blobs: NDArray[np.object_]

    @classmethod
    def of(cls, times: NDArray[np.int64], blobs: Sequence[bytes]) -> "Blobs":
        """Create distributions from a sequence of bytes."""
        column = np.empty(len(blobs), np.object_)
        column[:] = blobs
        return cls(times, column)

    @classmethod
    def empty(cls) -> "Blobs":
        return cls(np.empty(0, np.int64), np.empty(0, np.object_))

    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.times, self.blobs


def steps_at(steps: Points, times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the step logged at exactly each time, or 0, and whether there is one. Both arrays have shape (n,).

    Args:
        steps: Points of `tensormeter.step`, with distinct times in ascending order. Non-integer values are ignored.
        times: int64, shape (n,).
    """
    words, known = steps.words, steps.integers
    if not known.all():
        with np.errstate(invalid="ignore"):
            floats = steps.words.view(np.float64)
            whole = ~known & (floats == np.floor(floats)) & (np.abs(floats) < 2.0**63)
            words = np.where(whole, np.where(whole, floats, 0.0).astype(np.int64), words)
            known = known | whole
    if not len(words):
        return np.zeros(len(times), np.int64), np.zeros(len(times), np.bool_)
    if steps.times is times or np.array_equal(
        steps.times, times
    ):  # the usual case, in which every row has the metric; four times faster
        return (words, known) if known.all() else (np.where(known, words, 0), known)
    index = np.minimum(np.searchsorted(steps.times, times), len(words) - 1)
    stepped = (steps.times[index] == times) & known[index]
    return np.where(stepped, words[index], 0), stepped


def beginning(steps: Points) -> tuple[int, int] | None:
    """Return the lowest step and the time of the earliest step in points of `tensormeter.step`; None without steps."""
    logged, stepped = steps_at(steps, steps.times)
    if not stepped.any():
        return None
    return int(logged[stepped].min()), int(steps.times[stepped].min())


Newest = tuple[int, int, bool]
"""A point as scalars: (time, word, whether the word is an integer)."""


def newest(points: Column) -> Newest:
    """Return the first of the points with the latest time. `points` must not be empty."""
    index = int(points.times.argmax())
    if isinstance(points, Points):
        return int(points.times[index]), int(points.words[index]), bool(points.integers[index])
    return int(points.times[index]), 0, True
