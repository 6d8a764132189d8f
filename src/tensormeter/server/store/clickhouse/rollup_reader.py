"""Reading of long series as blocks, which are stored or computed by ClickHouse, and of other series as points."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.clickhouse.computed_rollups import ComputedRollups
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.point_reader import PointReader, arrived_until, time_range
from tensormeter.server.store.clickhouse.stored_rollups import StoredRollups
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, Blocks
from tensormeter.server.store.models.series import NO_GAPS, Selection, Series, SeriesRollup
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.rules.process_rollups import join_steps
from tensormeter.server.store.rules.rollup_joining import UnorderedError

__all__ = ["RollupReader"]


class RollupReader:
    """Reader of long series as blocks, which are stored or computed, and of other series as points. Thread-safe."""

    def __init__(self, connection: Connection, points: PointReader) -> None:
        self._points = points
        self._stored = StoredRollups(connection)
        self._computed = ComputedRollups(connection)

    def read(self, run: int, selection: Selection, window: PointRange, blocks: int) -> list[SeriesRollup] | None:
        """See `Store.read_rollups`. Raises TooManyPointsError."""
        metrics = set(selection.metrics)
        bounded = replace(selection, start=window.start, stop=window.stop)
        rows = self._points.series(run, replace(bounded, metrics=[*metrics | {STEP_METRIC}]))
        wanted = [row for row in rows if row[2] in metrics]
        counts = self._points.counts_between(run, [row[0] for row in rows], bounded)
        least = blocks * BLOCK_POINTS
        long = [row for row in wanted if counts[row[0]] >= least]
        step_series: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if row[2] == STEP_METRIC:
                step_series[row[1]].append(row[0])
        if any(len(step_series[row[1]]) > 1 for row in wanted if window.needs_steps((row[1], row[2]))):
            return None
        steps_of = {
            row[1]: key for row in wanted if window.needs_steps((row[1], row[2])) for key in step_series[row[1]]
        }
        if not long and all(counts[key] < least for key in steps_of.values()):
            return None
        short = [row for row in wanted if counts[row[0]] < least]
        total = sum(counts[row[0]] * (2 if row[1] in steps_of else 1) for row in short)
        gaps = self._points.gaps(run, [row[0] for row in wanted], bounded, total) if selection.gaps else {}
        check_limit(total + sum(map(len, gaps.values())), selection.limit, metrics)
        try:
            rollups = self._read_short(run, short, steps_of, bounded, window)
            for row in long:
                selection.check()
                key, process, metric = row[:3]
                steps = steps_of.get(process)
                if steps is None and window.by_step:
                    continue
                of_process = window if steps is not None else replace(window, begins={})
                found = self._stored.read(run, key, steps, (process, metric), blocks, of_process)
                if found is None:
                    found = self._computed.read(run, key, steps, (process, metric), blocks, of_process)
                if found is not None and (isinstance(found, Blocks) or len(found[0])):
                    rollups[key] = _rollup(row, found)
        except UnorderedError:
            return None
        return [replace(rollups[row[0]], gaps=gaps.get(row[0], NO_GAPS)) for row in wanted if row[0] in rollups]

    def _read_short(
        self,
        run: int,
        rows: Sequence[Sequence[Any]],
        steps_of: Mapping[str, int],
        selection: Selection,
        window: PointRange,
    ) -> dict[int, SeriesRollup]:
        """Read short series as points, and only the steps at their times."""
        if not rows:
            return {}
        where = (
            f"run = {run} AND series IN ({numbers([row[0] for row in rows])}){time_range(window.start, window.stop)}"
        )
        found = self._points.select(rows, f"FROM points WHERE {where}{arrived_until(selection.upto)}", selection)
        stepped = {row[0]: steps_of[row[1]] for row in rows if row[1] in steps_of}
        steps: Mapping[int, Series] = {}
        if stepped:
            keys, step_keys = zip(*stepped.items(), strict=True)
            to_steps = f"transform(series, {[*keys]}, {[*step_keys]}, toUInt64(0))"
            described = [(key, process, STEP_METRIC, "gauge", "{}", "", "") for process, key in steps_of.items()]
            at = f"(series, time) GLOBAL IN (SELECT {to_steps}, time FROM points WHERE {where})"
            of_steps = f"run = {run} AND series IN ({numbers(step_keys)}) AND {at}"
            steps = self._points.select(described, f"FROM points WHERE {of_steps}", selection)
        rollups: dict[int, SeriesRollup] = {}
        for key, series in found.items():
            own = steps.get(stepped.get(key, 0))
            joined = join_steps(series.process, [series], [own] if own else [], window).series
            if joined is None:
                raise UnorderedError
            rollups.update((key, rollup) for rollup in joined)
        return rollups


def _rollup(row: Sequence[Any], found: Blocks | tuple[Points, NDArray[np.int64] | None]) -> SeriesRollup:
    _, process, metric, kind, attributes, scope, unit = row
    about = process, metric, parse_kind(kind), json.loads(attributes)
    if isinstance(found, Blocks):
        return SeriesRollup(*about, None, None, found, scope, unit)
    points, steps = found
    return SeriesRollup(*about, points, np.zeros(len(points), np.int64) if steps is None else steps, None, scope, unit)
