"""Statistics over processes that have too many points for memory and are therefore read one at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.lines import Line
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.rollup_lines import Rollups
from tensormeter.server.query.points.sampled import MOST_LOOKED_AT
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.query.points.variant import VariantSelector
from tensormeter.server.query.ranks.grid import Aggregates, RankGrid
from tensormeter.server.query.ranks.statistics import RankStatistics, rank_statistics, statistics_of
from tensormeter.server.store import Points, RunRef, Selection, SeriesRollup, Store, TooManyPointsError
from tensormeter.server.store.models.rollup_blocks import FIRST, HIGHEST, LAST, LOWEST

__all__ = ["RankReader"]

_LONG_BLOCKS: Final = 128
"""Minimum number of blocks, 512 points each, for a process to be read as rollups."""

_NEW_POINTS: Final = 2_000_000
"""Maximum number of points to read at once when new points have arrived."""


class RankReader:
    """The statistics of `rank_statistics`, computed in less memory with two approximations. Not thread-safe.

    Neighboring x values are merged into intervals of equal width. For a process with more than 65,536 points, means are
    computed from only the first and last point of each block. The lowest and highest values are exact.
    """

    def __init__(self, store: Store, ref: RunRef, query: RunQuery, check: Check = no_check) -> None:
        """Read all points. The query's axis must be time or step.

        Raises:
            TooManyPointsError: The query needs more points than one request may read.
            StoreError: See `Store.read`.
        """
        self._ref = ref
        self._query = query
        # All reads end at this cursor, so that `update` reads only points that are not in the means yet.
        run = store.read(ref, Selection([], shadowing=query.metrics))
        self._started, self._attempts, self._cursor = run.started, run.attempts, run.cursor
        processes = (summary.process for summary in store.processes(ref))
        ranks = Attempts(run.attempts, query.attempt).group_processes(processes)
        self._rows = {process: row for row, rank in enumerate(ranks) for process in rank}
        self._names: list[str | None] = [None] * len(ranks)
        self._grid = RankGrid(len(ranks), query.max_points)
        self._max_points = query.max_points
        self._variant = VariantSelector(query.variant)
        self._query = replace(query, upto=self._cursor)
        reader = RunReader(store, ref, self._query, check)
        for process, rollups in reader.scan([*self._rows], _LONG_BLOCKS, MOST_LOOKED_AT):
            for aggregates in self._read_lines(store, process, check) if rollups is None else self._read(rollups):
                self._add(process, aggregates)

    @property
    def size(self) -> int:
        """Size in memory, in bytes."""
        return self._grid.low.nbytes * 4

    def update(self, store: Store, check: Check = no_check) -> bool:
        """Add points that have arrived since the last read.

        Returns:
            Whether the points were added. If False, a new reader must read all points.

        Raises:
            StoreError: See `Store.read`.
        """
        run = store.read(self._ref, Selection([], shadowing=self._query.metrics))
        if (run.started, run.attempts) != (self._started, self._attempts):
            return False
        try:
            newer = replace(self._query, after=self._cursor, upto=run.cursor)
            new = RunReader(store, self._ref, newer, check).lines(_NEW_POINTS)
        except TooManyPointsError:  # the store no longer knows which points are new
            return False
        if new.complete or not all(line.series.process in self._rows for line in new.lines):
            return False
        for line in new.lines:
            if self._variant.accepts(line.series):
                self._add(line.series.process, _aggregate_line(line))
        self._cursor = new.cursor
        return True

    def statistics(self) -> RankStatistics:
        """Return the statistics of all points read so far."""
        grid = self._grid
        names = {row: name for row, name in enumerate(self._names) if name is not None}
        present = np.array([*names], np.intp)
        used = np.flatnonzero(np.isfinite(grid.x))
        if not len(used):
            return self._with_variants(rank_statistics([], self._max_points))
        edges = np.arange(0, len(used), -(-len(used) // self._max_points))
        sums = [
            combine.reduceat(values[np.ix_(present, used)], edges, axis=1)
            for values, combine in (
                (grid.low, np.minimum),
                (grid.high, np.maximum),
                (grid.total, np.add),
                (grid.count, np.add),
            )
        ]
        return self._with_variants(statistics_of([*names.values()], grid.x[used[edges]], sums))

    def _with_variants(self, statistics: RankStatistics) -> RankStatistics:
        return replace(statistics, variant=self._variant.variant, others=tuple(self._variant.others))

    def _add(self, process: str, aggregates: Aggregates) -> None:
        row = self._rows[process]
        self._names[row] = process  # a rank's latest attempt comes last and provides the name
        self._grid.add(row, aggregates)

    def _read(self, rollups: Rollups) -> Iterator[Aggregates]:
        """Aggregate the series of one process."""
        for series in rollups.series:
            if not self._variant.accepts(series):
                continue
            if series.blocks is not None:
                # If intervals were narrower than a block, each would contain points from only a few processes.
                self._max_points = min(self._max_points, len(series.blocks))
            yield _aggregate_rollup(rollups, series)

    def _read_lines(self, store: Store, process: str, check: Check) -> Iterator[Aggregates]:
        """Read and aggregate the series of a process whose steps are irregular."""
        lines = RunReader(store, self._ref, replace(self._query, process=process), check).lines().lines
        yield from (_aggregate_line(line) for line in lines if self._variant.accepts(line.series))


def _aggregate_line(line: Line) -> Aggregates:
    assert isinstance(line.series.points, Points)
    return _aggregate_points(line.x, line.series.points.floats())


def _aggregate_points(x: NDArray[np.float64], values: NDArray[np.float64]) -> Aggregates:
    return Aggregates(x, values, values, values, np.ones(len(x)))


def _aggregate_rollup(rollups: Rollups, series: SeriesRollup) -> Aggregates:
    if series.blocks is None:
        assert series.points is not None
        assert series.steps is not None
        x, values = rollups.x(series.points.times, series.steps), series.points.floats()
        if np.any(x[1:] < x[:-1]):
            order = np.argsort(x, kind="stable")
            x, values = x[order], values[order]
        return _aggregate_points(x, values)
    blocks = series.blocks
    low, high = blocks.values[:, LOWEST], blocks.values[:, HIGHEST]
    # Use the mean of the first and last points. If extremes counted too, a spike would make up a quarter of its block.
    ends = blocks.values[:, [FIRST, LAST]]
    present = ~np.isnan(ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(present, ends, 0.0).sum(axis=1) / present.sum(axis=1)
        means = np.where(present.any(axis=1), means, (low + high) / 2)
    x = rollups.x(blocks.times[:, FIRST], blocks.steps[:, FIRST])
    return Aggregates(x, low, high, means, blocks.counts.astype(np.float64))
