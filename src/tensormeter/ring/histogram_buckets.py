"""The representation of distributions in the ring: their buckets, and the order of the counts in a row.

A distribution takes two columns, which have the same stream. The first column holds the counts of a table's bins as int32, two
per word, in the order ``-Inf | negative buckets, largest magnitude first | zero | positive buckets | +Inf | NaN``. The second
column holds the sum, minimum and maximum as three float64 words. All three are NaN if any value is NaN or infinite.
The buckets are OpenTelemetry's exponential buckets. Bucket i at scale s is ``(2 ** (i / 2**s), 2 ** ((i + 1) / 2**s)]``. The
negative buckets count the magnitudes of negative values.

A precomputed histogram with k explicit buckets is a single column with the code `EXPLICIT`. It takes 2k + 1 words: k + 1 edges
as float64, followed by k counts as int64. The edges are part of the row because they may differ between calls.

If few bins are occupied, the first column has the code `SPARSE` instead. Its first word is the code point of the table's code.
The other words are ``bin << 32 | count``, one for each occupied bin, in ascending order.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["DOUBLE", "EXPLICIT", "KIND", "MAX_BUCKETS", "SINGLE", "SPARSE", "STATISTICS_WORDS", "TABLES", "Table"]

KIND: Final = "distribution"
"""Kind of a stream that holds distributions."""

EXPLICIT: Final = "B"
"""Code of a column that holds the edges and counts of a precomputed histogram."""

SPARSE: Final = "S"
"""Code of a column that holds only the occupied bins of a table."""

STATISTICS_WORDS: Final = 3

MAX_BUCKETS: Final = 160
"""Maximum number of buckets on each side of a delivered histogram: the OpenTelemetry SDK's default."""


@dataclass(frozen=True)
class Table:
    """The bins for counting the values of a floating-point format.

    Bound i is the largest number of the format that does not exceed ``2 ** (i / 2**scale)``. This makes counting exact: for
    every number x of the format, ``x > bound`` if and only if ``x > 2 ** (i / 2**scale)``.

    Attributes:
        code: Code of the counts column.
        scale: Scale of the buckets.
        lowest: Exponent of the zero threshold. Values with a magnitude up to ``2 ** lowest`` count as zero.
        highest: Exponent of the smallest power of two above the format's largest finite number.
        fraction_bits: Number of fraction bits in the format.
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
        """Total number of bins: the buckets of both sides, and one bin each for zero, the two infinities and NaN."""
        return 2 * self.buckets + 4

    @property
    def words(self) -> int:
        """Number of words in the counts column, which holds two bins per word. The number of bins is always even."""
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
        """Exponent bias of the format."""
        return self.highest - 1

    @property
    def largest(self) -> int:
        """Bit pattern of the largest finite number. Adding 1 gives the bit pattern of infinity."""
        return ((2 * self.highest - 1) << self.fraction_bits) - 1

    @cached_property
    def fractions(self) -> tuple[int, ...]:
        """Fraction bits of ``2 ** (r / 2**scale)``, rounded down, for each r from 0 to ``2**scale - 1``."""
        return tuple(_root(r, self.scale, self.fraction_bits) for r in range(1 << self.scale))


SINGLE: Final = Table("E", scale=3, lowest=-64, highest=128, fraction_bits=23)
"""Table for float32 and for formats that float32 represents exactly. It has 3,076 bins, which take 12 KiB."""

DOUBLE: Final = Table("F", scale=2, lowest=-64, highest=1024, fraction_bits=52)
"""Table for float64 and for 32-bit and 64-bit integers. It has 8,708 bins, which take 34 KiB."""

TABLES: Final = {table.code: table for table in (SINGLE, DOUBLE)}


def _root(r: int, scale: int, fraction_bits: int) -> int:
    """Compute the fraction bits of ``2 ** (r / 2**scale)``, rounded down, with exact integer arithmetic.

    Taking the integer square root `scale` times gives the integer root of degree ``2**scale``.
    """
    significand = 1 << (r + (fraction_bits << scale))
    for _ in range(scale):
        significand = math.isqrt(significand)
    return significand - (1 << fraction_bits)
