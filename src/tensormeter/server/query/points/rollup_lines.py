"""Lines of long series, sampled from stored rollups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.downsampling import sample, sample_blocks
from tensormeter.server.query.points.lines import NO_POSITIONS, gap_positions
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.store import SeriesRollup
from tensormeter.server.store.models.rollup_blocks import FIRST, LAST, Blocks

__all__ = ["RollupLine", "Rollups"]


@dataclass(frozen=True, eq=False)
class RollupLine:
    """A sampled line.

    Attributes:
        series: Series of the line's last piece.
        attempt: Attempt of the last piece.
        x: X values of the points, float64, shape (n,).
        y: Values of the points, float64, shape (n,).
        total: Number of points in the range before sampling.
        loaded: Number of points loaded into memory.
        gaps: Positions of gaps in the line; see `gap_positions`.
    """

    series: SeriesRollup
    attempt: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    total: int
    loaded: int
    gaps: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rollups:
    """Series whose x is the time or step, with long series as blocks and short series as points.

    Attributes:
        series: Series in the range, from the requested attempts.
        attempts: Attempts of the run.
        axis: Time or step.
        origin: Time at which x is 0; see `Axis.origin`.
        cursor: Cursor at which reads end, for a later read; see `Reading`.
    """

    series: Sequence[SeriesRollup]
    attempts: Attempts
    axis: Axis
    origin: float
    cursor: str

    def x(self, times: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return x values for points, given their times and steps in arrays of the same shape."""
        return self.axis.seconds(times, self.origin) if self.axis.is_time else steps.astype(np.float64)

    def lines(self, max_points: int, check: Check = no_check) -> list[RollupLine] | None:
        """Sample all lines as `sample` does, except that buckets are only approximately equal in size.

        Args:
            max_points: Maximum number of points in a line.
            check: Function called for each line; it can raise an exception to stop the query.

        Returns:
            Sampled lines; None if a line's attempts are not in time order, so that the query must read points instead.
        """
        lines = []
        for pieces in self.attempts.group_series(self.series):
            check()
            line = self._line(pieces, max_points)
            if line is None:
                return None
            lines.append(replace(line, attempt=self.attempts.number(line.series.process)))
        return lines

    def _line(self, pieces: Sequence[SeriesRollup], max_points: int) -> RollupLine | None:
        gaps = np.concatenate([self._gaps(piece) for piece in pieces])
        if all(piece.blocks is None for piece in pieces):
            times, values, steps = (np.concatenate(columns) for columns in zip(*map(_columns, pieces), strict=True))
            x = self.x(times, steps)
            order = np.argsort(x, kind="stable")
            index = order[sample(values[order], max_points)]
            return RollupLine(pieces[-1], 1, x[index], values[index], len(values), len(values), gaps)
        blocks = Blocks.concat(piece.blocks or Blocks.of(*_columns(piece)) for piece in pieces)
        x_of_blocks = blocks.times if self.axis.is_time else blocks.steps
        if np.any(x_of_blocks[1:, FIRST] < x_of_blocks[:-1, LAST]):
            return None
        picks = sample_blocks(blocks, max_points)
        x = self.x(blocks.times[picks], blocks.steps[picks])
        total = int(blocks.counts.sum())
        return RollupLine(pieces[-1], 1, x, blocks.values[picks], total, blocks.values.size, gaps)

    def _gaps(self, piece: SeriesRollup) -> NDArray[np.float64]:
        """Return the positions of gaps within a piece."""
        if not len(piece.gaps):
            return NO_POSITIONS
        if piece.blocks is not None:
            times, steps = piece.blocks.times.reshape(-1), piece.blocks.steps.reshape(-1)
        else:
            times, _, steps = _columns(piece)
        return gap_positions(piece.gaps, times, self.x(times, steps))


def _columns(piece: SeriesRollup) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    assert piece.points is not None
    assert piece.steps is not None
    return piece.points.times, piece.points.floats(), piece.steps
