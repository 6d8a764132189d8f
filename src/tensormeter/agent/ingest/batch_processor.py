"""The batching processor, which groups the rows of one process into batches of columns.

Rows are read as they arrive. They are buffered until there are enough rows, the delay has passed, or the ring needs the
space. The caller stores them in the spool and then frees their space in the ring (`release`), so a killed agent loses
no rows.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.aggregation import AGGREGATED, Aggregator, Piece, describe
from tensormeter.agent.ingest.histogram_points import distribution_series
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts, Rows
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Batch, Gauge, Series
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS, AUTOMATIC_STEPS_END
from tensormeter.ring.histogram_buckets import KIND
from tensormeter.ring.layout import Layout, Stream

__all__ = ["BatchMeasurementProcessor"]

_STEPS: Final = Stream(STEP_METRIC)
_STEPS_KEY: Final = json.dumps(_STEPS.to_json())

_LARGEST: Final = (1 << 63) - 1

_FULL_ENOUGH: Final = 1 / 8
"""Buffered share of a lane at which a batch is due regardless of the delay."""


class BatchMeasurementProcessor:
    """Processor that groups the rows of one ring. Only one thread may use it. It does not block."""

    def __init__(
        self,
        ring: RingFile,
        cursors: Mapping[int, Cursor],
        aggregates: Mapping[str, str] = MappingProxyType({}),
        *,
        temporality: str = "cumulative",
        schedule_delay: float,
        max_export_batch_size: int,
        on_skip: Callable[[dict[int, Cursor]], None] = lambda cursors: None,
    ) -> None:
        """
        Args:
            ring: Ring to read.
            cursors: Positions up to which lanes have already been read, by lane.
            aggregates: States of the aggregated streams at the positions in `cursors`.
            temporality: Temporality, as for `Aggregator`.
            schedule_delay: Seconds from the first row of a batch until the batch is due.
            max_export_batch_size: Maximum number of points in a batch. Rows are never split, so a single row may exceed
                it.
            on_skip: Callback that receives the cursors before ring space that contained no rows is freed.
        """
        self._layouts = Layouts(ring)
        self._layouts.refresh()
        self._lanes = [LaneReader(self._layouts, i, cursors.get(i, Cursor())) for i in range(len(ring.lanes))]
        self._lanes_in_turn = deque(self._lanes)
        self._on_skip = on_skip
        self._delay = schedule_delay
        self._most = max_export_batch_size
        self._aggregator = Aggregator(aggregates, temporality)
        self._keys: dict[int, list[str]] = {}
        self._rows: list[Rows] = []
        self._points = 0
        self._since = 0.0
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
                self._points += len(rows.times) * (len(rows.columns) + 1)
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
            or time.monotonic() - self._since >= self._delay
            or self.utilization > _FULL_ENOUGH
        )

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
        gauges: dict[tuple[str, str], tuple[Stream, list[Piece]]] = {}
        aggregated: dict[str, tuple[Stream, list[Piece]]] = {}
        for rows in self._rows:
            if rows.layout.stepped:
                gauges.setdefault((_STEPS_KEY, "i"), (_STEPS, []))[1].append((rows.times, settle(rows.steps)))
                self._note_steps(rows.steps)
            columns = zip(rows.layout.columns, self._stream_keys(rows.layout), rows.columns, rows.lost, strict=True)
            for column, key, values, missing in columns:
                stream = column.stream
                if stream.kind == KIND:
                    continue
                _, pieces = (
                    aggregated.setdefault(key, (stream, []))
                    if stream.kind in AGGREGATED
                    else gauges.setdefault((key, values.dtype.kind), (stream, []))
                )
                pieces.append((rows.times, values) if missing is None else (rows.times[~missing], values[~missing]))
        candidates: list[Series | None] = [_gauge(stream, pieces) for stream, pieces in gauges.values()]
        candidates += [self._aggregator.fold(key, stream, pieces) for key, (stream, pieces) in aggregated.items()]
        candidates += distribution_series(self._rows)
        series = [item for item in candidates if item is not None and len(item.times)]
        return Batch(resource, _neighbours(series)), dict(enumerate(self.cursors()))

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
        self.lost += sum(int(missing.sum()) for rows in self._rows for missing in rows.lost if missing is not None)
        self._aggregator.commit()
        self._rows.clear()
        self._points = 0
        for lane in self._lanes:
            lane.release()

    def _stream_keys(self, layout: Layout) -> list[str]:
        """Return a layout's streams as JSON keys, because streams with attributes `True` and `1` compare equal."""
        if layout.id not in self._keys:
            self._keys[layout.id] = [json.dumps(column.stream.to_json()) for column in layout.columns]
        return self._keys[layout.id]


def _neighbours(series: list[Series]) -> list[Series]:
    """Return the series in the order of scopes and metrics, so that all series of a metric share one message."""
    order: dict[tuple[str, str], tuple[int, int]] = {}
    scopes: dict[str, int] = {}
    keys = [(repr(item.scope), item.name) for item in series]
    for scope, name in keys:
        order.setdefault((scope, name), (scopes.setdefault(scope, len(scopes)), len(order)))
    return [item for _, item in sorted(zip(keys, series, strict=True), key=lambda pair: order[pair[0]])]


def _gauge(stream: Stream, pieces: list[Piece]) -> Gauge:
    """Return a gauge in time order, because receivers such as Prometheus remote write refuse out-of-order points."""
    times = np.concatenate([piece for piece, _ in pieces])
    values = np.concatenate([piece for _, piece in pieces])
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
    return Gauge(
        stream.name,
        times,
        values,
        **describe(stream),
    )
