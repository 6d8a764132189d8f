"""Series that are too long to read every point of, from samples that the store keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.axis import NO_POSITIONS, Axis, gap_positions
from tensormeter.server.query.points.downsampling import blocks_needed, sample, sample_blocks
from tensormeter.server.query.points.shadowing import AttemptChoice, Attempts
from tensormeter.server.store import PointRange, RunRef, Selection, Store, Thinned
from tensormeter.server.store.models.rollup_blocks import FIRST, LAST, Blocks

__all__ = ["LongPieces", "ThinnedLine", "long_pieces", "read_thinned"]


@dataclass(frozen=True, eq=False)
class ThinnedLine:
    """One line, sampled.

    Attributes:
        series: Its last piece.
        x: float64, as long as `y`.
        total: Points that it has in the range.
        held: Points that were in memory for it.
        gaps: As `gap_positions` gives them.
    """

    series: Thinned
    attempt: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    total: int
    held: int
    gaps: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LongPieces:
    """Series along time or steps, some of them in blocks; `origin` as in `Axis.origin`."""

    found: Sequence[Thinned]
    attempts: Attempts
    axis: Axis
    origin: float
    cursor: str

    def x(self, times: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """The x of points at these times, with these steps; arrays of one shape."""
        return self.axis.seconds(times, self.origin) if self.axis.is_time else steps.astype(np.float64)


def read_thinned(
    store: Store,
    ref: RunRef,
    metrics: Sequence[str],
    axis: Axis,
    *,
    process: str | None,
    start: float | None,
    stop: float | None,
    attempt: AttemptChoice,
    max_points: int,
    limit: int,
    check: Check = no_check,
    damaged: list[str] | None = None,
) -> tuple[list[ThinnedLine], str] | None:
    """What `read_along` and `sample` give, where buckets may be of only about equally many points.

    Returns:
        Lines and the cursor; None if only points can answer: along a metric other than the step, where steps or attempts are not
        in the order of time, or where there are no long series.

    Raises:
        StoreError: As `Store.thin`.
    """
    long = long_pieces(
        store,
        ref,
        metrics,
        axis,
        process=process,
        start=start,
        stop=stop,
        attempt=attempt,
        blocks=blocks_needed(max_points),
        limit=limit,
        gaps=True,
        check=check,
        damaged=damaged,
    )
    if long is None:
        return None
    attempts = long.attempts
    lines = []
    for pieces in attempts.lines(long.found):
        check()
        line = _line(pieces, long, max_points)
        if line is None:
            return None
        lines.append(replace(line, attempt=attempts.number(line.series.process)))
    return lines, long.cursor


def long_pieces(
    store: Store,
    ref: RunRef,
    metrics: Sequence[str],
    axis: Axis,
    *,
    process: str | None,
    start: float | None,
    stop: float | None,
    attempt: AttemptChoice,
    blocks: int,
    limit: int,
    gaps: bool = False,
    check: Check = no_check,
    damaged: list[str] | None = None,
) -> LongPieces | None:
    """Series of the attempts that are wanted, with start <= x < stop.

    Args:
        blocks: As for `Store.thin`; so are `limit`, `gaps`, `check` and `damaged`, in `Selection`.

    Returns:
        None if only points can answer, see `read_thinned`.

    Raises:
        StoreError: As `Store.thin`.
    """
    if not axis.is_time and not axis.is_step:
        return None
    about = store.read(ref, Selection([]))
    attempts = Attempts(about.attempts, attempt)
    origin = axis.origin(about.started)
    window = PointRange(begins=attempts.shadowed())
    if axis.is_time:
        first, last = axis.nanoseconds(start, origin), axis.nanoseconds(stop, origin)
        window = replace(window, start=first, stop=last)
    else:
        window = replace(window, by_step=True, first_step=start, last_step=stop)
    selection = Selection(metrics, process, limit=limit, gaps=gaps, check=check, damaged=damaged)
    found = store.thin(ref, selection, window, blocks)
    return None if found is None else LongPieces(attempts.chosen(found), attempts, axis, origin, about.cursor)


def _line(pieces: Sequence[Thinned], long: LongPieces, max_points: int) -> ThinnedLine | None:
    """One line out of its pieces; None if they are not one after another."""
    gaps = np.concatenate([_gaps(one, long) for one in pieces])
    if all(one.blocks is None for one in pieces):
        times, values, steps = (np.concatenate(columns) for columns in zip(*map(_columns, pieces), strict=True))
        x = long.x(times, steps)
        order = np.argsort(x, kind="stable")
        kept = order[sample(values[order], max_points)]
        return ThinnedLine(pieces[-1], 1, x[kept], values[kept], len(values), len(values), gaps)
    blocks = Blocks.concat(one.blocks or Blocks.of(*_columns(one)) for one in pieces)
    along = blocks.times if long.axis.is_time else blocks.steps
    if np.any(along[1:, FIRST] < along[:-1, LAST]):
        return None
    index = sample_blocks(blocks, max_points)
    x = long.x(blocks.times[index], blocks.steps[index])
    total = int(blocks.counts.sum())
    return ThinnedLine(pieces[-1], 1, x, blocks.values[index], total, blocks.values.size, gaps)


def _gaps(piece: Thinned, long: LongPieces) -> NDArray[np.float64]:
    """Where a piece is interrupted: after the last point before a gap, of those that are there."""
    if not len(piece.gaps):
        return NO_POSITIONS
    if piece.blocks is not None:
        times, steps = piece.blocks.times.reshape(-1), piece.blocks.steps.reshape(-1)
    else:
        times, _, steps = _columns(piece)
    return gap_positions(piece.gaps, times, long.x(times, steps))


def _columns(piece: Thinned) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    assert piece.points is not None
    assert piece.steps is not None
    return piece.points.times, piece.points.floats(), piece.steps
