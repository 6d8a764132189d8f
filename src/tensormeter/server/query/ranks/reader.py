"""Statistics over processes with more points than can be held: read one process after another, then grown by what is new."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.axis import Placed, read_along
from tensormeter.server.query.points.rollup_lines import LongPieces, long_pieces
from tensormeter.server.query.points.sampled import MOST_LOOKED_AT
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.query.points.variant import OneVariant
from tensormeter.server.query.ranks.grid import Piece, RankGrid
from tensormeter.server.query.ranks.statistics import RanksQuery, RankStatistics, rank_statistics, statistics_of
from tensormeter.server.store import MAX_READ_POINTS, Points, RunRef, Selection, Store, Thinned
from tensormeter.server.store.models.rollup_blocks import FIRST, HIGHEST, LAST, LOWEST

__all__ = ["RankReading", "read_placed"]

_LONG_BLOCKS: Final = 128
"""Blocks that a process must have to be taken by samples: 65,536 points, of which each 512 have one lowest and one highest."""


class RankReading:
    """What `rank_statistics` says, but for neighbouring x, which are taken together in intervals of equal width, and for the mean of a
    process with more than 65,536 points, which is that of its samples. The lowest and the highest values are those of all points.

    Not for several threads at once.
    """

    def __init__(self, store: Store, ref: RunRef, query: RanksQuery, check: Check = no_check) -> None:
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
        placed, cursor, complete = read_placed(store, self._ref, self._query, after=self._cursor, check=check)
        if complete or not all(one.series.process in self._rows for one in placed):
            return False
        for one in placed:
            if self._variant.takes(one.series):
                self._add(one.series.process, _of_placed(one))
        self._cursor = cursor
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
        query = self._query
        long = long_pieces(
            store,
            self._ref,
            [query.metric],
            query.axis,
            process=process,
            start=query.start,
            stop=query.stop,
            attempt=query.attempt,
            blocks=_LONG_BLOCKS,
            limit=limit,
            check=check,
        )
        if long is not None:
            for thinned in long.found:
                if not self._variant.takes(thinned):
                    continue
                if thinned.blocks is not None:
                    # Intervals that are narrower than blocks would know few processes each.
                    self._most = min(self._most, len(thinned.blocks))
                yield _of_thinned(long, thinned)
            return
        placed, _, _ = read_placed(store, self._ref, query, process=process, limit=limit, check=check)
        yield from (_of_placed(one) for one in placed if self._variant.takes(one.series))


def read_placed(
    store: Store,
    ref: RunRef,
    query: RanksQuery,
    *,
    process: str | None = None,
    after: str | None = None,
    limit: int = MAX_READ_POINTS,
    check: Check = no_check,
) -> tuple[list[Placed], str, bool]:
    """As `read_along`, of what is asked for."""
    return read_along(
        store,
        ref,
        [query.metric],
        query.axis,
        process=process,
        start=query.start,
        stop=query.stop,
        after=after,
        attempt=query.attempt,
        limit=limit,
        check=check,
    )


def _of_placed(one: Placed) -> Piece:
    assert isinstance(one.series.points, Points)
    return _of_points(one.x, one.series.points.floats())


def _of_points(x: NDArray[np.float64], values: NDArray[np.float64]) -> Piece:
    return Piece(x, values, values, values, np.ones(len(x)))


def _of_thinned(long: LongPieces, one: Thinned) -> Piece:
    if one.blocks is None:
        assert one.points is not None
        assert one.steps is not None
        x, values = long.x(one.points.times, one.steps), one.points.floats()
        order = np.argsort(x, kind="stable")
        return _of_points(x[order], values[order])
    blocks = one.blocks
    low, high = blocks.values[:, LOWEST], blocks.values[:, HIGHEST]
    # Not of the extremes: one spike would be a quarter of its block.
    ends = blocks.values[:, [FIRST, LAST]]
    present = ~np.isnan(ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(present, ends, 0.0).sum(axis=1) / present.sum(axis=1)
        means = np.where(present.any(axis=1), means, (low + high) / 2)
    x = long.x(blocks.times[:, FIRST], blocks.steps[:, FIRST])
    return Piece(x, low, high, means, blocks.counts.astype(np.float64))
