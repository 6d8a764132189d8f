"""A commit of several requests. It inserts their data in an order that makes retries safe."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import RUN_HEARTBEAT, RUN_START
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Event
from tensormeter.server.store.clickhouse import process_updates
from tensormeter.server.store.clickhouse.arrival_log import NAMED, Arrived, Log
from tensormeter.server.store.clickhouse.commit_cache import CommitCache
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.keys import Numbers, invert, series_keys
from tensormeter.server.store.clickhouse.log_lines import LOG_COLUMNS, LogTrimmer, line_row
from tensormeter.server.store.clickhouse.native import NativeBlock
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.clickhouse.process_updates import NEVER, ProcessUpdate
from tensormeter.server.store.clickhouse.rollup_encoding import ROLLUP_COLUMNS, dense_points, encode_rollups
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.series_batch import (
    BLOB_COLUMNS,
    CATALOG_COLUMNS,
    GAP_COLUMNS,
    POINT_COLUMNS,
    SUMMARY_COLUMNS,
    SeriesBatch,
    encode_blobs,
    encode_catalog,
    encode_gaps,
    encode_points,
    encode_summaries,
    leave_out_known,
    steps_of,
)
from tensormeter.server.store.clickhouse.series_limits import refuse_excess
from tensormeter.server.store.clickhouse.stretches import Stretches, stretches_of, stretches_of_block
from tensormeter.server.store.clickhouse.tombstones import Tombstones
from tensormeter.server.store.models.errors import BatchConflictError
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.models.runs import Receipt
from tensormeter.server.store.models.series import NO_GAPS
from tensormeter.server.store.rules.events import PreparedEvent, key_and_step, prepare_event, refusal, trim_config
from tensormeter.server.store.rules.gaps import gap_times
from tensormeter.server.store.rules.ingest_lines import LineArrival
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.limits import DELETED
from tensormeter.server.store.rules.log_lines import is_line
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
        trimmer: LogTrimmer,
        requests: Sequence[Request],
    ) -> None:
        self._connection = connection
        self._numbers = numbers
        self._log = log
        self._cache = cache
        self._trimmer = trimmer
        self._requests = requests
        events = sum(len(records) for request in requests for _, records in request.resources)
        self._number = numbers.take(1 + events)
        self._last_number = self._number
        self._received = time.time_ns()
        self._processes: dict[tuple[int, str], ProcessUpdate] = {}
        self._stretches: dict[type[Column], list[tuple[Request, Stretches]]] = defaultdict(list)
        self._batches: list[SeriesBatch] = []
        self._gaps: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._events: list[list[object]] = []
        self._media: list[_MediaRow] = []
        self._eventful: set[int] = set()
        self._lines: list[list[object]] = []
        self._logged: dict[int, tuple[int, int]] = {}

    def run(self) -> list[Request]:
        """Commit the requests and set their receipts. Return the requests that must wait for the next commit."""
        fresh, again = self._new_batches()
        sources = [arrival.source for request in fresh for arrival in request.arrivals]
        sources += [block.source for request in fresh for block in request.blocks]
        described = [
            (request, identify(attributes), events)
            for request in fresh
            for attributes, records in request.resources
            if (events := [record for record in records if not is_line(record)])
        ]
        sources += [arrival.source for request in fresh for arrival in request.lines]
        sources += [gap.source for request in fresh for gap in request.gaps]
        tombstones = Tombstones(
            self._connection, [*sources, *(source for _, source, _ in described if isinstance(source, Source))]
        )
        fresh = [request for request in fresh if self._place(request, tombstones)]
        for request, source, events in described:
            if isinstance(source, str):
                request.rejections[source] += len(events)
            else:
                for event in events:
                    self._add_event(request, source, event, tombstones)
        for request in fresh:
            for line_arrival in request.lines:
                self._add_lines(request, line_arrival, tombstones)
        self._place_gaps(fresh, tombstones)
        left_out = self._look_up()
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

    def _place(self, request: Request, tombstones: Tombstones) -> bool:
        """Add a request's points. If the request is not valid OTLP, set its error, add nothing and return False."""
        parts: list[Stretches] = []
        for source, sent in _by_source(request.arrivals):
            run, arrivals = tombstones.current(source), sent
            if run is None:
                run, arrivals = self._revive(request, source, sent, tombstones)
            if run is not None:
                parts += stretches_of(run, source, arrivals)
        for block in request.blocks:
            run = tombstones.run(block.source, block.span[0])
            if run is None:
                request.rejections[DELETED] += len(block.block.times)
                continue
            try:
                of_block = stretches_of_block(run, block, self._cache.described, request.rejections)
            except EncodingError as error:  # a new name is not UTF-8; other requests must not fail because of it
                request.settle(error)
                return False
            if of_block is not None:
                parts.append(of_block)
        for stretches in parts:
            self._add(request, stretches)
        return True

    def _add(self, request: Request, stretches: Stretches) -> None:
        points = stretches.points
        process = self._process(stretches.run, stretches.source)
        process.add_times(int(points.times.min()), int(points.times.max()))
        if stretches.source.attempt > 1 and isinstance(points, Points) and stretches.steps.any():
            process.add_steps(points[np.repeat(stretches.steps, stretches.counts)])
        self._stretches[type(points)].append((request, stretches))

    def _revive(
        self, request: Request, source: Source, arrivals: Sequence[Arrival], tombstones: Tombstones
    ) -> tuple[int | None, list[Arrival]]:
        """Return a deleted run's new key, if data starts it again, and the arrivals from then on. Refuse all others."""
        kept: list[Arrival] = []
        run = None
        for arrival in arrivals:
            run = tombstones.run(source, int(arrival.points.times.min()))
            if run is None:
                request.rejections[DELETED] += len(arrival.points)
            else:
                kept.append(arrival)
        return run, kept

    def _place_gaps(self, fresh: Sequence[Request], tombstones: Tombstones) -> None:
        """Assign gaps to their series."""
        for request in fresh:
            for source, gaps in _by_source(request.gaps):
                run = tombstones.current(source)
                if run is None:
                    continue
                for gap, series in zip(gaps, series_keys(run, source.process, gaps).tolist(), strict=True):
                    key = run, series
                    self._gaps[key] = np.concatenate((self._gaps.get(key, NO_GAPS), gap_times(gap)))

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
        process.add_lifecycle(event, moment, number)
        if event.name == RUN_HEARTBEAT:
            return
        self._eventful.add(run)
        received = self._received // 10**9
        self._events.append(event_row(run, source.process, event, prepared, time=moment, number=number))
        self._media += [
            (run, image.digest.encode(), image.content_type, image.data, invert(number), received)
            for image in prepared.images
        ]

    def _add_lines(self, request: Request, arrival: LineArrival, tombstones: Tombstones) -> None:
        source, (first, _) = arrival.source, arrival.span
        run = tombstones.run(source, first)
        if run is None:
            request.rejections[DELETED] += len(arrival.lines)
            return
        self._process(run, source).add_times(first, 0)
        lines, size = self._logged.get(run, (0, 0))
        for moment, line in arrival.lines:
            self._last_number += 1
            row = line_row(run, source.process, moment, line, number=self._last_number, commit=self._number)
            self._lines.append(row)
            size += line.size
        self._logged[run] = lines + len(arrival.lines), size

    def _look_up(self) -> int:
        """Leave out points that are already stored, series beyond a run's limit, and gaps of unknown series.

        Returns:
            Number of points that were left out.
        """
        index = self._cache.index
        self._batches = [SeriesBatch(stretches) for stretches in self._stretches.values()]
        runs = {run for batch in self._batches for run in np.unique(batch.runs).tolist()}
        index.load(runs | {run for run, _ in self._gaps})
        counts = {run: index.count(run) for run in runs}
        newest = [
            np.concatenate([index.newest(run, batch.keys[part]) for run, part in batch.parts_of_runs()])
            for batch in self._batches
        ]
        for batch, times in zip(self._batches, newest, strict=True):
            processes, of_series = batch.processes()
            for number in np.unique(of_series[times == 0]).tolist():
                self._processes[processes[number]].has_new_series = True
        refuse_excess(self._batches, [times == 0 for times in newest], counts, self._cache.names)
        left_out = 0
        for batch, times in zip(self._batches, newest, strict=True):
            left_out += leave_out_known(self._connection, batch, times)
        if self._gaps:
            stored = {key for batch in self._batches for key in batch.keys[batch.filled().series].tolist()}
            self._gaps = {
                (run, key): times
                for (run, key), times in self._gaps.items()
                if key in stored or index.newest(run, np.array([key], np.uint64))[0]
            }
        return left_out

    def _write(self, fresh: Sequence[Request], receipts: Mapping[int, Receipt]) -> None:
        connection = self._connection
        received = self._received // 10**9
        if self._processes:
            rows = [process.row(named=self._cache.is_changed(process)) for process in self._processes.values()]
            connection.insert("process", process_updates.COLUMNS, encode_rows(process_updates.COLUMNS, rows))
        batches = [batch for batch in self._batches if len(batch.points)]
        described = self._write_catalog(batches)
        # Write summaries before points. If the server dies in between, a retry then looks up every point that may already
        # be stored.
        steps = steps_of([stretches for part in self._stretches.values() for stretches in part])
        if batches:
            later = {key for key, process in self._processes.items() if process.first_step != NEVER}
            summaries = NativeBlock(b"".join([encode_summaries(batch, steps, later) for batch in batches]))
            connection.insert("summary", SUMMARY_COLUMNS, summaries)
        for batch in batches:
            # Write rollups before points, because a dense point without a rollup would be missing from charts.
            rollups = encode_rollups(batch, steps, self._number, received)
            if rollups is not None:
                connection.insert("rollup", ROLLUP_COLUMNS, rollups)
            for encoded in encode_points(batch, dense_points(batch), self._number, received):
                connection.insert("points", POINT_COLUMNS, encoded)
            if isinstance(batch.points, Blobs):
                connection.insert("distributions", BLOB_COLUMNS, encode_blobs(batch, self._number, received))
        if self._gaps:
            connection.insert("gap", GAP_COLUMNS, encode_gaps(self._gaps, self._number, received))
        for images in _pieces(self._media):
            connection.insert("media", _MEDIA_COLUMNS, encode_rows(_MEDIA_COLUMNS, images))
        if self._events:
            connection.insert("event", EVENT_COLUMNS, encode_rows(EVENT_COLUMNS, self._events))
        if self._lines:
            connection.insert("log", LOG_COLUMNS, encode_rows(LOG_COLUMNS, self._lines))
            self._trimmer.trim(self._logged, self._number)
        arrived = self._arrived()
        if arrived:
            self._log.write(arrived)
        ids = [
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
        if ids:
            connection.insert("batch", _BATCH_COLUMNS, encode_rows(_BATCH_COLUMNS, ids))
        self._cache.remember(self._processes.values())
        self._cache.described.add(*described)
        for batch in batches:
            self._index(batch)

    def _write_catalog(self, batches: Sequence[SeriesBatch]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Describe the series that this server has not described before. Return their hashes and keys, for the cache."""
        hashes, keys = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        blocks: list[NativeBlock] = []
        for batch in batches:
            series, described = batch.undescribed(self._cache.described.find)
            if len(series):
                blocks.append(encode_catalog(batch, series))
                hashes.append(described)
                keys.append(batch.keys[series].view(np.int64))
        if blocks:
            self._connection.insert("catalog", CATALOG_COLUMNS, NativeBlock(b"".join(blocks)))
        return np.concatenate(hashes), np.concatenate(keys)

    def _index(self, batch: SeriesBatch) -> None:
        """Add the batch's series to the index."""
        filled = batch.filled()
        newest = np.zeros(len(batch), np.int64)
        newest[filled.series] = batch.points.times[filled.ends - 1]
        for run, part in batch.parts_of_runs():
            stored = newest[part] > 0
            self._cache.index.update(run, batch.keys[part][stored], newest[part][stored])

    def _arrived(self) -> list[Arrived]:
        series: dict[int, list[tuple[SeriesBatch, NDArray[np.int64]]]] = defaultdict(list)
        first: dict[int, int] = {}
        for batch in self._batches:
            filled = batch.filled()
            times = batch.points.times[filled.starts]
            runs = batch.runs[filled.series]
            for run in np.unique(runs).tolist():
                part = slice(*(int(np.searchsorted(runs, np.uint64(run), side)) for side in ("left", "right")))
                series[run].append((batch, filled.series[part]))
                first[run] = min(first.get(run, NEVER), int(times[part].min()))
        read_all = {process.run for process in self._processes.values() if self._cache.begins_earlier(process)}
        read_all |= {run for run, _ in self._gaps}
        return [
            self._arrived_in(run, first.get(run, 0), series.get(run, ()), read_all=run in read_all)
            for run in sorted(series.keys() | self._eventful | self._logged.keys() | read_all)
        ]

    def _arrived_in(
        self, run: int, first: int, series: Sequence[tuple[SeriesBatch, NDArray[np.int64]]], *, read_all: bool
    ) -> Arrived:
        eventful, logs = run in self._eventful, run in self._logged
        if sum(len(part) for _, part in series) > NAMED:
            keys = np.concatenate([batch.keys[part] for batch, part in series])
            return Arrived(run, self._number, first, (), eventful, read_all, keys, logs=logs)
        metrics = {batch.identify(index).metric for batch, part in series for index in part.tolist()}
        return Arrived(run, self._number, first, sorted(metrics), eventful, read_all, logs=logs)

    def _process(self, run: int, source: Source) -> ProcessUpdate:
        process = self._processes.get((run, source.process))
        if process is None:
            process = ProcessUpdate(run, source, self._number, self._received)
            self._processes[run, source.process] = process
        process.source = source
        return process


def _by_source(arrivals: Sequence[Arrival]) -> Iterator[tuple[Source, list[Arrival]]]:
    for _, group in groupby(arrivals, key=lambda arrival: id(arrival.source)):
        part = list(group)
        yield part[0].source, part


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
