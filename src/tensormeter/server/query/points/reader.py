"""A reader of a run's points, as lines, as rollups, or as logged."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.lines import Line, LineReading, add_gaps, cut_line, join_lines, line_along
from tensormeter.server.query.points.metric_axis import MetricAxis
from tensormeter.server.query.points.raw import RawSeries, StepJoiner
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.rollup_lines import Rollups
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.store import MAX_READ_POINTS, PointRange, Points, Reading, RunRef, Selection, Series, Store

__all__ = ["RunReader"]


_LOOK_BACK: Final = (60, 1e4, 1e6, 1e10)
"""Seconds before new points in which x values of another metric are looked for, one after the other."""


class _RollupView(NamedTuple):
    """The range of a query, and rollups without series."""

    window: PointRange
    rollups: Rollups


class RunReader:
    """Reader of the points that a query selects from one run."""

    def __init__(
        self, store: Store, ref: RunRef, query: RunQuery, check: Check = no_check, damaged: list[str] | None = None
    ) -> None:
        """Create a reader.

        Args:
            store: Store to read from.
            ref: Run to read.
            query: Points to read.
            check: Function called for each series; it can raise an exception to stop the query.
            damaged: List that receives messages about damaged data; see `Selection`.
        """
        self._store = store
        self._ref = ref
        self._query = query
        self._check = check
        self._damaged = damaged

    def lines(self, limit: int = MAX_READ_POINTS, *, gaps: bool = False) -> LineReading:
        """Read the points in the query's x range as lines.

        If the query asks for the effective line, pieces from several attempts form one line. It has the identity of the
        latest piece in the range.

        Args:
            limit: Maximum number of points and gaps to read, including points for x values.
            gaps: Whether to read gaps.

        Raises:
            StoreError: See `Store.read`.
        """
        query, axis = self._query, self._query.axis
        metrics = dict.fromkeys(query.metrics)
        if axis.metric is not None and query.numeric:
            metrics[axis.metric] = None
        origin, first, last = 0.0, None, None
        if axis.is_time:
            origin = axis.origin(self._read(Selection([], upto=query.upto)).started) if axis.relative else 0.0
            first, last = axis.nanoseconds(query.start, origin), axis.nanoseconds(query.stop, origin)
        selection = Selection(
            [*metrics],
            query.process,
            numeric=query.numeric,
            start=first,
            stop=last,
            after=query.after,
            upto=query.upto,
            limit=limit,
            gaps=gaps,
            accepts=query.series_filter(),
            check=self._check,
            damaged=self._damaged,
        )
        reading = self._read(selection)
        attempts = Attempts(reading.attempts, query.attempt)
        series = attempts.select(candidate for candidate in reading.series if candidate.metric in query.metrics)
        x_series: Sequence[Series] = []
        is_complete = query.numeric and reading.complete
        if axis.metric is not None:
            if query.numeric:
                x_series = [candidate for candidate in reading.series if candidate.metric == axis.metric]
            if series and not is_complete and not _has_same_times(x_series, series):
                x_series = self._read_during(axis.metric, series, limit)  # x values have arrived before the cursor
        cuts = attempts.shadowed()
        shadowed = [candidate for candidate in series if (candidate.process, candidate.metric) in cuts]
        if shadowed:
            steps = x_series if axis.is_step else self._read_during(STEP_METRIC, shadowed, limit)
            series = attempts.remove_shadowed(series, steps)
        x_by_process: dict[str, list[Series]] = defaultdict(list)
        for candidate in x_series:
            x_by_process[candidate.process].append(candidate)
        along = None
        if axis.metric is not None and not axis.is_step:
            along = self._along_metric(axis.metric, series, x_series, limit, complete=is_complete)
        lines = []
        for group in attempts.group_series(series):
            pieces = []
            for piece in group:
                self._check()
                if along is not None:
                    line = cut_line(along.line(piece), query.start, query.stop)
                elif axis.metric is not None:
                    line = cut_line(line_along(piece, x_by_process[piece.process]), query.start, query.stop)
                else:
                    line = Line(piece, axis.seconds(piece.points.times, origin))
                    if query.after is not None:
                        line = cut_line(line, query.start, query.stop)
                if len(line.x):
                    pieces.append(add_gaps(line))
            if pieces:
                line = join_lines(pieces)
                lines.append(replace(line, attempt=attempts.number(line.series.process)))
        return LineReading(lines, reading.cursor, reading.complete)

    def rollups(self, blocks: int, limit: int, *, gaps: bool = False) -> Rollups | None:
        """Read the query's x range, with long series as rollups and short series as points.

        Args:
            blocks: Minimum number of blocks for a series to count as long; see `Store.read_rollups`.
            limit: Maximum number of points to read.
            gaps: Whether to read gaps.

        Returns:
            Series in the range; None if rollups cannot answer the query. They need time or step as the x axis, at least
            one long series, and steps and attempts in time order.

        Raises:
            StoreError: See `Store.read_rollups`.
        """
        view = self._rollup_view()
        if view is None:
            return None
        selection = self._rollup_selection(limit, view.rollups.cursor, gaps=gaps)
        series = self._store.read_rollups(self._ref, selection, view.window, blocks)
        return None if series is None else replace(view.rollups, series=view.rollups.attempts.select(series))

    def scan(self, processes: Sequence[str], blocks: int, limit: int) -> Iterator[tuple[str, Rollups | None]]:
        """Read processes one after another, with long series as rollups and short series as points.

        Args:
            processes: IDs of the processes, from the requested attempts.
            blocks: Minimum number of blocks for a series to count as long.
            limit: Maximum number of points to read from all processes together.

        Returns:
            Each process that has the metrics, with its series in the range; None instead if the process must be read
            as lines. The query's axis must be time or step.

        Raises:
            StoreError: See `Store.scan`.
        """
        view = self._rollup_view()
        assert view is not None
        selection = self._rollup_selection(limit, view.rollups.cursor, gaps=False)
        with closing(self._store.scan(self._ref, processes, selection, view.window, blocks)) as scan:
            for process, series in scan:
                self._check()
                yield process, None if series is None else replace(view.rollups, series=series)

    def _rollup_view(self) -> "_RollupView | None":
        """Return the range of the query and rollups without series; None if the axis is neither time nor step."""
        query, axis = self._query, self._query.axis
        if not axis.is_time and not axis.is_step:
            return None
        run = self._read(Selection([], upto=query.upto, shadowing=query.metrics))
        attempts = Attempts(run.attempts, query.attempt)
        origin = axis.origin(run.started)
        window = PointRange(begins=attempts.shadowed())
        if axis.is_time:
            first, last = axis.nanoseconds(query.start, origin), axis.nanoseconds(query.stop, origin)
            window = replace(window, start=first, stop=last)
        else:
            window = replace(window, by_step=True, first_step=query.start, last_step=query.stop)
        return _RollupView(window, Rollups([], attempts, axis, origin, run.cursor))

    def _rollup_selection(self, limit: int, cursor: str, *, gaps: bool) -> Selection:
        query = self._query
        return Selection(
            query.metrics,
            query.process,
            upto=cursor,
            limit=limit,
            gaps=gaps,
            accepts=query.series_filter(),
            check=self._check,
            damaged=self._damaged,
        )

    def raw(self, limit: int = MAX_READ_POINTS) -> list[RawSeries]:
        """Read every point of the query's metrics as logged. The series are ordered by metric and process.

        If the axis is the step, points are ordered by step and time. Points without a step then come last, and are
        omitted if the query has a step range. Otherwise, points are ordered by time. If the query asks for the
        effective line, pieces from several attempts form one series with the identity of the last piece. The query's
        `after` is ignored.

        Args:
            limit: Maximum number of points to read. Steps of numeric points count too.

        Raises:
            StoreError: See `Store.read`.
        """
        query, by_step = self._query, self._query.axis.is_step
        first, last = (None, None) if by_step else (_integer(query.start), _integer(query.stop))
        names = dict.fromkeys(query.metrics)
        if query.numeric:
            names[STEP_METRIC] = None
        selection = Selection(
            [*names],
            query.process,
            query.numeric,
            start=first,
            stop=last,
            limit=limit,
            gaps=query.numeric,
            check=self._check,
            damaged=self._damaged,
        )
        reading = step_reading = self._read(selection)
        if not query.numeric:
            step_reading = self._read(
                Selection([STEP_METRIC], query.process, start=first, stop=last, check=self._check)
            )
        steps: dict[str, list[Points]] = {}
        for series in step_reading.series:
            if series.metric == STEP_METRIC:
                assert isinstance(series.points, Points)
                steps.setdefault(series.process, []).append(series.points)
        steps_of = {process: Points.concat(parts).distinct() for process, parts in steps.items()}
        attempts = Attempts(reading.attempts, query.attempt)
        wanted = set(query.metrics)
        selected = attempts.select(series for series in reading.series if series.metric in wanted)
        joiner = StepJoiner(selected, steps_of, attempts.shadowed(), first)
        raw = []
        for pieces in attempts.group_series(selected):
            self._check()
            joined = joiner.join(pieces, attempts.number(pieces[-1].process))
            raw.append(joined.by_step(query.start, query.stop) if by_step else joined)
        return raw

    def _along_metric(
        self, metric: str, series: Sequence[Series], x_series: Sequence[Series], limit: int, *, complete: bool
    ) -> MetricAxis:
        """Return an axis of a metric for these series, which reads steps and earlier x values only if points need them.

        Args:
            metric: Name of the x metric.
            series: Series with the y values.
            x_series: Series of the x metric.
            limit: Maximum number of points per read.
            complete: Whether `x_series` contains all points of the x metric.
        """
        axis = MetricAxis(x_series)
        without = [piece for piece in series if axis.misses(piece).any()]
        if not without:
            return axis
        processes = {piece.process for piece in without}
        known = {piece.process for piece in x_series if piece.process in processes}
        if not complete:
            x_series = self._read_earlier(metric, without, limit)
            known = {piece.process for piece in x_series}
        stepped = [piece for piece in (*without, *x_series) if piece.process in known]
        if not stepped:
            return axis
        steps = self._read_during(STEP_METRIC, stepped, limit)
        return MetricAxis(x_series, [piece for piece in steps if piece.process in known])

    def _read_earlier(self, metric: str, series: Sequence[Series], limit: int) -> Sequence[Series]:
        """Read a metric of the same processes, from at least one point before the first of these series' points on.

        Steps usually increase over time, so the last value at or before a step is one of the latest.
        """
        first = min(int(piece.points.times[0]) for piece in series)
        last = max(int(piece.points.times[-1]) for piece in series) + 1
        with_metric = {summary.process for summary in self._store.metrics(self._ref, [metric])}
        processes = {piece.process for piece in series} & with_metric
        found: Sequence[Series] = []
        if not processes:
            return found
        for seconds in _LOOK_BACK:
            start = max(first - int(seconds * 1e9), 0)
            selection = Selection([metric], self._query.process, start=start, stop=last, limit=limit, check=self._check)
            found = [piece for piece in self._read(selection).series if piece.process in processes]
            if {piece.process for piece in found if int(piece.points.times[0]) < first} >= processes or not start:
                break
        return found

    def _read(self, selection: Selection) -> Reading:
        return self._store.read(self._ref, selection)

    def _read_during(self, metric: str, series: Sequence[Series], limit: int) -> Sequence[Series]:
        """Read a metric over the time range that the points of these series span."""
        first = min(int(piece.points.times[0]) for piece in series)
        last = max(int(piece.points.times[-1]) for piece in series) + 1
        selection = Selection([metric], self._query.process, start=first, stop=last, limit=limit, check=self._check)
        return self._read(selection).series


def _has_same_times(x_series: Sequence[Series], series: Sequence[Series]) -> bool:
    """Return whether the process of each series has exactly one x series, which has the same times."""
    times = {candidate.process: candidate.points.times for candidate in x_series}
    if len(times) < len(x_series):
        return False
    return all(piece.process in times and np.array_equal(piece.points.times, times[piece.process]) for piece in series)


def _integer(x: float | None) -> int | None:
    return None if x is None else int(x)
