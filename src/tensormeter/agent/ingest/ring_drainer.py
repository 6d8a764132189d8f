"""Draining one process: from its ring into the spool, from its first row to the news of its end."""

import gzip
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, cast

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.agent.ingest.media_inbox import Inbox
from tensormeter.agent.ingest.self_metrics import SelfMetrics
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.loss_report import Report, untold
from tensormeter.agent.spool.process_origin import Origin
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.semconv import PROCESS_END, RUN_CONFIG, RUN_END, RUN_HEARTBEAT, RUN_START
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import EncodingError, SpoolError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Attribute, Batch, Event, Value
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import TooLargeError
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import MAX_LANES, HeaderWord, SpoolLoss, State
from tensormeter.settings import Settings

__all__ = ["RingDrainer"]

logger: Final = get_logger("tensormeter.agent")

_MEDIA: Final = MAX_LANES
"""In place of a lane: how far the files of tables, images and texts have been taken."""

_GZIP_LEVEL: Final = 1
"""Times and doubles compress little; level 6 costs four times the processor time for 3 % fewer bytes."""

_SPOOL_TROUBLE_DELAY: Final = 1.0

_COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two lines in the log about a spool that refuses now and then, as on a disk that is all but full."""

_DURABLE_DELAY: Final = 1.0
"""Seconds for which rows wait for others, at most, where the spool is to survive a loss of power: the ring does not."""

_MOST_BATCHES: Final = 16
"""Batches of one process before the others have their turn."""


class RingDrainer:
    """One ring on its way into the spool. Used by the agent's main thread; blocks for the disk only."""

    def __init__(
        self,
        ring: RingFile,
        spool: Spool,
        destinations: Sequence[str],
        settings: Settings,
        numbering: Numbering | None = None,
    ) -> None:
        self.ring = ring
        self.alive = True
        """Whether the process lived at the last look."""
        self._numbering = numbering
        self._spool = spool
        self._metrics_to = settings.takers("metrics", destinations)
        self._logs_to = settings.takers("logs", destinations)
        self._processor = BatchMeasurementProcessor(
            ring,
            _cursors(ring, spool),
            spool.aggregates(ring.process),
            temporality=settings.temporality,
            schedule_delay=min(settings.schedule_delay, _DURABLE_DELAY)
            if settings.durability == "fsync"
            else settings.schedule_delay,
            max_export_batch_size=settings.max_export_batch_size,
            on_skip=self._skip,
        )
        metadata = self._processor.metadata
        self._reconfigured = 0
        self._inbox = Inbox(ring.path, spool.cursor(ring.process, _MEDIA).position)
        self._health = SelfMetrics(ring, self._processor, settings.self_metrics_interval)
        self.child = metadata.get("parent") is not None
        if numbering is not None:
            numbering.register(metadata)
        self._started, self._ended = spool.life(ring.process)
        self._whole_ring = _MOST_BATCHES + len(ring.words) // settings.max_export_batch_size
        self._retry_at = 0.0
        self.refusal: tuple[float, Exception] | None = None
        """Since when the spool has refused everything, and what it said; None if it does not refuse."""
        self._complain_at = 0.0
        self._fresh = False
        self._heard_at = self._counted_at = time.monotonic()
        self._told: Mapping[str, int] = {}
        self.lost = ""
        """What of this process could not be delivered last, for people."""
        self._heartbeat_interval = settings.heartbeat_interval
        self._offline = settings.mode == "offline"
        self._spooled_flush = (0, 0)
        """The last flush request whose rows are all in the spool, and the sequence number of the last request there then."""
        ring.words[HeaderWord.PENDING_REQUESTS] = spool.pending()
        ring.words[HeaderWord.ENDED] = self._ended

    def use(self, spool: Spool) -> None:
        """Go on with another spool, which has everything of the process that is not delivered, or is empty."""
        self._spool = spool
        self._retry_at = 0.0
        self.refusal = None
        if self.flushing and self._spooled_flush[0]:
            self._spooled_flush = self._spooled_flush[0], spool.last_sequence()

    @property
    def resource(self) -> Mapping[str, Attribute]:
        """Who speaks; an OpenTelemetry program may add to it later."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        return resource if settled is None else settled.resource(resource)

    @property
    def _unsettled(self) -> Mapping[str, Attribute]:
        """The same with the attempt's number as the process knows it."""
        return cast("Mapping[str, Attribute]", self._processor.metadata.get("resource", {}))

    def note_end(self) -> None:
        """The process is gone, and everything of it is in the spool: note where its steps ended."""
        if self._numbering is not None:
            self._numbering.note_end(self.ring, self._unsettled)

    @property
    def ended(self) -> bool:
        """Whether the news of its end is in the spool."""
        return self._ended

    @property
    def flushing(self) -> bool:
        """Whether the process has requested a flush that is not complete."""
        return self.ring.words[HeaderWord.FLUSH_REQUESTS] > self.ring.words[HeaderWord.FLUSHED]

    def complete_flush(self, signals: Sequence[Signal] = SIGNALS) -> int | None:
        """The number of the last flush request if all that it is about is delivered now; None if none has come so far.

        Args:
            signals: Signals that have to be delivered.
        """
        number, through = self._spooled_flush
        if number <= self.ring.words[HeaderWord.FLUSHED]:
            return None
        return number if self._offline or self._spool.pending_through(through, signals) == 0 else None

    def advance(self, *, flush: bool, last: bool = True) -> bool:
        """Move what is there towards the spool.

        Args:
            flush: Do not wait until a batch is due, and move all that is there now.
            last: Whether all other processes of the run have ended here. What the spool had to drop belongs to all of them, and
                the last one's end tells it.

        Returns:
            Whether the process is gone and everything of it is in the spool, so that the ring may be removed.
        """
        if time.monotonic() < self._retry_at:
            return False
        # Looked at before reading: whatever a dead writer wrote is there to be read.
        alive = self.alive = self.ring.writer_alive()
        over = not alive or self.ring.state is not State.OPEN
        requested = self.ring.words[HeaderWord.FLUSH_REQUESTS] if self.flushing else 0
        wanted = self.ring.flush_positions() if requested > self._spooled_flush[0] else []
        try:
            if not self._started:
                origin = Origin.of(self.ring.words[HeaderWord.WRITER_PID], self.resource, child=self.child)
                report = Report(self.ring.process, dict(self.resource))
                self._put(self._start_events(), started=True, origin=origin.to_json(), report=report)
            for _ in range(self._whole_ring if flush or wanted else _MOST_BATCHES):
                more = self._processor.poll(abandon_pending=not alive)
                if not alive:
                    self._count_unreadable()
                # Rows after the flush request wait for their own time, so a flush that is held up makes no small batches.
                hurry = bool(wanted) and self._processor.holds_any_before(wanted)
                if not (over or flush or hurry or self._processor.due()):
                    break
                self._flush()
                if not more:
                    if over and not self._ended and (not alive or self._read_everything()):
                        self._tell_configuration()
                        self._take_media()
                        self._report_health()
                        dropped = self._report(last)
                        self._put(self._end_events(dropped), started=True, ended=True, report=dropped)
                    break
            self._tell_configuration()
            self._take_media()
            if self._health.due() and not self._ended:
                self._report_health()
            if wanted and all(tail >= position for tail, position in zip(self.ring.tails(), wanted, strict=True)):
                self._spooled_flush = requested, self._spool.last_sequence()
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            now = time.monotonic()
            if now >= self._complain_at:
                self._complain_at = now + _COMPLAINT_INTERVAL
                logger.error("%s; rows stay in the ring until this is mended", error)
            self._retry_at = now + _SPOOL_TROUBLE_DELAY
            self.refusal = (self.refusal[0] if self.refusal else now), error
            return False
        self._retry_at = 0.0
        self.refusal = None
        return self._ended and not alive

    def beat(self, destinations: Sequence[str], *, speaks: bool = True) -> None:
        """Tell receivers that the process lives, if nothing else has for a while, and what had to be dropped, if that is news.

        Args:
            destinations: Those to which delivery of log records works; a heartbeat is not worth keeping for later.
            speaks: Whether this is the process that tells what the spool had to drop.
        """
        interval, now = self._heartbeat_interval, time.monotonic()
        quiet = now - self._heard_at >= interval
        if not destinations or not interval or not (quiet or now - self._counted_at >= interval):
            return
        if self._ended or not self.ring.writer_alive():
            return
        self._counted_at = now
        dropped = self._dropped(speaks)
        if not quiet and dropped == self._told:
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
            logger.warning("no heartbeat: %s", error)
        else:
            self._told = dropped

    def take_fresh(self) -> bool:
        """Whether something has come into the spool since the last call."""
        fresh, self._fresh = self._fresh, False
        return fresh

    def _skip(self, cursors: Mapping[int, Cursor]) -> None:
        self._spool.put((), (), self.ring.process, cursors, started=self._started, ended=self._ended)

    def _flush(self) -> None:
        """Put the held rows into the spool, then free their space."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        if settled is None:
            found = self._processor.batch(resource)
        else:
            found = self._processor.batch(settled.resource(resource), settled.steps)
        if found is None:
            return
        # Before the rows are in the spool: another agent would not read them again.
        words, (explicit, automatic) = self.ring.words, self._processor.last_steps
        words[HeaderWord.LAST_STEP] = max(words[HeaderWord.LAST_STEP], explicit)
        words[HeaderWord.LAST_AUTOMATIC] = max(words[HeaderWord.LAST_AUTOMATIC], automatic)
        batch, cursors = found
        requests = []
        if batch.points:
            body = gzip.compress(encode_metrics([batch]), _GZIP_LEVEL, mtime=0)
            requests.append(Encoded("metrics", body, batch.points))
        self._spool.put(
            requests,
            self._metrics_to,
            self.ring.process,
            cursors,
            started=self._started,
            ended=self._ended,
            aggregates=self._processor.aggregates,
        )
        # Before the space is freed: who sees everything read must also see what is not delivered.
        self._publish()
        self._processor.release()

    def _count_unreadable(self) -> None:
        if points := self._processor.take_unreadable():
            logger.error("%s: some %d points cannot be read; they count as lost (damaged)", self.ring.path, points)
            self._spool.count_loss("damaged", points)

    def _take_media(self) -> None:
        for piece in self._inbox.pieces():
            encoded, reason = [], SpoolLoss.MEDIA_DAMAGED
            try:
                resource, event = self._settle(piece.event())
                body = gzip.compress(encode_events(resource, [event]), _GZIP_LEVEL, mtime=0)
                priority = Priority.ESSENTIAL if event.name == RUN_CONFIG else Priority.MEDIA
                encoded.append(Encoded("logs", body, 1, priority))
            except EncodingError as error:
                self.lost = str(error)
                logger.error("not delivered: %s", error)
                if isinstance(error, TooLargeError):
                    reason = SpoolLoss[f"{error.kind}_too_large".upper()]
                self._spool.count_loss(reason.name.lower(), 1)
            # What is in the spool, and how far the files are taken, in one transaction: an agent that is killed before it has
            # deleted the file leaves that to the next one.
            cursors = {_MEDIA: Cursor(piece.number)}
            self._spool.put(
                encoded,
                self._logs_to,
                self.ring.process,
                cursors,
                started=self._started,
                ended=self._ended,
            )
            piece.path.unlink(missing_ok=True)
            self._publish()

    def _settle(self, event: Event) -> tuple[Mapping[str, Attribute], Event]:
        """An event with its resource and step as they are settled by now."""
        resource = self._unsettled
        settled = self._numbering.of(resource) if self._numbering is not None else None
        return (resource, event) if settled is None else (settled.resource(resource), settled.event(event))

    def _report_health(self) -> None:
        series = self._health.report(self._spool.pending())
        if not series:
            return
        batch = Batch(self.resource, series)
        body = gzip.compress(encode_metrics([batch]), _GZIP_LEVEL, mtime=0)
        self._spool.put(
            [Encoded("metrics", body, batch.points, Priority.SYSTEM)],
            self._metrics_to,
            self.ring.process,
            {},
            started=self._started,
            ended=self._ended,
        )
        self._publish()

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
        body = gzip.compress(encode_events(self.resource, events), _GZIP_LEVEL, mtime=0)
        encoded = [Encoded("logs", body, len(events), priority)] if events else []
        to = self._logs_to if destinations is None else destinations
        self._spool.put(encoded, to, self.ring.process, {}, started=started, ended=ended, origin=origin, report=report)
        self._started, self._ended = started, ended
        self._publish()

    def _publish(self) -> None:
        """Something has come into the spool. Tell the writer, which may be waiting in `finish`."""
        self._fresh = True
        self._heard_at = time.monotonic()
        self.ring.words[HeaderWord.PENDING_REQUESTS] = self._spool.pending()
        self.ring.words[HeaderWord.ENDED] = self._ended

    def _read_everything(self) -> bool:
        """Whether all rows of a writer that has finished, but still runs, are read."""
        return all(
            cursor.position >= head for cursor, head in zip(self._processor.cursors(), self.ring.heads(), strict=True)
        )

    def _start_events(self) -> list[Event]:
        """A child process neither begins nor ends the run."""
        if self.child:
            return []
        metadata = cast("dict[str, Value]", self._processor.metadata)
        body: dict[str, Value] = {
            name: metadata[name] for name in ("config", "group", "tags", "notes") if name in metadata
        }
        return [Event(RUN_START, self.ring.words[HeaderWord.CREATED], body)]

    def _tell_configuration(self) -> None:
        """If the process has changed the run's configuration. Another agent may have told it before: it is the same event."""
        self._processor.refresh()
        told = cast("int", self._processor.metadata.get("reconfigured", 0))
        if told != self._reconfigured and not self._ended:
            config = cast("dict[str, Value]", self._processor.metadata["config"])
            self._put([Event(RUN_CONFIG, told, {"config": config})], started=self._started)
            self._reconfigured = told

    def _dropped(self, speaks: bool) -> dict[str, int]:
        """What could not be recorded or kept so far, by reason; what the spool dropped, too, if this process speaks for it."""
        return self._report(speaks).counts

    def _report(self, speaks: bool) -> Report:
        dropped = Counter(self.ring.drops())
        dropped.update(device_unfinished=self._processor.lost, unsupported_value=self._processor.refused)
        process, spool = self.ring.process, self._spool
        told = untold(process, spool.reports(), spool.losses()) if speaks and spool.losses() else {}
        return Report(process, dict(self.resource), {reason: count for reason, count in dropped.items() if count}, told)

    def _end_events(self, report: Report) -> list[Event]:
        dropped = report.counts
        if self.child:
            return [Event(PROCESS_END, time.time_ns(), {"dropped": dropped})] if dropped else []
        state, message = self._end()
        body: dict[str, Value] = {"state": state, "message": message, "dropped": dropped}
        return [Event(RUN_END, time.time_ns(), body)]

    def _end(self) -> tuple[str, str]:
        """How the process ended, and in words what ended it."""
        if self.ring.state is not State.OPEN:
            self._processor.refresh()  # the writer's last entry is about its end
            return self.ring.state.name.lower(), str(self._processor.metadata.get("end", ""))
        if self.ring.words[HeaderWord.SIGTERM]:
            return "preempted", "the process was told to end (SIGTERM) and is gone"
        return "crashed", "the process ended without finishing the run"


def _cursors(ring: RingFile, spool: Spool) -> dict[int, Cursor]:
    """How far each lane has been read: as the spool says, or as the ring does, if the spool has lost something.

    Space in the ring is freed only after its rows are in the spool, so a cursor before that means that the spool's last
    transactions are gone.
    """
    cursors = {}
    missing = False
    for lane, tail in enumerate(ring.tails()):
        cursor = spool.cursor(ring.process, lane)
        if cursor.position < tail:
            missing = True
            cursor = Cursor(tail, cursor.last_time)
        cursors[lane] = cursor
    if missing:
        logger.error(
            "rows of %s that had been read are not in the spool any more; they count as lost (damaged)", ring.path
        )
        spool.count_loss("damaged", 1)
        started, ended = spool.life(ring.process)
        spool.put((), (), ring.process, cursors, started=started, ended=ended)  # so that they are counted once
    return cursors
