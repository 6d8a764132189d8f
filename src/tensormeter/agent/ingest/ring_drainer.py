"""Draining of one process's ring into the spool, from its first row to its end event."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, cast

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.background.worker import Background
from tensormeter.agent.ingest.aggregation import Aggregator
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.agent.ingest.console_inbox import ConsoleInbox
from tensormeter.agent.ingest.lifecycle_events import documents_event, end_event, start_event
from tensormeter.agent.ingest.media_inbox import Inbox
from tensormeter.agent.ingest.self_metrics import SelfMetrics
from tensormeter.agent.ingest.slow_items import SlowItems
from tensormeter.agent.spool.encoding import encode_log_request, encode_metric_request
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.loss_report import Report, unreported
from tensormeter.agent.spool.process_origin import Origin
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.semconv import PROCESS_END, RUN_HEARTBEAT
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import EncodingError, SpoolError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Attribute, Batch, Event, Value
from tensormeter.otlp.gauge_points import GaugeEncoder
from tensormeter.otlp.media import TooLargeError
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import MAX_LANES, HeaderWord, State
from tensormeter.settings import Settings

__all__ = ["RingDrainer", "batch_delay"]

logger: Final = get_logger("tensormeter.agent")

_MEDIA: Final = MAX_LANES
"""Number of the cursor for media files (tables, images and texts), used in place of a lane index."""

_SPOOL_TROUBLE_DELAY: Final = 1.0

_WARNING_INTERVAL: Final = 60.0
"""Minimum seconds between two log lines about a spool that refuses some writes, as on an almost full disk."""

_DURABLE_DELAY: Final = 1.0
"""Maximum seconds that rows wait in the ring with `fsync` durability, as the ring does not survive a power failure."""

_SHORTEST_CONSOLE_DELAY: Final = 0.25
"""Minimum seconds between two requests with console output."""

_MOST_BATCHES: Final = 16
"""Maximum number of batches of one process before other processes get their turn."""


def batch_delay(settings: Settings) -> float:
    """Return the seconds between two batches of rows. They are at most one with `fsync` durability."""
    return min(settings.schedule_delay, _DURABLE_DELAY) if settings.durability == "fsync" else settings.schedule_delay


class RingDrainer:
    """Drainer of one ring into the spool. Only the agent's main thread may use it. It blocks only on the disk."""

    def __init__(
        self,
        ring: RingFile,
        spool: Spool,
        destinations: Sequence[str],
        settings: Settings,
        numbering: Numbering | None = None,
        encoder: GaugeEncoder | None = None,
        background: Background | None = None,
    ) -> None:
        """
        Args:
            ring: Ring to drain.
            spool: Spool that receives the requests.
            destinations: Names of the destinations.
            settings: Settings of the run.
            numbering: Attempt numbers and steps; None if the numbers in the ring are final.
            encoder: Encoder to share with the run's other processes.
            background: Thread for items that take long; None to describe them without reading their files.
        """
        self.ring = ring
        self.alive = True
        """Whether the process was alive during the last `advance`."""
        self._numbering = numbering
        self._spool = spool
        self._metrics_to = settings.takers("metrics", destinations)
        self._logs_to = settings.takers("logs", destinations)
        self._delay = batch_delay(settings)
        self._processor = BatchMeasurementProcessor(
            ring,
            _cursors(ring, spool),
            Aggregator(spool.aggregates(ring.process), settings.temporality),
            schedule_delay=self._delay,
            max_export_batch_size=settings.max_export_batch_size,
            on_skip=self._skip,
            encoder=encoder,
        )
        metadata = self._processor.metadata
        self._document_changes = 0
        self._inbox = Inbox(ring.path, spool.cursor(ring.process, _MEDIA).position)
        self._slow_items = SlowItems(ring.process, lambda: self._unsettled, self._inbox, background)
        self._console = ConsoleInbox(
            ring.path,
            lambda: self._processor.metadata,
            ring.writer_alive,
            lambda number: self._spool.cursor(ring.process, number),
            settings.console_max_bytes,
        )
        self._health = SelfMetrics(ring, self._processor, settings.self_metrics_interval)
        self.child = metadata.get("parent") is not None
        if numbering is not None:
            numbering.register(metadata)
        self._started, self._ended = spool.lifecycle(ring.process)
        self._whole_ring = _MOST_BATCHES + len(ring.words) // settings.max_export_batch_size
        self._retry_at = 0.0
        self.refusal: tuple[float, Exception] | None = None
        """Time since which the spool has been refusing writes, and the error; None if it accepts them."""
        self._warn_at = 0.0
        self._sent_at = self._counted_at = time.monotonic()
        self._sent_counts: Mapping[str, int] = {}
        self.lost = ""
        """Description, for users, of this process's last item that could not be delivered."""
        self._heartbeat_interval = settings.heartbeat_interval
        self._offline = settings.mode == "offline"
        self._spooled_flush = (0, 0)
        """Number of the last flush request whose rows are all in the spool, and the spool's last sequence number when
        that was detected."""
        ring.words[HeaderWord.PENDING_REQUESTS] = spool.pending()
        ring.words[HeaderWord.ENDED] = self._ended
        self._resume_slow_items()

    def use(self, spool: Spool) -> None:
        """Continue with another spool, which contains all undelivered data of the process or is empty."""
        self._spool = spool
        self._retry_at = 0.0
        self.refusal = None
        if self.flushing and self._spooled_flush[0]:
            self._spooled_flush = self._spooled_flush[0], spool.last_sequence()

    @property
    def resource(self) -> Mapping[str, Attribute]:
        """Attributes of the process, with any settled attempt number. An OpenTelemetry program may add more later."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        return resource if settled is None else settled.resource(resource)

    @property
    def _unsettled(self) -> Mapping[str, Attribute]:
        """Attributes of the process, with the attempt number that the process recorded."""
        return cast("Mapping[str, Attribute]", self._processor.metadata.get("resource", {}))

    @property
    def settled_attempt(self) -> int:
        """Number of the process's attempt; 0 while it is not settled, or if there is nothing to settle."""
        settled = self._numbering.of(self._unsettled) if self._numbering is not None else None
        return 0 if settled is None or settled.number is None else settled.number

    def note_end(self) -> None:
        """Store the last step of the process. The process must be gone, and all of its rows must be in the spool."""
        if self._numbering is not None:
            self._numbering.note_end(self.ring, self._unsettled)

    @property
    def ended(self) -> bool:
        """Whether the process's end event is in the spool."""
        return self._ended

    @property
    def flushing(self) -> bool:
        """Whether the process has requested a flush that is not yet complete."""
        return self.ring.words[HeaderWord.FLUSH_REQUESTS] > self.ring.words[HeaderWord.FLUSHED]

    def complete_flush(self, signals: Sequence[Signal] = SIGNALS) -> int | None:
        """Return the number of the last flush request if all data recorded before it was delivered; otherwise None.

        Args:
            signals: Signals that must be delivered.
        """
        number, through = self._spooled_flush
        if number <= self.ring.words[HeaderWord.FLUSHED]:
            return None
        return number if self._offline or self._spool.pending_through(through, signals) == 0 else None

    @property
    def settled(self) -> bool:
        """Whether the process is running, and nothing but its next rows is to be moved."""
        return self.alive and self._started and not self._ended and self.ring.state is State.OPEN and not self.flushing

    def hurry(self, delay: float) -> None:
        """Wait for at most `delay` seconds between two batches, or for the usual time if that is shorter."""
        self._processor.delay = min(self._delay, delay)

    def due_in(self) -> float:
        """Return the seconds until the next batch may be due; infinite if no rows are buffered."""
        return self._processor.due_in()

    def has_due_rows(self) -> bool:
        """Return whether the process has written rows that would be a batch now. This only compares words in memory."""
        return self._processor.has_due_rows()

    def has_news(self) -> bool:
        """Return whether the process has written rows, media or output, or has ended, since the last `advance`."""
        return (
            self._processor.has_new_rows()
            or not self.settled
            or any(self._inbox.pieces())
            or self._console.has_news()
            or not self.ring.writer_alive()
        )

    def take_growth(self) -> float:
        """Return the largest share of a lane that was read since the last call."""
        return self._processor.take_growth()

    def advance(self, *, flush: bool, last: bool = True) -> bool:
        """Move available rows, media and events to the spool.

        Args:
            flush: Whether to move everything now instead of waiting until a batch is due.
            last: Whether all other processes of the run on this node have ended. Processes share the spool's losses,
                and the end event of the last one reports them.

        Returns:
            Whether the process is gone and all of its data is in the spool, so that the ring may be removed.
        """
        if time.monotonic() < self._retry_at:
            return False
        # Check whether the writer is alive before reading, so that everything that a dead writer wrote is read.
        alive = self.alive = self.ring.writer_alive()
        over = not alive or self.ring.state is not State.OPEN
        requested = self.ring.words[HeaderWord.FLUSH_REQUESTS] if self.flushing else 0
        wanted = self.ring.flush_positions() if requested > self._spooled_flush[0] else []
        try:
            if not self._started:
                origin = Origin.of(self.ring.words[HeaderWord.WRITER_PID], self.resource, child=self.child)
                report = Report(self.ring.process, dict(self.resource))
                events = [] if self.child else [start_event(self.ring, self._processor.metadata)]
                self._put(events, started=True, origin=origin.to_json(), report=report)
            for _ in range(self._whole_ring if flush or wanted else _MOST_BATCHES):
                more = self._processor.poll(abandon_pending=not alive)
                self._count_unreadable()
                # A flush excludes rows logged after its request, so a delayed flush does not cause small batches.
                hurry = bool(wanted) and self._processor.holds_any_before(wanted)
                if not (over or flush or hurry or self._processor.due()):
                    break
                self._flush()
                if not more:
                    if over and not self._ended and (not alive or self._read_everything()):
                        self._send_documents()
                        self._take_media()
                        if self._slow_items.must_wait():
                            break
                        self._take_output(final=True)
                        self._report_health()
                        dropped = self._report(last)
                        self._put(self._end_events(dropped), started=True, ended=True, report=dropped)
                    break
            self._send_documents()
            self._take_media()
            if flush or wanted or self._console.due(max(self._processor.delay, _SHORTEST_CONSOLE_DELAY)):
                self._take_output(final=self._ended)
            if self._health.due() and not self._ended:
                self._report_health()
            if wanted and all(
                tail >= position for tail, position in zip(self.ring.tail_positions(), wanted, strict=True)
            ):
                self._spooled_flush = requested, self._spool.last_sequence()
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            now = time.monotonic()
            if now >= self._warn_at:
                self._warn_at = now + _WARNING_INTERVAL
                logger.error("%s; rows stay in the ring until the spool can be written", error)
            self._retry_at = now + _SPOOL_TROUBLE_DELAY
            self.refusal = (self.refusal[0] if self.refusal else now), error
            return False
        self._retry_at = 0.0
        self.refusal = None
        return self._ended and not alive

    def beat(self, destinations: Sequence[str], *, speaks: bool = True) -> None:
        """Send a heartbeat if the process has been silent for a while or its drop counts have changed.

        Args:
            destinations: Destinations that currently accept log records. No heartbeats are stored for others.
            speaks: Whether this process reports the spool's losses, which all processes share.
        """
        interval, now = self._heartbeat_interval, time.monotonic()
        quiet = now - self._sent_at >= interval
        if not destinations or not interval or not (quiet or now - self._counted_at >= interval):
            return
        if self._ended or not self.ring.writer_alive():
            return
        self._counted_at = now
        dropped = self._dropped(speaks)
        if not quiet and dropped == self._sent_counts:
            return
        body: dict[str, Value] = {"state": "running", "dropped": dropped}
        try:
            self._put(
                [Event(RUN_HEARTBEAT, time.time_ns(), body)],
                started=self._started,
                priority=Priority.SYSTEM,
                destinations=destinations,
            )
        except SpoolError as error:
            logger.warning("cannot send a heartbeat: %s", error)
        else:
            self._sent_counts = dropped

    def _skip(self, cursors: Mapping[int, Cursor]) -> None:
        self._spool.put((), (), self.ring.process, cursors, started=self._started, ended=self._ended)

    def _flush(self) -> None:
        """Store the buffered rows in the spool, then free their space in the ring."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        if settled is None:
            result = self._processor.batch(resource)
        else:
            result = self._processor.batch(settled.resource(resource), settled.steps)
        if result is None:
            return
        # Publish the steps before the rows are in the spool, because another agent would not read the rows again.
        words, (explicit, automatic) = self.ring.words, self._processor.last_steps
        words[HeaderWord.LAST_STEP] = max(words[HeaderWord.LAST_STEP], explicit)
        words[HeaderWord.LAST_AUTOMATIC] = max(words[HeaderWord.LAST_AUTOMATIC], automatic)
        batch, cursors = result
        requests = [encode_metric_request(batch)] if batch.points else []
        self._store(requests, self._metrics_to, cursors, aggregates=self._processor.aggregates)
        self._processor.release()

    def _count_unreadable(self) -> None:
        if points := self._processor.take_unreadable():
            logger.error("%s: could not read about %d points; they count as lost (damaged)", self.ring.path, points)
            self._spool.count_loss("damaged", points)

    def _resume_slow_items(self) -> None:
        """Work on items that an earlier agent has not finished."""
        for path, event in self._slow_items.resume():
            if event is None:
                self._lose_item(EncodingError(f"{path.name} is damaged"))
            else:
                self._store([self._encode_item(event)], self._logs_to)
            path.unlink(missing_ok=True)

    def _take_media(self) -> None:
        for piece in self._inbox.pieces():
            requests = []
            try:
                event = self._slow_items.take(piece) if piece.is_slow else piece.event()
                if event is None:  # handed over
                    continue
                requests.append(self._encode_item(event))
            except EncodingError as error:
                self._lose_item(error)
            # Store the request and the file position in one transaction. If the agent is killed before it deletes the
            # file, the next agent deletes it.
            self._store(requests, self._logs_to, {_MEDIA: Cursor(piece.number)})
            piece.path.unlink(missing_ok=True)

    def _encode_item(self, event: Event) -> Encoded:
        """Encode the event of an item, with the attempt number and step as currently settled."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        if settled is not None:
            resource, event = settled.resource(resource), settled.event(event)
        return encode_log_request(resource, [event], Priority.MEDIA)

    def _lose_item(self, error: EncodingError) -> None:
        """Count an item that cannot be encoded as lost."""
        self.lost = str(error)
        logger.error("dropped an item that could not be encoded: %s", error)
        reason = f"{error.kind}_too_large" if isinstance(error, TooLargeError) else "media_damaged"
        self._spool.count_loss(reason, 1)

    def _take_output(self, *, final: bool) -> None:
        """Store the process's output: lines of its console, and records of Python's `logging`."""
        for _ in range(_MOST_BATCHES if final else 1):
            output = self._console.take(final=final)
            if output is None:
                break
            events = output.events
            requests = [encode_log_request(self.resource, events, Priority.OUTPUT)] if events else []
            self._store(requests, self._logs_to, output.cursors)
            output.release()

    def _report_health(self) -> None:
        series = self._health.report(self._spool.pending())
        if series:
            self._store([encode_metric_request(Batch(self.resource, series), Priority.SYSTEM)], self._metrics_to)

    def _put(
        self,
        events: Sequence[Event],
        *,
        started: bool,
        ended: bool = False,
        priority: Priority = Priority.ESSENTIAL,
        destinations: Sequence[str] | None = None,
        origin: str = "",
        report: Report | None = None,
    ) -> None:
        encoded = [encode_log_request(self.resource, events, priority)] if events else []
        to = self._logs_to if destinations is None else destinations
        self._spool.put(encoded, to, self.ring.process, {}, started=started, ended=ended, origin=origin, report=report)
        self._started, self._ended = started, ended
        self._publish()

    def _store(
        self,
        requests: Sequence[Encoded],
        destinations: Sequence[str],
        cursors: Mapping[int, Cursor] = MappingProxyType({}),
        aggregates: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Put requests and the positions after them into the spool in one transaction.

        The new state is published before the caller frees the space: a process that sees its rows read must also see that
        they are undelivered.
        """
        self._spool.put(
            requests,
            destinations,
            self.ring.process,
            cursors,
            started=self._started,
            ended=self._ended,
            aggregates=aggregates,
        )
        self._publish()

    def _publish(self) -> None:
        """Publish to the writer, which may be waiting in `finish`, that the spool has new requests."""
        self._sent_at = time.monotonic()
        words = self.ring.words
        words[HeaderWord.PENDING_REQUESTS] = self._spool.pending()
        words[HeaderWord.STALLED] = 0  # it was published without these requests
        words[HeaderWord.ENDED] = self._ended

    def _read_everything(self) -> bool:
        """Return whether all rows of a writer that has finished but is still running have been read."""
        return all(
            cursor.position >= head
            for cursor, head in zip(self._processor.cursors(), self.ring.head_positions(), strict=True)
        )

    def _send_documents(self) -> None:
        """Send the documents that have changed. If another agent has already sent them, the two events are identical."""
        self._processor.refresh()
        changes = self.ring.words[HeaderWord.DOCUMENT_CHANGES]
        if changes == self._document_changes or self._ended:
            return
        event = documents_event(self.ring)
        if event is not None:
            self._put([event], started=self._started)
        else:
            logger.error("%s: cannot read the changed configuration and summary, so they are not sent", self.ring.path)
        self._document_changes = changes  # once they are stored, because the spool may refuse them

    def _dropped(self, speaks: bool) -> dict[str, int]:
        """Return the drop counts so far, by reason, including the spool's losses if this process reports them."""
        return self._report(speaks).counts

    def _report(self, speaks: bool) -> Report:
        dropped = Counter(self.ring.drops())
        dropped.update(device_unfinished=self._processor.lost, unsupported_value=self._processor.refused)
        dropped.update(self._console.drops())
        process, spool = self.ring.process, self._spool
        losses = unreported(process, spool.reports(), spool.losses()) if speaks and spool.losses() else {}
        return Report(
            process, dict(self.resource), {reason: count for reason, count in dropped.items() if count}, losses
        )

    def _end_events(self, report: Report) -> list[Event]:
        dropped = report.counts
        if self.child:
            return [Event(PROCESS_END, time.time_ns(), {"dropped": dropped})] if dropped else []
        self._processor.refresh()  # the writer's last entry describes its end
        return [end_event(self.ring, self._processor.metadata, dropped)]


def _cursors(ring: RingFile, spool: Spool) -> dict[int, Cursor]:
    """Return the cursors of all lanes: from the spool or, if it lost transactions, from the ring.

    Space in the ring is freed only after its rows are in the spool. A cursor before the end of the freed space
    therefore shows that the spool's last transactions are gone.
    """
    cursors = {}
    missing = False
    for lane, tail in enumerate(ring.tail_positions()):
        cursor = spool.cursor(ring.process, lane)
        if cursor.position < tail:
            missing = True
            cursor = Cursor(tail, cursor.last_time)
        cursors[lane] = cursor
    if missing:
        logger.error("the spool lost rows that were already read from %s; they count as lost (damaged)", ring.path)
        spool.count_loss("damaged", 1)
        started, ended = spool.lifecycle(ring.process)
        spool.put((), (), ring.process, cursors, started=started, ended=ended)  # count the loss only once
    return cursors
