"""Samples of points: of each block of neighbouring points the few that a chart may show."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError

__all__ = ["BLOCK_POINTS", "FIRST", "HIGHEST", "LAST", "LOWEST", "MISSING", "PICKS", "Blocks"]

BLOCK_POINTS: Final = 512
"""Points in one block, at most, where points are made blocks."""

FIRST, LAST, LOWEST, HIGHEST, MISSING = range(5)
PICKS: Final = 5
"""What is kept of a block: its first, last, lowest and highest point, and its first NaN, or again the first point if it has none.

NaN is neither low nor high, unless there is nothing else.
"""


@dataclass(frozen=True, eq=False)
class Blocks:
    """b blocks of points of one series, none empty, by ascending time; no block overlaps another in time.

    Attributes:
        counts: int64, shape (b,): points in each.
        times: int64, shape (b, 5): of what is kept of each, see `PICKS`.
        values: float64, shape (b, 5): integers outside 53 bits are rounded.
        steps: int64, shape (b, 5): logged at these times; 0 where they were not asked for.
    """

    ROWS: ClassVar[int] = 1 + 3 * PICKS
    """Words that `encode` makes of one block."""

    counts: NDArray[np.int64]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    steps: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        times: NDArray[np.int64],
        values: NDArray[np.float64],
        steps: NDArray[np.int64] | None = None,
        size: int = BLOCK_POINTS,
    ) -> "Blocks":
        """Cut points into blocks.

        Args:
            times: Ascending; all arrays are of shape (n,), n > 0.
            values: NaN is allowed.
            steps: 0 if not given.
            size: Of a block, the last one may be smaller.
        """
        n = len(times)
        b = -(-n // size)
        starts = np.arange(b) * size
        stops = np.minimum(starts + size, n)
        padding = b * size - n
        # The last point again and again: what it is, its block has already.
        grid = np.concatenate((values, np.full(padding, values[-1]))).reshape(b, size)
        missing = np.isnan(grid)
        low = high = grid
        gap = starts
        if missing.any():
            low, high = np.where(missing, np.inf, grid), np.where(missing, -np.inf, grid)
            gap = starts + missing.argmax(axis=1)
        columns = (starts, stops - 1, starts + low.argmin(axis=1), starts + high.argmax(axis=1), gap)
        index = np.minimum(np.stack(columns, axis=1), n - 1)
        stepped = np.zeros(index.shape, np.int64) if steps is None else steps[index]
        return cls(stops - starts, times[index], values[index], stepped)

    @classmethod
    def concat(cls, parts: Iterable["Blocks"]) -> "Blocks":
        """All blocks of the parts, at least one, in their order."""
        listed = list(parts)
        if len(listed) == 1:
            return listed[0]
        arrays = ((one.counts, one.times, one.values, one.steps) for one in listed)
        return cls(*map(np.concatenate, zip(*arrays, strict=True)))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> "Blocks":
        return Blocks(self.counts[index], self.times[index], self.values[index], self.steps[index])

    def picks(self, edges: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """What is kept of several blocks together.

        Args:
            edges: Each group of blocks goes from one edge to the next: ascending, distinct, the first is 0; shape (g,).

        Returns:
            Rows and columns in the arrays of these blocks, shapes (g, 5).
        """
        of = np.repeat(np.arange(len(edges)), np.diff(edges, append=len(self)))
        lowest, highest = self.values[:, LOWEST], self.values[:, HIGHEST]
        lowest, highest = np.where(np.isnan(lowest), np.inf, lowest), np.where(np.isnan(highest), -np.inf, highest)
        missing = np.isnan(self.values[:, MISSING])
        rows = (
            edges,
            np.append(edges[1:], len(self)) - 1,
            _first_of_each(lowest == np.minimum.reduceat(lowest, edges)[of], of, edges),
            _first_of_each(highest == np.maximum.reduceat(highest, edges)[of], of, edges),
            _first_of_each(missing, of, edges),  # in a group without NaN, the first point of its first block
        )
        return np.stack(rows, axis=1), np.broadcast_to(np.arange(PICKS), (len(edges), PICKS))

    def joined(self, edges: NDArray[np.intp]) -> "Blocks":
        """Fewer blocks, each made of a group; `edges` as for `picks`."""
        index = self.picks(edges)
        counts = np.add.reduceat(self.counts, edges)
        return Blocks(counts, self.times[index], self.values[index], self.steps[index])

    def encode(self) -> NDArray[np.int64]:
        """All of it as int64, shape (ROWS, b)."""
        return np.concatenate((self.counts[None], self.times.T, self.values.view(np.int64).T, self.steps.T))

    @classmethod
    def decode(cls, words: NDArray[np.int64]) -> "Blocks":
        """What `encode` made, or several of them, shape (..., ROWS, b), as one.

        Raises:
            DamagedError: There is an empty block.
        """
        rows = np.ascontiguousarray(np.moveaxis(words, -2, -1)).reshape(-1, cls.ROWS)
        counts = np.ascontiguousarray(rows[:, 0])
        if (counts < 1).any():
            raise DamagedError("samples: counts")
        times, values, steps = (np.ascontiguousarray(rows[:, 1 + PICKS * i : 1 + PICKS * (i + 1)]) for i in range(3))
        return cls(counts, times, values.view(np.float64), steps)


def _first_of_each(wanted: NDArray[np.bool_], of: NDArray[np.intp], edges: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of each group the first index that is wanted, or else its first."""
    found = edges.copy()
    index = np.flatnonzero(wanted)
    groups, first = np.unique(of[index], return_index=True)
    found[groups] = index[first]
    return found
