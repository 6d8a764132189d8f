"""The batching processor, which groups the rows of one process into batches of columns.

Rows are read as they arrive. They are buffered until there are enough rows, the delay has passed, or the ring needs the
space. The caller stores them in the spool and then frees their space in the ring (`release`), so a killed agent loses
no rows.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.aggregation import AGGREGATED, Aggregator, Piece, describe
from tensormeter.agent.ingest.gauge_gathering import GaugeRows, GaugeValues, gather
from tensormeter.agent.ingest.histogram_points import (
    Distribution,
    distribution_series,
    distributions_in_items,
    distributions_in_rows,
)
from tensormeter.agent.ingest.item_rows import ItemRows
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts, Rows
from tensormeter.agent.ingest.row_form import RowForm
from tensormeter.agent.ingest.stream_table import AGGREGATE, GAUGE
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Batch, Series
from tensormeter.otlp.gauge_catalog import GaugeCatalog, GaugeMetadata
from tensormeter.otlp.gauge_points import GaugeEncoder, GaugePoints, WideBatch
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS, AUTOMATIC_STEPS_END
from tensormeter.ring.histogram_buckets import KIND
from tensormeter.ring.layout import Stream

__all__ = ["BatchMeasurementProcessor"]

_LARGEST: Final = (1 << 63) - 1

_FULL_ENOUGH: Final = 1 / 8
"""Buffered share of a lane at which a batch is due regardless of the delay."""

_MANY_POINTS: Final = 32
"""Average number of points per gauge from which on gauges are encoded one by one, which then takes less time."""


class _Plan:
    """The use of the columns of one layout.

    Attributes:
        gauges: Numbers of the layout's gauges in the catalog, int64, shape (k,).
        integers: Whether the values of each gauge are integers, bool, shape (k,).
        offsets: Index of the word of each gauge in a row's values, int64, shape (k,).
        aggregated: Indices of the columns with values to aggregate.
        keys: JSON of the stream of each of these columns. Streams with the attributes `True` and `1` compare equal.
        has_distributions: Whether there are columns of distributions.
    """

    def __init__(self, form: RowForm, catalog: GaugeCatalog) -> None:
        columns = form.layout.columns
        gauges = [i for i, c in enumerate(columns) if c.stream.kind not in AGGREGATED and c.stream.kind != KIND]
        self.gauges = np.array([catalog.add(_metadata(columns[i].stream)) for i in gauges], np.int64)
        self.integers: NDArray[np.bool_] = form.code_bytes[gauges] == ord("q")
        self.offsets = form.offsets[gauges]
        self.aggregated = [i for i, column in enumerate(columns) if column.stream.kind in AGGREGATED]
        self.keys = [json.dumps(columns[i].stream.to_json()) for i in self.aggregated]
        self.has_distributions = any(column.stream.kind == KIND for column in columns)
        self._is_plain = len(gauges) == form.words

    def words_of(self, words: NDArray[Any]) -> NDArray[Any]:
        """Return the words of the gauges, of shape (n, k), among those of all columns."""
        return words if self._is_plain else words[:, self.offsets]


class BatchMeasurementProcessor:
    """Processor that groups the rows of one ring. Only one thread may use it. It does not block."""

    def __init__(
        self,
        ring: RingFile,
        cursors: Mapping[int, Cursor],
        aggregator: Aggregator | None = None,
        *,
        schedule_delay: float,
        max_export_batch_size: int,
        on_skip: Callable[[dict[int, Cursor]], None] = lambda cursors: None,
        encoder: GaugeEncoder | None = None,
    ) -> None:
        """
        Args:
            ring: Ring to read.
            cursors: Positions up to which lanes have already been read, by lane.
            aggregator: Aggregated streams, in their state at the positions in `cursors`.
            schedule_delay: Minimum seconds between two batches, unless one of them is full.
            max_export_batch_size: Maximum number of points in a batch. Rows are never split, so a single row may exceed
                it.
            on_skip: Callback that receives the cursors before ring space that contained no rows is freed.
            encoder: Encoder to share with the run's other processes, which usually log the same gauges.
        """
        self._layouts = Layouts(ring)
        self._layouts.refresh()
        self._lanes = [LaneReader(self._layouts, i, cursors.get(i, Cursor())) for i in range(len(ring.lanes))]
        self._lanes_in_turn = deque(self._lanes)
        self._on_skip = on_skip
        self.delay = schedule_delay
        """Minimum seconds between two batches, unless one of them is full."""
        self._most = max_export_batch_size
        self._aggregator = aggregator or Aggregator({}, "cumulative")
        self._encoder = encoder or GaugeEncoder(GaugeCatalog())
        self._step_gauge = self._encoder.catalog.add(GaugeMetadata(STEP_METRIC))
        self._plans: dict[int, _Plan] = {}
        self._gauges: NDArray[np.int64] = np.empty(0, np.int64)
        self._rows: list[Rows | ItemRows] = []
        self._points = 0
        self._since = 0.0
        self._batched_at = time.monotonic()
        self._growth_from = [lane.cursor.position for lane in self._lanes]
        self._last_steps = [0, 0]
        self.rows = 0
        """Number of rows read so far."""
        self.lost = 0
        """Number of device values lost so far because the process died before the device finished them."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """Metadata of the writer, such as `resource` and `config`."""
        return self._layouts.metadata

    def refresh(self) -> None:
        """Read new metadata from the ring."""
        self._layouts.refresh()

    def poll(self, *, abandon_pending: bool) -> bool:
        """Read available rows until the batch is full.

        Returns:
            Whether more rows may be available.
        """
        before = self._points
        self._lanes_in_turn.rotate(1)  # so that a busy lane cannot fill every batch by itself
        for lane in self._lanes_in_turn:
            if self._points >= self._most:
                break
            for rows in lane.read(self._most - self._points, abandon_pending=abandon_pending):
                self._rows.append(rows)
                self.rows += len(rows.times)
                self._points += rows.points
        if self._points == 0:
            if any(lane.unreleased for lane in self._lanes):
                self._on_skip(dict(enumerate(self.cursors())))
            self.release()  # only wrap-arounds and failed rows were read
        elif before == 0:
            self._since = time.monotonic()
        return self._points > before or self._points >= self._most

    def due(self) -> bool:
        """Return whether the buffered rows should become a batch now."""
        return self._points > 0 and (
            self._points >= self._most
            or time.monotonic() - self._batched_at >= self.delay
            or self.utilization > _FULL_ENOUGH
        )

    def due_in(self) -> float:
        """Return the seconds until the next batch may be due, 0 if one is due; infinite if no rows are buffered."""
        return max(0.0, self._batched_at + self.delay - time.monotonic()) if self._points else math.inf

    def has_due_rows(self) -> bool:
        """Return whether rows were written that would be a batch now. This only compares words in memory."""
        return time.monotonic() - self._batched_at >= self.delay and self.has_new_rows()

    def has_new_rows(self) -> bool:
        """Return whether rows were written after those that were read. This only compares words in memory."""
        return any(lane.has_next() for lane in self._lanes)

    def take_growth(self) -> float:
        """Return the largest share of a lane that was read since the last call. It exceeds 1 after several laps."""
        positions = [lane.cursor.position for lane in self._lanes]
        before, self._growth_from = self._growth_from, positions
        return max(lane.share(end - begin) for lane, begin, end in zip(self._lanes, before, positions, strict=True))

    def holds_any_before(self, positions: Sequence[int]) -> bool:
        """Return whether a buffered row precedes the given position of its lane."""
        return any(
            lane.released < min(position, lane.cursor.position)
            for lane, position in zip(self._lanes, positions, strict=True)
        )

    @property
    def utilization(self) -> float:
        """Largest buffered share of a lane, from 0 to 1."""
        return max(lane.unreleased for lane in self._lanes)

    @property
    def lag(self) -> float:
        """Seconds since the oldest buffered row was read; 0 if none is buffered."""
        return time.monotonic() - self._since if self._points else 0.0

    def batch(
        self,
        resource: Mapping[str, Attribute],
        settle: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda steps: steps,
    ) -> tuple[Batch, dict[int, Cursor]] | None:
        """Return the buffered rows as columns, and the cursors after them; None if none are buffered.

        The rows stay buffered until `release`. Store the batch and the cursors in the spool together with `aggregates`.

        Args:
            resource: Attributes of the process.
            settle: Function that converts recorded steps to delivered steps, both of shape (n,).
        """
        if not self._rows:
            return None
        self._aggregator.discard()
        points = gather(self._encoder, self._gauge_rows(settle), self._gauge_values())
        candidates = [self._aggregator.fold(key, stream, pieces) for key, (stream, pieces) in self._pieces().items()]
        candidates += distribution_series(self._distributions())
        series = [item for item in candidates if item is not None and len(item.times)]
        return _batch(resource, points, series), dict(enumerate(self.cursors()))

    def _gauge_rows(self, settle: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> list[GaugeRows]:
        """Return the gauges of the buffered rows by layout, and their steps."""
        stretches: dict[int, list[Rows]] = {}
        for rows in self._rows:
            if isinstance(rows, Rows):
                stretches.setdefault(rows.layout.id, []).append(rows)
        stepped = [rows for rows in self._rows if rows.stepped]
        gathered = []
        if stepped:
            recorded = np.concatenate([rows.steps for rows in stepped])
            self._note_steps(recorded)
            times = np.concatenate([rows.times for rows in stepped])
            steps = settle(recorded)[:, np.newaxis]
            gathered.append(GaugeRows(np.array([self._step_gauge]), np.ones(1, np.bool_), times, steps))
        for group in stretches.values():
            plan = self._plan(group[0].form)
            if len(plan.gauges):
                gathered.append(_join(group, plan))
        return gathered

    def _gauge_values(self) -> list[GaugeValues]:
        """Return the gauges of the buffered rows that describe their own columns."""
        return [values for rows in self._rows if isinstance(rows, ItemRows) for values in self._gauges_of(rows)]

    def _gauges_of(self, rows: ItemRows) -> Iterator[GaugeValues]:
        chosen = np.flatnonzero((rows.kinds == GAUGE) & ~rows.lost)
        if len(chosen):
            yield GaugeValues(
                self._catalog_numbers(rows.streams[chosen]),
                rows.times[rows.rows[chosen]],
                rows.words[rows.starts[chosen]],
                rows.codes[chosen] == ord("q"),
            )

    def _catalog_numbers(self, streams: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of gauges in the catalog. Gauges that appear for the first time are added."""
        highest = int(streams.max())
        if highest >= len(self._gauges):
            self._gauges = np.concatenate([self._gauges, np.full(max(highest + 1, 1024), -1, np.int64)])
        new = np.unique(streams[self._gauges[streams] < 0])
        for number in new.tolist():
            self._gauges[number] = self._encoder.catalog.add(_metadata(self._layouts.streams[number]))
        return self._gauges[streams]

    def _pieces(self) -> dict[str, tuple[Stream, list[Piece]]]:
        """Return the buffered values to aggregate, by the JSON of their stream."""
        pieces: dict[str, tuple[Stream, list[Piece]]] = {}
        for rows in self._rows:
            for key, stream, piece in self._pieces_of(rows):
                pieces.setdefault(key, (stream, []))[1].append(piece)
        return pieces

    def _pieces_of(self, rows: Rows | ItemRows) -> Iterator[tuple[str, Stream, Piece]]:
        if isinstance(rows, Rows):
            plan = self._plan(rows.form)
            for index, key in zip(plan.aggregated, plan.keys, strict=True):
                values, missing = rows.column(index), rows.lost_in(index)
                there = slice(None) if missing is None else ~missing
                yield key, rows.layout.columns[index].stream, (rows.times[there], values[there])
            return
        for item in np.flatnonzero((rows.kinds == AGGREGATE) & ~rows.lost).tolist():
            stream = self._layouts.streams[int(rows.streams[item])]
            time = rows.times[rows.rows[item] : rows.rows[item] + 1]
            words = rows.values_of(item)
            values = words if rows.codes[item] == ord("q") else words.view(np.float64)
            yield json.dumps(stream.to_json()), stream, (time, values)

    def _distributions(self) -> Iterator[Distribution]:
        for rows in self._rows:
            if isinstance(rows, ItemRows):
                yield from distributions_in_items(rows, self._layouts.streams)
            elif self._plan(rows.form).has_distributions:
                yield from distributions_in_rows(rows)

    @property
    def last_steps(self) -> tuple[int, int]:
        """Values for `HeaderWord.LAST_STEP` and `HeaderWord.LAST_AUTOMATIC` after all batches so far."""
        return self._last_steps[0], self._last_steps[1]

    def _note_steps(self, steps: NDArray[np.int64]) -> None:
        automatic = (steps >= AUTOMATIC_STEPS) & (steps < AUTOMATIC_STEPS_END)
        for index, (chosen, start) in enumerate(((steps[~automatic], 0), (steps[automatic], AUTOMATIC_STEPS))):
            if len(chosen):
                last = min(int(chosen.max()), _LARGEST - 1) - start + 1
                self._last_steps[index] = max(self._last_steps[index], last)

    @property
    def aggregates(self) -> dict[str, str]:
        """States of the aggregated streams that the last `batch` changed."""
        return self._aggregator.states

    @property
    def refused(self) -> int:
        """Number of instrument values that could not be aggregated."""
        return self._aggregator.refused

    def take_unreadable(self) -> int:
        """Return the number of unreadable points since the last call."""
        points = sum(lane.unreadable for lane in self._lanes)
        for lane in self._lanes:
            lane.unreadable = 0
        return points

    def cursors(self) -> Iterable[Cursor]:
        """Return the positions up to which the lanes have been read."""
        return [lane.cursor for lane in self._lanes]

    def release(self) -> None:
        """Forget the buffered rows and free their space in the ring. Call this once the rows are in the spool."""
        self.lost += sum(rows.lost_values for rows in self._rows)
        self._aggregator.commit()
        if self._points:
            self._batched_at = time.monotonic()
        self._rows.clear()
        self._points = 0
        for lane in self._lanes:
            lane.release()

    def _plan(self, form: RowForm) -> _Plan:
        plan = self._plans.get(form.layout.id)
        if plan is None:
            plan = self._plans[form.layout.id] = _Plan(form, self._encoder.catalog)
        return plan


def _metadata(stream: Stream) -> GaugeMetadata:
    if not (stream.unit or stream.description or stream.attributes or stream.scope):
        return GaugeMetadata(stream.name)
    return GaugeMetadata(stream.name, **describe(stream))


def _join(group: Sequence[Rows], plan: _Plan) -> GaugeRows:
    """Return the gauges of rows with the same layout."""
    words = [plan.words_of(rows.words) for rows in group]
    lost = None
    if any(rows.lost_words is not None for rows in group):
        lost = np.concatenate(
            [
                np.zeros(part.shape, np.bool_) if rows.lost_words is None else plan.words_of(rows.lost_words)
                for rows, part in zip(group, words, strict=True)
            ]
        )
    times = np.concatenate([rows.times for rows in group])
    return GaugeRows(plan.gauges, plan.integers, times, np.concatenate(words), lost)


def _batch(resource: Mapping[str, Attribute], points: GaugePoints | None, series: list[Series]) -> Batch:
    if points is not None and len(points.times) < _MANY_POINTS * len(points.gauges):
        return WideBatch(resource, _neighbours(series), wide=points)
    return Batch(resource, _neighbours([*(points.series() if points else ()), *series]))


def _neighbours(series: list[Series]) -> list[Series]:
    """Return the series in the order of scopes and metrics, so that all series of a metric share one message."""
    order: dict[tuple[str, str], tuple[int, int]] = {}
    scopes: dict[str, int] = {}
    keys = [(repr(item.scope), item.name) for item in series]
    for scope, name in keys:
        order.setdefault((scope, name), (scopes.setdefault(scope, len(scopes)), len(order)))
    return [item for _, item in sorted(zip(keys, series, strict=True), key=lambda pair: order[pair[0]])]
