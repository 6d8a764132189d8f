"""Distributions in the ring: their buckets, and the order of the counts in a row.

A distribution is two columns of one stream. The first column holds the counts of all bins of a table as int32, two to a word,
in the order ``-Inf | negative buckets, largest magnitude first | zero | positive buckets | +Inf | NaN``. The second column
holds three float64 words: sum, minimum and maximum. They are NaN if any value is NaN or infinite.
The buckets are OpenTelemetry's exponential buckets. Bucket i of scale s is ``(2 ** (i / 2**s), 2 ** ((i + 1) / 2**s)]``. The
buckets of the negative side hold the magnitudes of negative values.

A ready-made histogram over k explicit buckets is one column, `EXPLICIT`, of 2k + 1 words: k + 1 edges as float64, then k
counts as int64. The edges are part of the row because they may change with every call.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["DOUBLE", "EXPLICIT", "KIND", "MAX_BUCKETS", "SINGLE", "STATISTICS_WORDS", "TABLES", "Table"]

KIND: Final = "distribution"
"""Kind of the streams that hold distributions."""

EXPLICIT: Final = "B"
"""Code of a column of edges and counts."""

STATISTICS_WORDS: Final = 3

MAX_BUCKETS: Final = 160
"""Maximum number of buckets on each side of a delivered histogram. It is the default of the OpenTelemetry SDK."""


@dataclass(frozen=True)
class Table:
    """The bins that count the values of a floating-point format.

    A bound is the largest number of the format that is not above the power of two that it represents. So for every number x
    of the format, ``x > bound`` exactly if ``x > 2 ** (i / 2**scale)``, and counting is exact.

    Attributes:
        code: Code of the column of counts.
        scale: Scale of the buckets.
        lowest: Exponent of the zero threshold. Values with a magnitude of at most ``2 ** lowest`` count as zero.
        highest: Exponent of the smallest power of two above the format's largest finite number.
        fraction_bits: Number of fraction bits of the format.
    """

    code: str
    scale: int
    lowest: int
    highest: int
    fraction_bits: int

    @property
    def buckets(self) -> int:
        """Number of buckets on each side."""
        return (self.highest - self.lowest) << self.scale

    @property
    def bins(self) -> int:
        """Number of bins: both sides, zero, the infinities and NaN."""
        return 2 * self.buckets + 4

    @property
    def words(self) -> int:
        """Number of words of the column of counts. The number of bins is even."""
        return self.bins // 2

    @property
    def first_index(self) -> int:
        """Index of the first bucket on each side."""
        return self.lowest << self.scale

    @property
    def zero_threshold(self) -> float:
        """Largest magnitude that counts as zero."""
        return 2.0**self.lowest

    @property
    def bias(self) -> int:
        """Bias of the format's exponents."""
        return self.highest - 1

    @property
    def largest(self) -> int:
        """Bits of the largest finite number. Adding 1 gives the bits of infinity."""
        return ((2 * self.highest - 1) << self.fraction_bits) - 1

    @cached_property
    def fractions(self) -> tuple[int, ...]:
        """Fraction bits of the bounds in each octave: the bits of ``2 ** (r / 2**scale)``, rounded down, for each r."""
        return tuple(_root(r, self.scale, self.fraction_bits) for r in range(1 << self.scale))


SINGLE: Final = Table("E", scale=3, lowest=-64, highest=128, fraction_bits=23)
"""Table for float32 and for formats that float32 holds exactly: 3,076 bins, 12 KiB."""

DOUBLE: Final = Table("F", scale=2, lowest=-64, highest=1024, fraction_bits=52)
"""Table for float64 and for integers of 32 and 64 bits: 8,708 bins, 34 KiB."""

TABLES: Final = {table.code: table for table in (SINGLE, DOUBLE)}


def _root(r: int, scale: int, fraction_bits: int) -> int:
    """Compute the fraction bits of ``2 ** (r / 2**scale)``, rounded down, in exact arithmetic.

    `scale` nested integer square roots are the integer root of degree ``2**scale``.
    """
    significand = 1 << (r + (fraction_bits << scale))
    for _ in range(scale):
        significand = math.isqrt(significand)
    return significand - (1 << fraction_bits)
