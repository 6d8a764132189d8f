"""Rollups: blocks of neighboring points, each reduced to the few points that a chart may show."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError

__all__ = ["BLOCK_POINTS", "FIRST", "HIGHEST", "LAST", "LOWEST", "MISSING", "PICKS", "Blocks"]

BLOCK_POINTS: Final = 512
"""Default number of points in a block."""

FIRST, LAST, LOWEST, HIGHEST, MISSING = range(5)
PICKS: Final = 5
"""Number of points kept from a block: first, last, lowest, highest, and the first NaN (or else the first point again).

NaN is the lowest or highest only if all points are NaN.
"""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The b blocks of one series, in time order. Blocks are not empty and do not overlap in time.

    Attributes:
        counts: int64, shape (b,): number of points in each block.
        times: int64, shape (b, 5): times of the points kept from each block; see `PICKS`.
        values: float64, shape (b, 5): values of the kept points; integers with more than 53 bits are rounded.
        steps: int64, shape (b, 5): steps logged at `times`; 0 if steps were not requested.
    """

    ROWS: ClassVar[int] = 1 + 3 * PICKS
    """Number of int64 words that `encode` returns for one block."""

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
        """Divide points into blocks.

        Args:
            times: Ascending times, shape (n,), n > 0.
            values: Values, shape (n,); may be NaN.
            steps: Steps, shape (n,); None to store zeros.
            size: Number of points in a block; the last block may be smaller.
        """
        n = len(times)
        b = -(-n // size)
        starts = np.arange(b) * size
        stops = np.minimum(starts + size, n)
        padding = b * size - n
        # Pad the last block with its last point, which is kept anyway.
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
        """Concatenate one or more sequences of blocks."""
        items = list(parts)
        if len(items) == 1:
            return items[0]
        arrays = ((blocks.counts, blocks.times, blocks.values, blocks.steps) for blocks in items)
        return cls(*map(np.concatenate, zip(*arrays, strict=True)))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> "Blocks":
        return Blocks(self.counts[index], self.times[index], self.values[index], self.steps[index])

    def picks(self, edges: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Select the points to keep when groups of blocks are joined.

        Args:
            edges: Index of the first block in each group: ascending, distinct, starting with 0; shape (g,).

        Returns:
            Row and column indices into this object's arrays, each of shape (g, 5).
        """
        group = np.repeat(np.arange(len(edges)), np.diff(edges, append=len(self)))
        lowest, highest = self.values[:, LOWEST], self.values[:, HIGHEST]
        lowest, highest = np.where(np.isnan(lowest), np.inf, lowest), np.where(np.isnan(highest), -np.inf, highest)
        missing = np.isnan(self.values[:, MISSING])
        rows = (
            edges,
            np.append(edges[1:], len(self)) - 1,
            _first_of_each(lowest == np.minimum.reduceat(lowest, edges)[group], group, edges),
            _first_of_each(highest == np.maximum.reduceat(highest, edges)[group], group, edges),
            _first_of_each(missing, group, edges),  # the first point of the first block if the group has no NaN
        )
        return np.stack(rows, axis=1), np.broadcast_to(np.arange(PICKS), (len(edges), PICKS))

    def joined(self, edges: NDArray[np.intp]) -> "Blocks":
        """Join each group of blocks into one block; `edges` is the same as for `picks`."""
        index = self.picks(edges)
        counts = np.add.reduceat(self.counts, edges)
        return Blocks(counts, self.times[index], self.values[index], self.steps[index])

    def encode(self) -> NDArray[np.int64]:
        """Return all arrays in one int64 array of shape (ROWS, b)."""
        return np.concatenate((self.counts[None], self.times.T, self.values.view(np.int64).T, self.steps.T))

    @classmethod
    def decode(cls, words: NDArray[np.int64]) -> "Blocks":
        """Decode one result of `encode`, or several stacked ones, from an array of shape (..., ROWS, b).

        Raises:
            DamagedError: A block is empty.
        """
        rows = np.ascontiguousarray(np.moveaxis(words, -2, -1)).reshape(-1, cls.ROWS)
        counts = np.ascontiguousarray(rows[:, 0])
        if (counts < 1).any():
            raise DamagedError("rollups: a block contains no points")
        times, values, steps = (np.ascontiguousarray(rows[:, 1 + PICKS * i : 1 + PICKS * (i + 1)]) for i in range(3))
        return cls(counts, times, values.view(np.float64), steps)


def _first_of_each(wanted: NDArray[np.bool_], group: NDArray[np.intp], edges: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the index of the first wanted item in each group, or of the group's first item if none is wanted."""
    first_indices = edges.copy()
    index = np.flatnonzero(wanted)
    groups, first = np.unique(group[index], return_index=True)
    first_indices[groups] = index[first]
    return first_indices
