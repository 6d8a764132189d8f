"""A commit of several requests. It inserts their data in an order that makes retries safe."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import RUN_HEARTBEAT, RUN_START
from tensormeter.otlp.batch import STEP_METRIC, Event
from tensormeter.server.store.clickhouse import process_updates
from tensormeter.server.store.clickhouse.arrival_log import Arrived, Log
from tensormeter.server.store.clickhouse.commit_cache import CommitCache
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.keys import Numbers, invert
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.clickhouse.process_updates import ProcessUpdate
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.series_batch import (
    BLOB_COLUMNS,
    GAP_COLUMNS,
    POINT_COLUMNS,
    SERIES_COLUMNS,
    SeriesBatch,
    encode_blobs,
    encode_gaps,
    encode_points,
    known_series,
    leave_out_known,
    series_rows,
)
from tensormeter.server.store.clickhouse.tombstones import Tombstones
from tensormeter.server.store.models.errors import BatchConflictError
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.models.runs import Receipt
from tensormeter.server.store.models.series import NO_GAPS
from tensormeter.server.store.rules import limits
from tensormeter.server.store.rules.events import PreparedEvent, key_and_step, prepare_event, refusal, trim_config
from tensormeter.server.store.rules.gaps import gap_times
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.lifecycle import lifecycle_update
from tensormeter.server.store.rules.limits import DELETED
from tensormeter.server.store.rules.resource_identity import Source, identify

__all__ = ["EVENT_COLUMNS", "Commit", "event_row"]

EVENT_COLUMNS: Final = {
    "run": "Q",
    "time": "q",
    "process": "s",
    "name": "s",
    "digest": "f",
    "id": "Q",
    "key": "s",
    "has_key": "B",
    "step": "q",
    "has_step": "B",
    "body": "s",
    "attributes": "s",
    "record": "s",
    "precedence": "Q",
    "received": "I",
}
_BATCH_COLUMNS: Final = {"id": "s", "digest": "f", "rejected": "Q", "message": "s", "precedence": "Q", "received": "I"}
_MEDIA_COLUMNS: Final = {
    "run": "Q",
    "digest": "f",
    "content_type": "s",
    "data": "b",
    "precedence": "Q",
    "received": "I",
}
_MediaRow = tuple[int, bytes, str, bytes, int, int]
_MEDIA_BYTES: Final = 4 << 20
"""Maximum total bytes of the images in one insert. A larger image is inserted alone."""


class Commit:
    """A commit. Only one commit of a server may run at a time."""

    def __init__(
        self,
        connection: Connection,
        numbers: Numbers,
        log: Log,
        *,
        cache: CommitCache,
        requests: Sequence[Request],
    ) -> None:
        self._connection = connection
        self._numbers = numbers
        self._log = log
        self._cache = cache
        self._requests = requests
        events = sum(len(resource_events) for request in requests for _, resource_events in request.resources)
        self._number = numbers.take(1 + events)
        self._last_number = self._number
        self._received = time.time_ns()
        self._processes: dict[tuple[int, str], ProcessUpdate] = {}
        self._series: dict[int, SeriesBatch] = {}
        self._gaps: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._events: list[list[object]] = []
        self._media: list[_MediaRow] = []
        self._eventful: set[int] = set()

    def run(self) -> list[Request]:
        """Commit the requests and set their receipts. Return the requests that must wait for the next commit."""
        fresh, again = self._new_batches()
        sources = [arrival.source for request in fresh for arrival in request.arrivals]
        described = [
            (request, identify(attributes), events)
            for request in fresh
            for attributes, events in request.resources
            if events
        ]
        sources += [gap.source for request in fresh for gap in request.gaps]
        tombstones = Tombstones(
            self._connection, [*sources, *(source for _, source, _ in described if isinstance(source, Source))]
        )
        for request in fresh:
            for arrival in request.arrivals:
                self._place(request, arrival, tombstones)
        for request, source, events in described:
            if isinstance(source, str):
                request.rejections[source] += len(events)
            else:
                for event in events:
                    self._add_event(request, source, event, tombstones)
        left_out = self._look_up()
        self._place_gaps(fresh, tombstones)
        receipts = {id(request): _receipt(request) for request in fresh}
        self._write(fresh, receipts)
        if left_out:
            self._log.begin(self._numbers.take())
        for request in fresh:
            request.settle(receipts[id(request)])
        return again

    def _new_batches(self) -> tuple[list[Request], list[Request]]:
        """Set the receipts of requests whose batch ID is already stored, and return the other requests.

        Returns:
            Requests to store now, and requests that must wait because a request to store now has the same batch ID.
        """
        ids = sorted({request.batch_id for request in self._requests if request.batch_id is not None})
        rows = []
        if ids:
            rows = self._connection.rows(
                "SELECT id, lower(hex(digest)), rejected, message FROM batch FINAL WHERE id IN {ids:Array(String)}",
                ids=ids,
            )
        known = {row[0]: row[1:] for row in rows}
        fresh: list[Request] = []
        again: list[Request] = []
        for request in self._requests:
            name = request.batch_id
            if name is None:
                fresh.append(request)
            elif name in known:
                digest, rejected, message = known[name]
                if digest == request.digest.hex():
                    request.settle(Receipt(rejected, message, duplicate=True))
                else:
                    request.settle(BatchConflictError(name))
            elif any(other.batch_id == name for other in fresh):
                again.append(request)
            else:
                fresh.append(request)
        return fresh, again

    def _place(self, request: Request, arrival: Arrival, tombstones: Tombstones) -> None:
        times = arrival.points.times
        first = int(times.min())
        run = tombstones.run(arrival.source, first)
        if run is None:
            request.rejections[DELETED] += len(times)
            return
        process = self._process(run, arrival.source)
        process.add_times(first, int(times.max()))
        if arrival.source.attempt > 1 and arrival.metric == STEP_METRIC and isinstance(arrival.points, Points):
            process.add_steps(arrival.points)
        key = self._cache.key(run, arrival)
        series = self._series.setdefault(key, SeriesBatch(run, key, arrival))
        series.parts.append(arrival.points)
        series.requests.append((request, len(times)))

    def _place_gaps(self, fresh: Sequence[Request], tombstones: Tombstones) -> None:
        """Assign gaps to their series, and drop gaps whose series do not exist."""
        gaps: dict[tuple[int, int], NDArray[np.int64]] = {}
        for request in fresh:
            for gap in request.gaps:
                run = tombstones.current(gap.source)
                if run is not None:
                    key = run, self._cache.key(run, gap)
                    gaps[key] = np.concatenate((gaps.get(key, NO_GAPS), gap_times(gap)))
        known = known_series(self._connection, [key for key in gaps if key[1] not in self._series])
        self._gaps = {key: times for key, times in gaps.items() if key[1] in known or key[1] in self._series}

    def _add_event(self, request: Request, source: Source, event: Event, tombstones: Tombstones) -> None:
        moment = event.time or request.received  # OTLP allows log records without a time
        reason = refusal(event, moment)
        event, why = trim_config(event)
        if why is not None:
            request.rejections[why] += 1
        prepared: PreparedEvent | str = reason if reason is not None else prepare_event(event)
        run = None
        if not isinstance(prepared, str):
            run = tombstones.run(source, moment, starts=event.name == RUN_START)
        if isinstance(prepared, str) or run is None:
            request.rejections[prepared if isinstance(prepared, str) else DELETED] += 1
            return
        self._last_number += 1
        number = self._last_number
        process = self._process(run, source)
        process.add_times(moment, 0)
        process.add_lifecycle(lifecycle_update(event), moment, number)
        if event.name == RUN_HEARTBEAT:
            return
        self._eventful.add(run)
        received = self._received // 10**9
        self._events.append(event_row(run, source.process, event, prepared, time=moment, number=number))
        self._media += [
            (run, image.digest.encode(), image.content_type, image.data, invert(number), received)
            for image in prepared.images
        ]

    def _look_up(self) -> int:
        """Leave out points that are already stored, and refuse series beyond a run's limit.

        Returns:
            Number of points that were left out.
        """
        all_series = self._series
        for series in all_series.values():
            series.join()
        known = known_series(self._connection, [(series.run, series.key) for series in all_series.values()])
        unknown = [series for series in all_series.values() if series.key not in known]
        if unknown:
            counts = self._counts({series.run for series in unknown})
            for series in unknown:
                if counts[series.run] >= limits.MAX_SERIES_PER_RUN:
                    for request, points in series.requests:
                        request.rejections[f"run has more than {limits.MAX_SERIES_PER_RUN} series"] += points
                    del all_series[series.key]
                counts[series.run] += 1
        return leave_out_known(self._connection, all_series.values(), known)

    def _counts(self, runs: set[int]) -> dict[int, int]:
        rows = self._connection.rows(
            f"SELECT run, uniqExact(series) FROM series WHERE run IN ({numbers(runs)}) GROUP BY run"
        )
        return defaultdict(int, {row[0]: row[1] for row in rows})

    def _write(self, fresh: Sequence[Request], receipts: Mapping[int, Receipt]) -> None:
        connection = self._connection
        received = self._received // 10**9
        all_series = self._series.values()
        if self._processes:
            rows = [process.row(named=self._cache.is_changed(process)) for process in self._processes.values()]
            connection.insert("process", process_updates.COLUMNS, encode_rows(process_updates.COLUMNS, rows))
        # Write series before points. If the server dies in between, a retry then looks up every point that may already
        # be stored.
        series = encode_rows(SERIES_COLUMNS, series_rows(all_series))
        if series:
            connection.insert("series", SERIES_COLUMNS, series)
        for encoded in encode_points(all_series, self._number, received):
            connection.insert("points", POINT_COLUMNS, encoded)
        distributions = encode_blobs(all_series, self._number, received)
        if distributions:
            connection.insert("distributions", BLOB_COLUMNS, distributions)
        if self._gaps:
            connection.insert("gap", GAP_COLUMNS, encode_gaps(self._gaps, self._number, received))
        for images in _pieces(self._media):
            connection.insert("media", _MEDIA_COLUMNS, encode_rows(_MEDIA_COLUMNS, images))
        if self._events:
            connection.insert("event", EVENT_COLUMNS, encode_rows(EVENT_COLUMNS, self._events))
        arrived = self._arrived()
        if arrived:
            self._log.write(arrived)
        batches = [
            (
                request.batch_id,
                request.digest,
                receipts[id(request)].rejected,
                receipts[id(request)].message,
                invert(self._number),
                received,
            )
            for request in fresh
            if request.batch_id is not None
        ]
        if batches:
            connection.insert("batch", _BATCH_COLUMNS, encode_rows(_BATCH_COLUMNS, batches))
        self._cache.remember(self._processes.values())

    def _arrived(self) -> list[Arrived]:
        metrics: dict[int, set[str]] = defaultdict(set)
        first: dict[int, int] = {}
        for series in self._series.values():
            if len(series.points):
                metrics[series.run].add(series.arrival.metric)
                earliest = int(series.points.times[0])
                first[series.run] = min(first.get(series.run, earliest), earliest)
        read_all = {process.run for process in self._processes.values() if self._cache.begins_earlier(process)}
        read_all |= {run for run, _ in self._gaps}
        return [
            Arrived(
                run,
                self._number,
                first.get(run, 0),
                sorted(metrics.get(run, ())),
                run in self._eventful,
                run in read_all,
            )
            for run in sorted(metrics.keys() | self._eventful | read_all)
        ]

    def _process(self, run: int, source: Source) -> ProcessUpdate:
        process = self._processes.get((run, source.process))
        if process is None:
            process = ProcessUpdate(run, source, self._number, self._received)
            self._processes[run, source.process] = process
        process.source = source
        return process


def event_row(run: int, process: str, event: Event, prepared: PreparedEvent, *, time: int, number: int) -> list[object]:
    """Create a row for the table `event`."""
    key, step = key_and_step(event)
    return [
        *(run, time, process, event.name, prepared.digest, number),
        *(key or "", key is not None, step or 0, step is not None),
        *(prepared.body, prepared.attributes, prepared.record, invert(number), number // 10**6),
    ]


def _pieces(media: Sequence[_MediaRow]) -> Iterator[Sequence[_MediaRow]]:
    """Split images into lists that are small enough to encode. Encoding takes several times their size in memory."""
    piece: list[_MediaRow] = []
    size = 0
    for row in media:
        if piece and size + len(row[3]) > _MEDIA_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += len(row[3])
    if piece:
        yield piece


def _receipt(request: Request) -> Receipt:
    return Receipt(request.rejections.total(), request.rejections.describe(request.noun))
