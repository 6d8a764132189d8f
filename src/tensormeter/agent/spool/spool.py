"""The spool, which stores encoded requests on disk until their receivers have accepted them.

It is an SQLite database, one for each run and node. A single transaction stores requests, the position up to which each
lane has been read, and the state of each process. Each row of a ring is therefore stored once or not at all, no matter
when the agent is killed.

A request is deleted when every destination has accepted or rejected it. Rejected requests are kept in `quarantine`. An
accepted request is kept until it is durable, because it may have to be resent (`tensormeter.agent.spool.retained`).

Each request has a checksum. A request that does not match its checksum is skipped and logged, and its items are counted
as lost. The rows of the other tables have checksums too. If one of these checksums does not match, the spool counts as
damaged (`tensormeter.agent.spool.recovery`).

A spool that exceeds its maximum size evicts requests (`tensormeter.agent.spool.eviction`). The table `loss` contains
the number of lost items by reason.

Durability: killing any process loses nothing. After a power failure, a spool with `fsync` contains everything that was
stored. With `flush`, the last transactions may be missing. With `none`, the spool may have to be repaired
(`tensormeter.agent.spool.recovery`). In all modes, tables are durable once they are created, and the origin of a
process is durable once the `put` that stores it returns.

The journal is a write-ahead log, which needs memory shared by all processes that have the file open. Network file
systems do not reliably provide such memory, so the journal there is a rollback journal.

Threads: each thread opens its own `Spool`. Calls block on the disk, and wait up to 10 s for another thread's
transaction.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from tensormeter.agent.spool.disk_space import DiskSpace
from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolFullError
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.loss_report import Report
from tensormeter.agent.spool.recent_requests import RecentRequest, RecentRequests
from tensormeter.agent.spool.request import Encoded, Priority, checksum, intact
from tensormeter.agent.spool.retained import FORGET, forget_kept, give_up_kept, keep, remember, settle
from tensormeter.agent.spool.spool_queries import SpoolQueries, of_signals
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.exporter import Durability as ReceiverDurability
from tensormeter.exporter import Request
from tensormeter.logger import get_logger
from tensormeter.settings import Durability

if TYPE_CHECKING:
    from tensormeter.agent.spool.thinning import Thinning

__all__ = ["Retried", "Spool"]

logger: Final = get_logger("tensormeter.agent")

_ROOM_FOR_PROGRESS: Final = 1 << 20
"""Minimum free bytes on the disk for storing a request's progress. Delivery also works without this record."""

_PAGES: Final = 64 << 10
"""Maximum bytes that a transaction writes in addition to requests, for pages of indexes and small tables."""


class Retried(NamedTuple):
    """Result of `Spool.retry`.

    Attributes:
        requests: Number of requests, or parts of requests, that are waiting for their destinations again.
        items: Number of data points and log records in these requests.
        damaged: Number of items that can no longer be read. They count as lost.
        given_up: Number of items whose contents were deleted from a full spool. They stay quarantined.
    """

    requests: int
    items: int
    damaged: int
    given_up: int


class Spool(SpoolQueries):
    """An open spool. It is not thread-safe; see the module's docstring."""

    def __init__(self, path: Path, *, durability: Durability = "flush", max_bytes: int | None = None) -> None:
        """Open the spool, and create it if it does not exist.

        Args:
            path: Path of the database.
            durability: Durability of transactions; see the module's docstring.
            max_bytes: Maximum size of the contents in bytes; None for no limit.

        Raises:
            SpoolError: The file is not a spool or has another version, or the disk failed.
        """
        super().__init__(path, durability)
        self._max_bytes = max_bytes
        self._done: tuple[str, int] | None = None
        self._space = DiskSpace(self)
        self._thinning: Thinning | None = None
        self.elsewhere = 0
        """Number of pending requests that wait in the spool on the disk while this spool is in memory."""
        self._fresh: set[Signal] = set()
        self.recent = RecentRequests()
        """Requests that this object stored and that may still be waiting."""
        try:
            self._open()
        except SpoolFullError:
            if not self._space.give():
                raise
            self._open()

    def put(
        self,
        requests: Sequence[Encoded],
        destinations: Iterable[str],
        process: str,
        cursors: Mapping[int, Cursor],
        *,
        started: bool,
        ended: bool,
        aggregates: Mapping[str, str] = MappingProxyType({}),
        origin: str = "",
        report: Report | None = None,
    ) -> None:
        """Store requests and the state of one process in one transaction.

        Args:
            requests: Requests to store.
            destinations: Names of the requests' destinations. Without destinations, requests are not stored.
            process: ID of the process.
            cursors: Positions up to which lanes have been read, by lane.
            started: Whether the process's start event is in the spool.
            ended: Whether the process's end event is in the spool.
            aggregates: States of the aggregated streams that have changed.
            origin: Description of where the process runs, passed only once. It makes the transaction durable in every
                mode.
            report: Losses that one of the requests reports.

        Raises:
            SpoolError: The disk refuses the write, or has only the space for marking requests as delivered. Nothing is
                stored.
        """
        to = tuple(destinations)
        if not to:
            requests = ()
        self._space.leave(_PAGES + sum(len(request.body) for request in requests), self._give_up_kept)
        with self._durable() if origin else contextlib.nullcontext(), self.transaction():
            fresh = [self._insert(request, to) for request in requests]
            if origin:
                self._write("origin", process, origin)
            for lane, cursor in cursors.items():
                self._write("cursor", process, lane, cursor.position, cursor.last_time)
            for stream, state in aggregates.items():
                self._write("aggregate", process, stream, state)
            self._write("process", process, int(started), int(ended))
            if report is not None:
                resource, dropped, reported = map(json.dumps, (report.resource, report.dropped, report.reported))
                # Reports of other processes are needed only if they contain losses of the spool. Delete all others,
                # because there may be thousands of child processes.
                self._database.execute("DELETE FROM report WHERE told = '{}'")
                self._write("report", report.process, resource, dropped, reported, time.time_ns())
        self.recent.add(fresh)
        self._fresh.update(request.signal for request in requests)
        if self._max_bytes is not None and requests:
            self._make_room(self._max_bytes)

    def take_fresh(self) -> set[Signal]:
        """Return the signals of the requests that this object has stored since the last call."""
        fresh, self._fresh = self._fresh, set()
        return fresh

    def next(self, destination: str) -> tuple[int, Request] | None:
        """Return the oldest request that a destination has neither accepted nor rejected, with its sequence number."""
        last_sequence = None
        while True:
            row = self._fetch(
                "SELECT sequence FROM pending WHERE destination = ? ORDER BY sequence LIMIT 1",
                destination,
            )
            if row is None:
                return None
            if row[0] == last_sequence:
                raise SpoolDamagedError(f"the spool {self.path} is damaged: the waiting request {row[0]} is missing")
            last_sequence = row[0]
            request = self.read(row[0])
            if request is not None:
                return row[0], request

    def withdraw(self, destination: str, signal: Signal) -> int:
        """Remove a destination's waiting requests with the given signal, and return the number of their items."""
        with self.transaction():
            rows = self._database.execute(
                "SELECT sequence, request.items FROM pending JOIN request USING (sequence) WHERE destination = ? AND signal = ?",
                (destination, signal),
            ).fetchall()
            for sequence, _ in rows:
                self._retire(destination, sequence)
            forget_kept(self._database, "destination = ? AND signal = ?", destination, signal)
        return sum(items for _, items in rows)

    def read(self, sequence: int) -> Request | None:
        """Return a request; None if it is missing or damaged. A damaged request is logged and counted as lost."""
        row = self._fetch("SELECT id, signal, body, items, checksum FROM request WHERE sequence = ?", sequence)
        if row is None:
            return None
        batch, signal, body, items, expected = row
        if intact(batch, signal, items, body, expected):
            return Request(batch, signal, body, items)
        lost = self.discard(sequence, "damaged")
        logger.error(
            "%s: request %d (%s) does not match its checksum; it will not be sent, and its %d items count as lost "
            "(damaged)",
            self.path,
            sequence,
            signal if signal in SIGNALS else "unknown signal",
            lost,
        )
        return None

    def done(
        self,
        destination: str,
        sequence: int,
        *,
        refused: int = 0,
        durability: ReceiverDurability | None = None,
        sent: str = "",
        signals: Sequence[Signal] = SIGNALS,
    ) -> bool:
        """Mark a request as accepted by a destination.

        Args:
            destination: Name of the destination.
            sequence: Sequence number of the request.
            refused: Number of items that the receiver refused and that have not been counted yet.
            durability: State of the receiver's disk. The request is kept until it is durable there; with None, it is
                deleted now.
            sent: Description of how the request was sent, as for `retained.keep`.
            signals: Signals of the other requests that `durability` applies to.

        Returns:
            Whether other requests are waiting again because the receiver may have lost them.
        """
        recalled = False

        def write() -> None:
            nonlocal recalled
            self._count_loss("refused", refused)
            if durability is not None:
                keep(self._database, destination, sequence, durability, sent)
            else:
                self._retire(destination, sequence)
            recalled = bool(signals) and settle(self._database, destination, of_signals(signals), durability)

        if (destination, sequence) == self._done:
            # Sequence numbers are never reused, so this is the deleted request, which a damaged file still contains.
            raise SpoolDamagedError(f"the spool {self.path} is damaged: cannot delete request {sequence}")
        self._mark(write)
        self._done = None if recalled else (destination, sequence)
        return recalled

    def settle(
        self, destination: str, durability: ReceiverDurability | None, signals: Sequence[Signal] = SIGNALS
    ) -> bool:
        """Process the durability that a receiver reports, and return whether accepted requests are waiting again."""
        recalled = False

        def write() -> None:
            nonlocal recalled
            recalled = settle(self._database, destination, of_signals(signals), durability)

        self._mark(write)
        if recalled:
            self._done = None
        return recalled

    def remember(self, destination: str, sequence: int, sent: str, *, refused: int = 0) -> None:
        """Store the progress of a waiting request, and count its refused items.

        See `retained.remember` for `sent`, and `done` for `refused`.

        Raises:
            SpoolFullError: The disk has only the space for marking requests as delivered.
            SpoolError: The disk refuses the write.
        """
        if not self._space.has(_ROOM_FOR_PROGRESS + len(sent)):
            raise SpoolFullError(f"cannot write to the spool {self.path}: the disk is full")
        with self.transaction():
            self._count_loss("refused", refused)
            remember(self._database, destination, sequence, sent)

    def forget_kept(self, destinations: Sequence[str]) -> None:
        """Stop keeping requests that other destinations have accepted.

        Those destinations are no longer asked which requests are durable.
        """
        with self.transaction():
            forget_kept(self._database, f"destination NOT IN ({', '.join('?' * len(destinations))})", *destinations)

    def quarantine(self, destination: str, sequence: int, reason: str) -> None:
        """Quarantine a request that the destination will never accept, so that users can inspect or resend it."""

        def write() -> None:
            self._database.execute(
                "INSERT OR IGNORE INTO quarantine (destination, id, reason, signal, items, priority, checksum, body) "
                "SELECT ?, id, ?, signal, items, priority, checksum, body FROM request WHERE sequence = ?",
                (destination, reason, sequence),
            )
            self._retire(destination, sequence)

        self._mark(write)

    def quarantine_part(self, destination: str, part: Request, reason: str) -> None:
        """Quarantine part of a request that the destination will never accept."""
        priority = Priority.SCALARS if part.signal == "metrics" else Priority.ESSENTIAL
        expected = checksum(part.id, part.signal, part.items, part.body)

        def write() -> None:
            self._database.execute(
                "INSERT OR IGNORE INTO quarantine (destination, id, reason, signal, items, priority, checksum, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (destination, part.id, reason, part.signal, part.items, priority, expected, part.body),
            )

        self._mark(write)

    def retry(self) -> Retried:
        """Put rejected requests back into the queues of their destinations, with the same IDs.

        These requests are sent even if the destination has refused their kinds before.
        """
        requests = items = damaged = given_up = 0
        with self.transaction():
            rows = self._database.execute(
                "SELECT number, destination, id, signal, items, priority, checksum, body FROM quarantine ORDER BY number"
            ).fetchall()
            for number, destination, batch, signal, count, priority, expected, body in rows:
                if body == b"" and count:  # the contents were deleted from a full spool
                    given_up += count
                    continue
                self._database.execute("DELETE FROM quarantine WHERE number = ?", (number,))
                if not intact(batch, signal, count, body, expected):
                    damaged += count if isinstance(count, int) else 1
                    continue
                sequence = self._database.execute(
                    "INSERT INTO request (id, signal, items, priority, checksum, body) VALUES (?, ?, ?, ?, ?, ?)",
                    (batch, signal, count, priority, expected, body),
                ).lastrowid
                self._write("pending", str(destination), sequence or 0, count, 1)
                requests, items = requests + 1, items + count
            self._count_loss("damaged", damaged)
            if requests:
                # These requests may contain events with older loss counts, so report the losses again after them.
                for row in self._all_sealed("report", "1 ORDER BY time DESC LIMIT 1"):
                    self._write("report", *row[:3], json.dumps(json.loads(row[3]) | {"retried": 0}), row[4])
        return Retried(requests, items, damaged, given_up)

    def discard(self, sequence: int, reason: str) -> int:
        """Delete a request for all destinations, count its items as lost, and return their number."""
        with self.transaction():
            row = self._database.execute("SELECT items FROM request WHERE sequence = ?", (sequence,)).fetchone()
            items = 0
            if row is not None:
                sizes = [pending[2] for pending in self._all_sealed("pending", "sequence = ?", sequence)]
                # A damaged row's number of items may be wrong, but `pending` contains that number as well.
                items = row[0] if reason != "damaged" and isinstance(row[0], int) else max([1, *sizes])
                self._count_loss(reason, items)
            self._database.execute("DELETE FROM request WHERE sequence = ?", (sequence,))
        return items

    def count_loss(self, reason: str, items: int) -> None:
        with self.transaction():
            self._count_loss(reason, items)

    def mark_losses_reported(self) -> None:
        """Record that a command has reported all losses to a user."""
        with self.transaction():
            for reason, items, _ in self._all_sealed("loss", "items > said"):
                self._write("loss", reason, items, items)

    def pending(self) -> int:
        """Return the number of waiting requests, counted once for each destination."""
        count = self._count("SELECT count(*) FROM pending")
        if not count:
            self.recent.clear()
        return count + self.elsewhere

    @property
    def last_pending(self) -> int:
        """Result of the last call to `pending`, available without accessing the disk."""
        return int(self._cache.get("SELECT count(*) FROM pending", 0)) + self.elsewhere

    def forget_rejections(self) -> None:
        """Delete all rejected requests."""
        with self.transaction():
            self._database.execute("DELETE FROM quarantine")

    def keep_room(self) -> bool:
        """Reserve disk space for marking requests as delivered, and return whether it is reserved. Call this often."""
        return self._space.keep()

    def _mark(self, write: Callable[[], None]) -> None:
        """Write a change to a request's state, using the reserved disk space if the disk is full."""
        try:
            with self.transaction():
                write()
        except SpoolFullError:
            self._space.shorten_log()
            with self.transaction():
                write()

    def _give_up_kept(self) -> bool:
        with self.transaction():
            return give_up_kept(self._database)

    def _make_room(self, max_bytes: int) -> None:
        if self.used_bytes() <= max_bytes:
            return
        # These decode requests, so they are imported only when needed.
        from tensormeter.agent.spool.eviction import sacrifice
        from tensormeter.agent.spool.thinning import Thinning

        if self._thinning is None:
            self._thinning = Thinning(max_bytes)
        while self.used_bytes() > max_bytes:
            with self.transaction():
                given_up = sacrifice(self._database, self._thinning)
                if given_up is None:
                    return
                self._count_loss(*given_up)

    def _insert(self, request: Encoded, destinations: Sequence[str]) -> RecentRequest:
        batch = uuid.uuid4().hex
        priority = request.priority
        if priority is None:
            priority = Priority.SCALARS if request.signal == "metrics" else Priority.ESSENTIAL
        row = (
            batch,
            request.signal,
            request.items,
            priority,
            checksum(batch, request.signal, request.items, request.body),
            request.body,
        )
        sequence = self._database.execute(
            "INSERT INTO request (id, signal, items, priority, checksum, body) VALUES (?, ?, ?, ?, ?, ?)", row
        ).lastrowid
        assert sequence is not None
        for destination in destinations:
            self._write("pending", destination, sequence, request.items, 0, replace=False)
        return RecentRequest(sequence, row, tuple(destinations))

    def _count_loss(self, reason: str, items: int) -> None:
        if items:
            row = self._sealed("loss", "reason = ?", reason)
            lost, reported = row[1:] if row else (0, 0)
            self._write("loss", reason, lost + items, reported)

    def _retire(self, destination: str, sequence: int) -> None:
        for table in ("pending", "kept"):
            self._database.execute(
                f"DELETE FROM {table} WHERE destination = ? AND sequence = ?", (destination, sequence)
            )
        self._database.execute(FORGET, (sequence,))
