"""Distributions in the ring: which buckets there are, and in which order their counts stand in a row.

A distribution is two columns of one stream. One holds the counts of all bins of a table as int32, two to a word, in the
order ``-Inf | negative buckets, largest magnitude first | zero | positive buckets | +Inf | NaN``. The other holds three
float64 words: sum, minimum and maximum, which are NaN if any value is NaN or infinite.
The buckets are OpenTelemetry's exponential ones: bucket i of scale s is ``(2 ** (i / 2**s), 2 ** ((i + 1) / 2**s)]``, and the
negative side is the same of the magnitudes.

A ready-made histogram over k explicit buckets is one column, `EXPLICIT`, of 2k + 1 words: k + 1 edges as float64, then k
counts as int64. They stand in the row, because they change with every call.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["DOUBLE", "EXPLICIT", "KIND", "MAX_BUCKETS", "SINGLE", "STATISTICS_WORDS", "TABLES", "Table"]

KIND: Final = "distribution"
"""Of streams whose columns are described here."""

EXPLICIT: Final = "B"
"""The code of a column of edges and counts."""

STATISTICS_WORDS: Final = 3

MAX_BUCKETS: Final = 160
"""Buckets of one side of what is delivered, at most: the default of the OpenTelemetry SDK."""


@dataclass(frozen=True)
class Table:
    """The bins into which values of a floating-point format are counted.

    A bound is the largest number of the format that is not above the power of two that it stands for. So for every number x
    of the format, ``x > bound`` exactly if ``x > 2 ** (i / 2**scale)``, and counting is exact.

    Attributes:
        code: Of the column of counts.
        scale: Of the buckets.
        lowest: Values whose magnitude is at most ``2 ** lowest`` count as zero.
        highest: The format's largest finite number is just below ``2 ** highest``.
        fraction_bits: Of the format.
    """

    code: str
    scale: int
    lowest: int
    highest: int
    fraction_bits: int

    @property
    def buckets(self) -> int:
        """Buckets of each side."""
        return (self.highest - self.lowest) << self.scale

    @property
    def bins(self) -> int:
        return 2 * self.buckets + 4

    @property
    def words(self) -> int:
        """Words of the column of counts; the number of bins is even."""
        return self.bins // 2

    @property
    def first_index(self) -> int:
        """The index of the first bucket of each side."""
        return self.lowest << self.scale

    @property
    def zero_threshold(self) -> float:
        return 2.0**self.lowest

    @property
    def bias(self) -> int:
        """Of the format's exponents."""
        return self.highest - 1

    @property
    def largest(self) -> int:
        """Bits of the largest finite number; one more are those of infinity."""
        return ((2 * self.highest - 1) << self.fraction_bits) - 1

    @cached_property
    def fractions(self) -> tuple[int, ...]:
        """Fraction bits of the bounds in each octave: those of ``2 ** (r / 2**scale)`` rounded down, for each r."""
        return tuple(_root(r, self.scale, self.fraction_bits) for r in range(1 << self.scale))


SINGLE: Final = Table("E", scale=3, lowest=-64, highest=128, fraction_bits=23)
"""For float32 and all that it holds exactly: 3,076 bins, 12 KiB."""

DOUBLE: Final = Table("F", scale=2, lowest=-64, highest=1024, fraction_bits=52)
"""For float64, and integers of 32 and 64 bits: 8,708 bins, 34 KiB."""

TABLES: Final = {table.code: table for table in (SINGLE, DOUBLE)}


def _root(r: int, scale: int, fraction_bits: int) -> int:
    """The fraction bits of ``2 ** (r / 2**scale)``, rounded down, in exact arithmetic.

    Nested integer square roots are the integer root of the whole degree.
    """
    significand = 1 << (r + (fraction_bits << scale))
    for _ in range(scale):
        significand = math.isqrt(significand)
    return significand - (1 << fraction_bits)
