"""Statistics over processes with more points than can be held: read one process after another, then grown by what is new."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.lines import Line
from tensormeter.server.query.points.rollup_lines import Rollups
from tensormeter.server.query.points.sampled import MOST_LOOKED_AT
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.query.points.variant import OneVariant
from tensormeter.server.query.ranks.grid import Piece, RankGrid
from tensormeter.server.query.ranks.statistics import RankStatistics, rank_statistics, statistics_of
from tensormeter.server.query.reader import RunReader
from tensormeter.server.query.request import RunQuery
from tensormeter.server.store import Points, RunRef, Selection, Store, Thinned
from tensormeter.server.store.models.rollup_blocks import FIRST, HIGHEST, LAST, LOWEST

__all__ = ["RankReading"]

_LONG_BLOCKS: Final = 128
"""Blocks that a process must have to be taken by samples: 65,536 points, of which each 512 have one lowest and one highest."""


class RankReading:
    """What `rank_statistics` says, but for neighbouring x, which are taken together in intervals of equal width, and for the mean of a
    process with more than 65,536 points, which is that of its samples. The lowest and the highest values are those of all points.

    Not for several threads at once.
    """

    def __init__(self, store: Store, ref: RunRef, query: RunQuery, check: Check = no_check) -> None:
        """Read everything. The axis is time or the step.

        Raises:
            TooManyPointsError: There are more points to look at than one request may have.
            StoreError: As `Store.read`.
        """
        self._ref = ref
        self._query = query
        # Before anything else is read: what comes meanwhile then counts twice in means, and not never.
        about = store.read(ref, Selection([]))
        self._started, self._attempts, self._cursor = about.started, about.attempts, about.cursor
        ranks = Attempts(about.attempts, query.attempt).ranks(one.process for one in store.processes(ref))
        self._rows = {process: row for row, processes in enumerate(ranks) for process in processes}
        self._names: list[str | None] = [None] * len(ranks)
        self._grid = RankGrid(len(ranks), query.max_points)
        self._most = query.max_points
        self._variant = OneVariant(query.variant)
        left = MOST_LOOKED_AT
        for process in self._rows:
            check()
            for piece in self._read(store, process, left, check):
                self._add(process, piece)
                left -= 2 * len(piece.x)

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._grid.low.nbytes * 4

    def grow(self, store: Store, check: Check = no_check) -> bool:
        """Add what has arrived since. False: that is not possible, everything must be read anew.

        Raises:
            StoreError: As `Store.read`.
        """
        about = store.read(self._ref, Selection([]))
        if (about.started, about.attempts) != (self._started, self._attempts):
            return False
        new = RunReader(store, self._ref, replace(self._query, after=self._cursor), check).lines()
        if new.complete or not all(line.series.process in self._rows for line in new.lines):
            return False
        for line in new.lines:
            if self._variant.takes(line.series):
                self._add(line.series.process, _of_line(line))
        self._cursor = new.cursor
        return True

    def statistics(self) -> RankStatistics:
        """What is known."""
        grid = self._grid
        names = {row: name for row, name in enumerate(self._names) if name is not None}
        present = np.array([*names], np.intp)
        used = np.flatnonzero(np.isfinite(grid.x))
        if not len(used):
            return self._said(rank_statistics([], self._most))
        edges = np.arange(0, len(used), -(-len(used) // self._most))
        sums = [
            combine.reduceat(values[np.ix_(present, used)], edges, axis=1)
            for values, combine in (
                (grid.low, np.minimum),
                (grid.high, np.maximum),
                (grid.total, np.add),
                (grid.count, np.add),
            )
        ]
        return self._said(statistics_of([*names.values()], grid.x[used[edges]], sums))

    def _said(self, found: RankStatistics) -> RankStatistics:
        return replace(found, variant=self._variant.variant, others=tuple(self._variant.others))

    def _add(self, process: str, piece: Piece) -> None:
        row = self._rows[process]
        self._names[row] = process  # of several attempts at one rank the latest, which comes last
        self._grid.add(row, piece)

    def _read(self, store: Store, process: str, limit: int, check: Check) -> Iterator[Piece]:
        """Of each series of a process."""
        reader = RunReader(store, self._ref, replace(self._query, process=process), check)
        rollups = reader.rollups(_LONG_BLOCKS, limit)
        if rollups is None:
            lines = reader.lines(limit).lines
            yield from (_of_line(line) for line in lines if self._variant.takes(line.series))
            return
        for series in rollups.series:
            if not self._variant.takes(series):
                continue
            if series.blocks is not None:
                # Intervals that are narrower than blocks would contain points of few processes each.
                self._most = min(self._most, len(series.blocks))
            yield _of_rollup(rollups, series)


def _of_line(line: Line) -> Piece:
    assert isinstance(line.series.points, Points)
    return _of_points(line.x, line.series.points.floats())


def _of_points(x: NDArray[np.float64], values: NDArray[np.float64]) -> Piece:
    return Piece(x, values, values, values, np.ones(len(x)))


def _of_rollup(rollups: Rollups, series: Thinned) -> Piece:
    if series.blocks is None:
        assert series.points is not None
        assert series.steps is not None
        x, values = rollups.x(series.points.times, series.steps), series.points.floats()
        order = np.argsort(x, kind="stable")
        return _of_points(x[order], values[order])
    blocks = series.blocks
    low, high = blocks.values[:, LOWEST], blocks.values[:, HIGHEST]
    # Not of the extremes: one spike would be a quarter of its block.
    ends = blocks.values[:, [FIRST, LAST]]
    present = ~np.isnan(ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(present, ends, 0.0).sum(axis=1) / present.sum(axis=1)
        means = np.where(present.any(axis=1), means, (low + high) / 2)
    x = rollups.x(blocks.times[:, FIRST], blocks.steps[:, FIRST])
    return Piece(x, low, high, means, blocks.counts.astype(np.float64))
