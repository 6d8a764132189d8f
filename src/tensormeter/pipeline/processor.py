"""The batching processor: rows of one process become batches of columns.

Rows are read as they come and held until there are enough of them, until the delay is over, or until the ring needs the
space. They keep their space in the ring until the caller says that they are in the spool, so a killed agent loses none.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import SCOPE, STEP_METRIC, Attribute, Batch, Gauge, Scope
from tensormeter.pipeline.reader import LaneReader, Layouts, Rows
from tensormeter.pipeline.spool import Cursor
from tensormeter.ring import RingFile, Stream

__all__ = ["BatchMeasurementProcessor"]

_STEPS: Final = Stream(STEP_METRIC)

_FULL_ENOUGH: Final = 1 / 8
"""Share of a lane that may be held before a batch is due, whatever the delay."""


class BatchMeasurementProcessor:
    """Groups the rows of one ring. Used by one thread; blocks on nothing."""

    def __init__(
        self,
        ring: RingFile,
        cursors: Mapping[int, Cursor],
        *,
        schedule_delay: float,
        max_export_batch_size: int,
    ) -> None:
        """
        Args:
            ring: The ring to read.
            cursors: How far each lane has been read before, by lane.
            schedule_delay: Seconds after its first row when a batch is due.
            max_export_batch_size: Points of a batch at most (a row is never split, so one row may exceed it).
        """
        self._layouts = Layouts(ring)
        self._layouts.refresh()
        self._lanes = [LaneReader(self._layouts, i, cursors.get(i, Cursor())) for i in range(len(ring.lanes))]
        self._lanes_in_turn = deque(self._lanes)
        self._delay = schedule_delay
        self._most = max_export_batch_size
        self._rows: list[Rows] = []
        self._points = 0
        self._since = 0.0
        self.lost = 0
        """Device values given up so far because their process died before the device had finished them."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the writer says of itself: `resource`, `config`, and so on."""
        return self._layouts.metadata

    def poll(self, *, abandon_pending: bool) -> bool:
        """Read the rows that are there, as far as they fit the batch.

        Returns:
            Whether there may be more.
        """
        before = self._points
        self._lanes_in_turn.rotate(1)  # so that a busy lane that fills every batch does not keep out the others
        for lane in self._lanes_in_turn:
            if self._points >= self._most:
                break
            for rows in lane.read(self._most - self._points, abandon_pending=abandon_pending):
                self._rows.append(rows)
                self._points += len(rows.times) * (len(rows.columns) + 1)
        if self._points == 0:
            self.release()  # what was read had no row in it: laps, and rows whose writing failed
        elif before == 0:
            self._since = time.monotonic()
        return self._points > before or self._points >= self._most

    def due(self) -> bool:
        """Whether the held rows should become a batch now."""
        return self._points > 0 and (
            self._points >= self._most
            or time.monotonic() - self._since >= self._delay
            or any(lane.unreleased > _FULL_ENOUGH for lane in self._lanes)
        )

    def batch(self, resource: Mapping[str, Attribute]) -> tuple[Batch, dict[int, Cursor]] | None:
        """The held rows as columns, and the cursors after them. They stay held until `release`."""
        if not self._rows:
            return None
        columns: dict[tuple[Stream, str], list[tuple[NDArray[np.uint64], NDArray[np.float64] | NDArray[np.int64]]]] = {}
        for rows in self._rows:
            if rows.layout.stepped:
                columns.setdefault((_STEPS, "i"), []).append((rows.times, rows.steps))
            for column, values, missing in zip(rows.layout.columns, rows.columns, rows.lost, strict=True):
                pieces = columns.setdefault((column.stream, values.dtype.kind), [])
                pieces.append((rows.times, values) if missing is None else (rows.times[~missing], values[~missing]))
        gauges = [_gauge(stream, pieces) for (stream, _), pieces in columns.items()]
        return Batch(resource, [gauge for gauge in gauges if len(gauge.times)]), dict(enumerate(self.cursors()))

    def cursors(self) -> Iterable[Cursor]:
        """How far each lane has been read."""
        return [lane.cursor for lane in self._lanes]

    def release(self) -> None:
        """The held rows are in the spool: forget them, and give their space back."""
        self.lost += sum(int(missing.sum()) for rows in self._rows for missing in rows.lost if missing is not None)
        self._rows.clear()
        self._points = 0
        for lane in self._lanes:
            lane.release()


def _gauge(
    stream: Stream,
    pieces: list[tuple[NDArray[np.uint64], NDArray[np.float64] | NDArray[np.int64]]],
) -> Gauge:
    """One column, in order of time: some receivers (Prometheus remote write) refuse points that go back."""
    times = np.concatenate([piece for piece, _ in pieces])
    values = np.concatenate([piece for _, piece in pieces])
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
    return Gauge(
        stream.name,
        times,
        values,
        unit=stream.unit,
        description=stream.description,
        attributes=dict(stream.attributes),
        scope=_scope(stream),
    )


def _scope(stream: Stream) -> Scope:
    if not stream.scope:
        return SCOPE
    name, version, schema_url, attributes = stream.scope
    return Scope(name, version, schema_url, dict(attributes))
