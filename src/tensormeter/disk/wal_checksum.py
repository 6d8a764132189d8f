"""The checksum of SQLite's write-ahead log, computed for many frames together (SQLite's file format, section 4.2)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["WordSum", "checksum", "word_sums"]

_WORD: Final = (1 << 32) - 1


@dataclass(frozen=True)
class WordSum:
    """Contribution of a sequence of words to a checksum, independent of the words before them.

    Attributes:
        words: Checksum of the words alone, as two sums.
        power: Symmetric matrix by which the checksum before the words is multiplied: top-left, off-diagonal and
            bottom-right elements.
    """

    words: tuple[int, int]
    power: tuple[int, int, int]

    def after(self, state: tuple[int, int]) -> tuple[int, int]:
        """Return the checksum after these words, given the checksum `state` before them."""
        first, other, second = self.power
        return (
            (first * state[0] + other * state[1] + self.words[0]) & _WORD,
            (other * state[0] + second * state[1] + self.words[1]) & _WORD,
        )


def word_sums(rows: NDArray[np.uint8], *, big: bool) -> list[WordSum]:
    """Return the contribution of each row.

    A pair of words (a, b) turns (first, second) into first' = first + second + a and second' = second + first' + b.
    Over many pairs, this becomes a sum of words multiplied by Fibonacci numbers.

    Args:
        rows: Bytes of shape (n, 8 * pairs).
        big: Whether the words are big-endian.
    """
    words = np.ascontiguousarray(rows).view(">u4" if big else "<u4").astype(np.uint32)
    pairs = words.shape[1] // 2
    fibonacci = _fibonacci(2 * pairs + 2)
    behind = 2 * np.arange(pairs - 1, -1, -1)
    a, b = words[:, ::2], words[:, 1::2]
    firsts = (a * fibonacci[behind + 1] + b * fibonacci[behind]).sum(axis=1, dtype=np.uint32)
    seconds = (a * fibonacci[behind + 2] + b * fibonacci[behind + 1]).sum(axis=1, dtype=np.uint32)
    first, other, second = fibonacci[2 * pairs - 1 : 2 * pairs + 2].tolist()
    return [WordSum(sums, (first, other, second)) for sums in zip(firsts.tolist(), seconds.tolist(), strict=True)]


def checksum(data: bytes, *, big: bool) -> tuple[int, int]:
    """Return the checksum of `data`, whose size in bytes must be a multiple of 8."""
    (sums,) = word_sums(np.frombuffer(data, np.uint8).reshape(1, -1), big=big)
    return sums.words


@lru_cache(maxsize=16)
def _fibonacci(count: int) -> NDArray[np.uint32]:
    """Return the first `count` Fibonacci numbers, modulo 2**32."""
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-1] + numbers[-2]) & _WORD)
    return np.array(numbers, np.uint32)
