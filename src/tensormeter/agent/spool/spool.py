"""The spool: encoded requests on disk until their receivers have accepted them.

A SQLite database, one for each run and node.
Requests, the position up to which each lane has been read, and what was said about each process's life go into it in one
transaction, so a row of the ring is in the spool once or not at all, whenever the agent is killed.
A request is deleted when every destination has accepted or rejected it; what was rejected is kept in `quarantine`. What a receiver
has accepted and its disk does not have yet stays, too, and may wait again (`tensormeter.agent.spool.retained`).
Each request has a checksum; one that does not match is skipped, logged, and counted with its items. So does each row of the other
tables; one that does not match makes the spool count as damaged (`tensormeter.agent.spool.recovery`).
The size is bounded: see `tensormeter.agent.spool.eviction` for what goes first. What is lost is counted by reason in `loss`.

Durability: a killed process loses nothing, whichever it is. After a loss of power, `fsync` has everything that was put,
`flush` may miss the last transactions, and `none` may have to be repaired (`tensormeter.agent.spool.recovery`). In each of them the
tables are durable when they are made, and which processes there are when the `put` returns that tells of one.
The journal is a write-ahead log, which needs memory shared by all who have the file open; on network file systems, where that
cannot be relied on, it is a rollback journal.

Threads: each opens a `Spool` of its own. Calls block for the disk, and up to 10 s for another thread's transaction.
"""

import contextlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tensormeter.agent.spool import schema
from tensormeter.agent.spool.errors import ERRORS, SpoolDamagedError, SpoolFullError, named
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.loss_report import Report
from tensormeter.agent.spool.request import Encoded, Priority, checksum, intact, seal
from tensormeter.agent.spool.retained import FORGET, forget_kept, give_up_kept, keep, remember, settle
from tensormeter.agent.spool.transaction import Transaction
from tensormeter.disk.mounts import missing_features, network_filesystem
from tensormeter.disk.private import make_file, oddity, open_file
from tensormeter.disk.reserve import Reserve
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SpoolError
from tensormeter.exporter import Durability as ReceiverDurability
from tensormeter.exporter import Request
from tensormeter.logger import get_logger
from tensormeter.settings import Durability

__all__ = ["Head", "Retried", "Spool"]

logger: Final = get_logger("tensormeter.agent")

_SYNCHRONOUS: Final[Mapping[Durability, str]] = {"none": "OFF", "flush": "NORMAL", "fsync": "FULL"}

_PAGES: Final = 64 << 10
"""Bytes of what a transaction writes beside the requests, at most: pages of indexes and small tables."""

_SUPER_JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")
"""What a rollback journal ends with that names a file of further journals: file format of SQLite, section 3."""

_MARKING: Final = 256 << 10
"""Bytes for transactions that mark requests: SQLite's log is carried over into the database as often as these are used up."""


_MOST_RECENT_BYTES: Final = 8 << 20
"""Size of `Spool.recent`."""

_RECENT_BYTES: Final = 500
"""Bytes that a request in it takes besides its body."""


class _Recent(NamedTuple):
    """A request that was put: its sequence number, its row (id, signal, items, priority, checksum, body), its destinations."""

    sequence: int
    row: tuple[str, str, int, int, int, bytes]
    destinations: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self.row[-1]) + _RECENT_BYTES


class Head(NamedTuple):
    """The oldest request that waits for a destination: see `Request` for its id.

    Attributes:
        retried: Whether it was set aside, and `tensormeter spool retry` has put it back into the queue.
    """

    sequence: int
    id: str
    retried: bool


class Retried(NamedTuple):
    """What `Spool.retry` has found.

    Attributes:
        requests: Requests, or parts of some, that wait for their destination again.
        items: Data points and log records in those.
        damaged: Items that cannot be read any more; they count as lost.
        given_up: Items whose contents a full spool has deleted; they stay set aside.
    """

    requests: int
    items: int
    damaged: int
    given_up: int


class Spool:
    """An open spool. Not thread-safe; see the module's text."""

    def __init__(self, path: Path, *, durability: Durability = "flush", max_bytes: int | None = None) -> None:
        """Open, or make.

        Args:
            path: The database.
            durability: See the module's text.
            max_bytes: Room for everything in it; no limit if None.

        Raises:
            SpoolError: Not a spool, one of another version, or the disk refuses.
        """
        self.path = path
        self._durability: Durability = durability
        self._max_bytes = max_bytes
        self._changes: tuple[int, int] | None = None
        self._counts: dict[str, int] = {}
        self._losses: dict[str, int] | None = None
        self._done: tuple[str, int] | None = None
        self._reserve = Reserve(path)
        self.missing: set[str] = set()
        """What the file system lacks: see `missing_features`."""
        self.elsewhere = 0
        """Requests that wait in another file, and count as pending."""
        self._recent: dict[int, _Recent] = {}
        self._recent_bytes = 0
        """What was put last and may still wait, for the case that the disk cannot be read any more."""
        try:
            self._open(durability)
        except SpoolFullError:
            if not self._reserve.give():
                raise
            self._open(durability)

    def _open(self, durability: Durability) -> None:
        path = self.path
        for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
            # Of a link, SQLite says what is behind it.
            if not os.path.islink(file) and (reason := oddity(file)):
                raise SpoolError(f"cannot open the spool: {reason}")
        if _names_another_file(path.with_name(f"{path.name}-journal")):
            raise SpoolError(
                f"{path}-journal names another file, which SQLite would delete; no run makes such a journal: remove it"
            )
        with contextlib.suppress(OSError):  # SQLite will say what is wrong
            make_file(path)
            for suffix in ("-wal", "-shm", "-journal"):  # SQLite gives them the mode of the database when it makes them
                if (beside := path.with_name(path.name + suffix)).exists():
                    make_file(beside)
        try:
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
            # A flipped bit may leave what is no UTF-8: it is read, does not match its checksum, and is counted.
            self._database.text_factory = _text
        except ERRORS as error:
            raise SpoolError(f"cannot open the spool {path}: {error}") from error
        try:
            self.missing = missing_features(path.parent)
            self._set_synchronous("fsync")
            if "maps" in self.missing:  # only in this mode can SQLite read a log that was written elsewhere
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            log = not self.missing and not network_filesystem(path.parent)
            self._database.execute(f"PRAGMA journal_mode = {'WAL' if log else 'TRUNCATE'}")
            self._database.execute("PRAGMA locking_mode = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.execute("PRAGMA trusted_schema = OFF")
            with self.transaction():
                schema.prepare(self._database, path)
            self._set_synchronous(durability)
        except ERRORS as error:
            self._database.close()
            raise named(error, f"cannot open the spool {path}", path) from error
        except SpoolError:
            self._database.close()
            raise

    def close(self) -> None:
        """Carries the log over into the file, if nobody else has it open; that is synced with any durability."""
        if self._durability == "none":
            with contextlib.suppress(*ERRORS):  # it is closed already
                self._set_synchronous("flush")
        self._database.close()

    def _set_synchronous(self, durability: Durability) -> None:
        """Sync as a durability demands, if the file system can."""
        mode = "OFF" if "fsync" in self.missing else _SYNCHRONOUS[durability]
        self._database.execute(f"PRAGMA synchronous = {mode}")

    def cursor(self, process: str, lane: int) -> Cursor:
        """How far a lane has been read into this spool."""
        row = self._sealed("cursor", "process = ? AND lane = ?", process, lane)
        return Cursor(row[2], row[3]) if row else Cursor()

    def life(self, process: str) -> tuple[bool, bool]:
        """Whether the start and the end of a process have been put into the spool."""
        row = self._sealed("process", "process = ?", process)
        return (bool(row[1]), bool(row[2])) if row else (False, False)

    def aggregates(self, process: str) -> dict[str, str]:
        """The states of a process's aggregated streams, as `put` was given them."""
        return {stream: state for _, stream, state in self._all_sealed("aggregate", "process = ?", process)}

    def processes(self) -> list[tuple[str, bool, str]]:
        """The processes that have put something: (process, whether its end is here, its origin or "")."""
        rows = self._rows(
            "SELECT process, ended, coalesce(description, '') FROM process LEFT JOIN origin USING (process) ORDER BY process"
        )
        return [(str(process), bool(ended), str(description)) for process, ended, description in rows]

    @contextlib.contextmanager
    def _durable(self) -> Iterator[None]:
        """The transactions inside, and all before them, are synced."""
        self._set_synchronous("fsync")
        try:
            yield
        finally:
            self._set_synchronous(self._durability)

    def last_time(self, process: str) -> int:
        """Time of the last row of a process that is here, in nanoseconds; 0 if there is none."""
        row = self._fetch("SELECT max(last_time) FROM cursor WHERE process = ?", process)
        return row[0] if row and isinstance(row[0], int) else 0

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
        """Store requests of one process for some destinations, and how far its lanes and its life have come, atomically.

        Requests for no destination are not stored. `aggregates` are the states of those aggregated streams that have changed,
        `report` is what one of the requests reports of losses.
        `origin` says where the process runs, once, in words of the caller's; then all of this is durable, whatever the spool's
        durability is.

        Raises:
            SpoolError: The disk refuses, or what is left of it is needed for marking requests as delivered; then nothing of
                it is stored.
        """
        to = tuple(destinations)
        if not to:
            requests = ()
        self._leave_room(_PAGES + sum(len(request.body) for request in requests))
        fresh: dict[int, _Recent] = {}
        with self._durable() if origin else contextlib.nullcontext(), self.transaction():
            for request in requests:
                recent = self._insert(request, to)
                fresh[recent.sequence] = recent
            if origin:
                self._write("origin", process, origin)
            for lane, cursor in cursors.items():
                self._write("cursor", process, lane, cursor.position, cursor.last_time)
            for stream, state in aggregates.items():
                self._write("aggregate", process, stream, state)
            self._write("process", process, int(started), int(ended))
            if report is not None:
                resource, dropped, told = map(json.dumps, (report.resource, report.dropped, report.told))
                # Of the others, only what they have reported of the spool's losses matters; there may be thousands of children.
                self._database.execute("DELETE FROM report WHERE told = '{}'")
                self._write("report", report.process, resource, dropped, told, time.time_ns())
        self._remember(fresh)
        if self._max_bytes is not None and requests:
            self._make_room(self._max_bytes)

    @property
    def recent(self) -> "list[_Recent]":
        """The requests that were put last by this object, as far as they may still wait, and as far as they are small."""
        return list(self._recent.values())

    def next(self, destination: str) -> tuple[int, Request] | None:
        """The oldest request that a destination has neither accepted nor rejected, with its sequence number."""
        seen = None
        while True:
            row = self._fetch(
                "SELECT sequence FROM pending WHERE destination = ? ORDER BY sequence LIMIT 1",
                destination,
            )
            if row is None:
                return None
            if row[0] == seen:
                raise SpoolDamagedError(f"the spool {self.path} is damaged: request {seen} waits and is not there")
            seen = row[0]
            request = self.read(seen)
            if request is not None:
                return seen, request

    def oldest(self) -> Request | None:
        """The oldest request that waits for any destination and is intact; None if there is none. Nothing is counted."""
        for row in self._fetch_all("SELECT id, signal, body, items, checksum FROM request ORDER BY sequence LIMIT 10"):
            if intact(row[0], row[1], row[3], row[2], row[4]):
                return Request(*row[:4])
        return None

    def head(self, destination: str, signals: Sequence[Signal] = SIGNALS, *, after: int = 0) -> Head | None:
        """The oldest request of some signals that a destination has neither accepted nor rejected, unchecked.

        A request whose signal is damaged counts as one of any signal; `read` detects the damage.

        Args:
            destination: Name of the destination.
            signals: Signals of the request.
            after: Sequence number that the request's exceeds.
        """
        row = self._fetch(
            "SELECT sequence, id, retried FROM pending JOIN request USING (sequence) "
            f"WHERE destination = ? AND sequence > ? AND {_of(signals)} ORDER BY sequence LIMIT 1",
            destination,
            after,
        )
        return None if row is None else Head(row[0], str(row[1]), bool(row[2]))

    def withdraw(self, destination: str, signal: Signal) -> int:
        """Take everything of a signal that waits for a destination out of its queue. Returns how many items that were."""
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
        """One request; None if it is not there, or damaged, which is logged and counted."""
        row = self._fetch("SELECT id, signal, body, items, checksum FROM request WHERE sequence = ?", sequence)
        if row is None:
            return None
        batch, signal, body, items, expected = row
        if intact(batch, signal, items, body, expected):
            return Request(batch, signal, body, items)
        lost = self.discard(sequence, "damaged")
        logger.error(
            "%s: request %d (%s) does not match its checksum; it is not sent, and its %d items count as lost (damaged)",
            self.path,
            sequence,
            signal if signal in SIGNALS else "of an unknown signal",
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
            refused: Number of items that the receiver left out and that were not counted before.
            durability: State of the receiver's disk. The request stays until it is durable there; None deletes it at once.
            sent: Description of how the request was sent, as for `kept.keep`.
            signals: Signals of the other requests that `durability` is about.

        Returns:
            Whether other requests wait again, because the receiver may have lost them.
        """
        recalled = False

        def write() -> None:
            nonlocal recalled
            self._count_loss("refused", refused)
            if durability is not None:
                keep(self._database, destination, sequence, durability, sent)
            else:
                self._retire(destination, sequence)
            recalled = bool(signals) and settle(self._database, destination, _of(signals), durability)

        if (destination, sequence) == self._done:
            # No number is used twice: the database has deleted the request, and shows it again.
            raise SpoolDamagedError(f"the spool {self.path} is damaged: request {sequence} cannot be deleted")
        self._mark(write)
        self._done = None if recalled else (destination, sequence)
        return recalled

    def settle(
        self, destination: str, durability: ReceiverDurability | None, signals: Sequence[Signal] = SIGNALS
    ) -> bool:
        """Act on what a receiver says of its disk, as `done` does."""
        recalled = False

        def write() -> None:
            nonlocal recalled
            recalled = settle(self._database, destination, _of(signals), durability)

        self._mark(write)
        if recalled:
            self._done = None
        return recalled

    def remember(self, destination: str, sequence: int, sent: str) -> None:
        """Store how a request that waits has been sent so far; see `kept.remember`."""
        self._mark(lambda: remember(self._database, destination, sequence, sent))

    def sent_before(self, destination: str, sequence: int) -> str | None:
        """How a request that waits has been sent so far; None if it has not, "" if it was not divided."""
        row = self._fetch("SELECT sent FROM kept WHERE destination = ? AND sequence = ?", destination, sequence)
        return None if row is None else str(row[0])

    def kept(self) -> int:
        """Requests that are accepted, and not known to be on the receiver's disk, counted once for each destination."""
        return self._count("SELECT count(*) FROM kept WHERE epoch != ''")

    def keeps(self, destination: str, signals: Sequence[Signal] = SIGNALS) -> bool:
        """Whether there are any of a destination."""
        query = "SELECT 1 FROM kept JOIN request USING (sequence) WHERE destination = ? AND epoch != '' AND "
        return self._fetch(f"{query} {_of(signals)} LIMIT 1", destination) is not None

    def forget_kept(self, destinations: Sequence[str]) -> None:
        """Forget what was accepted by other destinations than these: nobody will ask those how far their disks are."""
        with self.transaction():
            forget_kept(self._database, f"destination NOT IN ({', '.join('?' * len(destinations))})", *destinations)

    def quarantine(self, destination: str, sequence: int, reason: str) -> None:
        """The destination will never accept the request: set it aside, for people to look at."""

        def write() -> None:
            self._database.execute(
                "INSERT OR IGNORE INTO quarantine (destination, id, reason, signal, items, priority, checksum, body) "
                "SELECT ?, id, ?, signal, items, priority, checksum, body FROM request WHERE sequence = ?",
                (destination, reason, sequence),
            )
            self._retire(destination, sequence)

        self._mark(write)

    def quarantine_part(self, destination: str, part: Request, reason: str) -> None:
        """The destination will never accept a part of a request: set that part aside."""
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
        """Put what receivers have rejected back into the queues of their destinations, under the same ids.

        The next requests of a destination are sent whether or not it has refused their kinds before.
        """
        requests = items = damaged = given_up = 0
        with self.transaction():
            rows = self._database.execute(
                "SELECT number, destination, id, signal, items, priority, checksum, body FROM quarantine ORDER BY number"
            ).fetchall()
            for number, destination, batch, signal, count, priority, expected, body in rows:
                if body == b"" and count:  # a full spool has given up what it held
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
                # Among them may be events with older counts of losses: report the losses again, after them.
                for row in self._all_sealed("report", "1 ORDER BY time DESC LIMIT 1"):
                    self._write("report", *row[:3], json.dumps(json.loads(row[3]) | {"retried": 0}), row[4])
        return Retried(requests, items, damaged, given_up)

    def discard(self, sequence: int, reason: str) -> int:
        """Give a request up, for all destinations, and count what was in it. Returns how many items that were."""
        with self.transaction():
            found = self._database.execute("SELECT items FROM request WHERE sequence = ?", (sequence,)).fetchone()
            items = 0
            if found is not None:
                known = [row[2] for row in self._all_sealed("pending", "sequence = ?", sequence)]
                # A damaged row may say anything about its own size; `pending` has its size as well.
                items = found[0] if reason != "damaged" and isinstance(found[0], int) else max([1, *known])
                self._count_loss(reason, items)
            self._database.execute("DELETE FROM request WHERE sequence = ?", (sequence,))
        return items

    def count_loss(self, reason: str, items: int) -> None:
        """Remember that so many items were lost for a reason."""
        with self.transaction():
            self._count_loss(reason, items)

    def losses(self) -> dict[str, int]:
        """Items that will never arrive, by reason, without those in quarantine."""
        self._changed()
        if self._losses is None:
            self._losses = {reason: items for reason, items, _ in self._all_sealed("loss", "1 ORDER BY reason")}
        return self._losses

    def unsaid_losses(self) -> dict[str, int]:
        """Those of them that `say_losses` has not marked."""
        rows = self._all_sealed("loss", "items > said ORDER BY reason")
        return {reason: items - said for reason, items, said in rows}

    def say_losses(self) -> None:
        """Mark all losses as said: a command has told a person about them."""
        with self.transaction():
            for reason, items, _ in self._all_sealed("loss", "items > said"):
                self._write("loss", reason, items, items)

    def reports(self) -> list[Report]:
        """What each process has reported of losses in the last event about them; the process that reported last comes last."""
        return [
            Report(process, *map(json.loads, (resource, dropped, told)))
            for process, resource, dropped, told, _ in self._all_sealed("report", "1 ORDER BY time")
        ]

    def pending(self) -> int:
        """Requests that some destination has neither accepted nor rejected, counted once for each."""
        count = self._count("SELECT count(*) FROM pending")
        if not count:
            self._forget_recent()
        return count + self.elsewhere

    @property
    def last_pending(self) -> int:
        """What `pending` was when it was last counted, without asking the disk."""
        return self._counts.get("SELECT count(*) FROM pending", 0) + self.elsewhere

    @property
    def last_losses(self) -> dict[str, int]:
        """What `losses` were when they were last read, without asking the disk."""
        return dict(self._losses or {})

    def pending_through(self, sequence: int, signals: Sequence[Signal] = SIGNALS) -> int:
        """Those of them that are of some signals, and whose sequence number is at most this one."""
        row = self._fetch(
            f"SELECT count(*) FROM pending JOIN request USING (sequence) WHERE sequence <= ? AND {_of(signals)}",
            sequence,
        )
        return int(row[0]) if row else 0

    def last_sequence(self) -> int:
        """The sequence number of the request that was put last, also if it is delivered already; 0 if none was."""
        row = self._fetch("SELECT seq FROM sqlite_sequence WHERE name = 'request'")
        return int(row[0]) if row else 0

    def abandoned(self, destinations: Iterable[str]) -> set[str]:
        """For whom something waits that is none of these destinations."""
        return self.waiting_items().keys() - {*destinations}

    def waiting_items(self) -> dict[str, int]:
        """Data points and log records that wait, by destination."""
        return dict(self._rows("SELECT destination, sum(items) FROM pending GROUP BY destination ORDER BY destination"))

    def pending_items(self) -> int:
        """Data points and log records in those."""
        return self._count("SELECT coalesce(sum(items), 0) FROM pending")

    def quarantined_items(self) -> int:
        """Data points and log records that a destination has rejected."""
        return self._count("SELECT coalesce(sum(items), 0) FROM quarantine")

    def contents(self) -> list[tuple[str, str, str, int, int, int]]:
        """What waits, for people: (destination, signal, priority, requests, items, bytes)."""
        rows = self._rows(
            "SELECT destination, signal, priority, count(*), sum(request.items), sum(length(body)) "
            "FROM pending JOIN request USING (sequence) GROUP BY destination, signal, priority "
            "ORDER BY destination, signal DESC, priority"
        )
        names = {int(priority): priority.name.lower() for priority in Priority}
        return [(row[0], str(row[1]), names.get(row[2], "damaged"), *row[3:]) for row in rows]

    def rejections(self) -> list[tuple[str, str, int]]:
        """What was rejected: (destination, reason, items)."""
        return self._rows("SELECT destination, reason, sum(items) FROM quarantine GROUP BY destination, reason")

    def forget_rejections(self) -> None:
        """Delete what was rejected."""
        with self.transaction():
            self._database.execute("DELETE FROM quarantine")

    def used_bytes(self) -> int:
        """What the requests and all that belongs to them take of the file."""
        return self._bytes_of("page_count") - self._bytes_of("freelist_count")

    def keep_room(self) -> bool:
        """Keep what room on the disk `done` and `quarantine` need when others have filled it. Returns whether it is there.

        To be called often.
        """
        return self._reserve.keep(self._growth() + _MARKING)

    def save_to(self, path: Path) -> None:
        """Write a copy, also when the file has been deleted meanwhile.

        Raises:
            SpoolError: The disk refuses.
        """
        try:
            with contextlib.suppress(OSError):
                make_file(path)
            for suffix in (
                "-wal",
                "-shm",
                "-journal",
            ):  # of a file that is gone: SQLite would play them back into the copy
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            with closing(sqlite3.connect(path)) as copy:
                self._database.backup(copy)
        except OSError as error:
            raise SpoolError(f"cannot copy the spool to {path}: {error}") from error
        except ERRORS as error:
            raise named(error, f"cannot copy the spool to {path}") from error

    def carry_over(self) -> None:
        """Carry SQLite's log over into the database, and empty it, if the disk has room for that."""
        with contextlib.suppress(*ERRORS):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def check(self) -> None:
        """Look through the whole file.

        Raises:
            SpoolDamagedError: It is not as it should be.
        """
        try:
            schema.check(self._database, self.path)
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def _mark(self, write: Callable[[], None]) -> None:
        """Write what became of a request, if need be into the room that is kept for it."""
        try:
            with self.transaction():
                write()
        except SpoolFullError:
            self._shorten_log()
            with self.transaction():
                write()

    def _leave_room(self, size: int) -> None:
        """Who takes the last room could not mark anything as delivered any more, and would send the same again and again."""
        if self._has_room(size):
            return
        if self._has_log():
            self._shorten_log()
        while not self._has_room(size):
            with self.transaction():
                given_up = give_up_kept(self._database)
            if not given_up:
                break
        if not self._has_room(size):
            raise SpoolFullError(f"cannot write to the spool {self.path}: the disk is full but for what delivery needs")

    def _has_log(self) -> bool:
        with contextlib.suppress(OSError):
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size > 0
        return False

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more in SQLite's log, and then in the file, leave enough."""
        free, kept = self._reserve.room()
        growth = self._growth() + size - self._bytes_of("freelist_count")
        return free >= size and free + kept >= max(0, growth) + _MARKING

    def _growth(self) -> int:
        """Bytes by which the file will grow when SQLite's log is carried over into it."""
        with contextlib.suppress(OSError):
            return max(0, self._bytes_of("page_count") - self.path.stat().st_size)
        return 0

    def _bytes_of(self, count: str) -> int:
        """Pages that SQLite counts, by the pragma's name, in bytes."""
        return int(self._fetch(f"PRAGMA {count}")[0]) * int(self._fetch("PRAGMA page_size")[0])  # type: ignore[index]

    def _shorten_log(self) -> None:
        """Carry SQLite's log over into the database, with the room that is kept for that, and empty it; as far as that goes."""
        self._reserve.give()
        self.carry_over()

    def _make_room(self, max_bytes: int) -> None:
        if self.used_bytes() <= max_bytes:
            return
        from tensormeter.agent.spool.eviction import sacrifice  # decodes requests: rarely needed

        while self.used_bytes() > max_bytes:
            with self.transaction():
                given_up = sacrifice(self._database)
                if given_up is None:
                    return
                self._count_loss(*given_up)

    def _remember(self, fresh: "dict[int, _Recent]") -> None:
        self._recent |= fresh
        self._recent_bytes += sum(recent.size for recent in fresh.values())
        while self._recent_bytes > _MOST_RECENT_BYTES:
            self._recent_bytes -= self._recent.pop(next(iter(self._recent))).size

    def _forget_recent(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0

    def _insert(self, request: Encoded, destinations: Sequence[str]) -> "_Recent":
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
        return _Recent(sequence, row, tuple(destinations))

    def _count_loss(self, reason: str, items: int) -> None:
        if items:
            row = self._sealed("loss", "reason = ?", reason)
            before, said = row[1:] if row else (0, 0)
            self._write("loss", reason, before + items, said)

    def _write(self, table: str, *row: str | int, replace: bool = True) -> None:
        """Put a row with its checksum into one of the small tables, in a transaction."""
        marks = ", ".join("?" * (len(row) + 1))
        self._database.execute(
            f"INSERT {'OR REPLACE ' if replace else ''}INTO {table} ({schema.SEALED[table]}, checksum) VALUES ({marks})",
            (*row, seal(*row)),
        )

    def _sealed(self, table: str, condition: str, *arguments: str | int) -> tuple[Any, ...] | None:
        """The row of a small table, without its checksum.

        Raises:
            SpoolDamagedError: It does not match that.
        """
        rows = self._all_sealed(table, condition, *arguments)
        return rows[0] if rows else None

    def _all_sealed(self, table: str, condition: str, *arguments: str | int) -> list[tuple[Any, ...]]:
        rows = self._fetch_all(f"SELECT {schema.SEALED[table]}, checksum FROM {table} WHERE {condition}", *arguments)
        if not all(map(schema.is_sealed, rows)):
            raise SpoolDamagedError(
                f"the spool {self.path} is damaged: a row of the table {table} does not match its checksum"
            )
        return [row[:-1] for row in rows]

    def _retire(self, destination: str, sequence: int) -> None:
        for table in ("pending", "kept"):
            self._database.execute(
                f"DELETE FROM {table} WHERE destination = ? AND sequence = ?", (destination, sequence)
            )
        self._database.execute(FORGET, (sequence,))

    def _count(self, query: str) -> int:
        """A count, which is asked for many times a second: counted again only when something has changed."""
        self._changed()
        if query not in self._counts:
            self._counts[query] = int(self._fetch(query)[0])  # type: ignore[index]
        return self._counts[query]

    def _changed(self) -> bool:
        """Whether anything has been written by anyone since the last call; then what was counted is forgotten."""
        changes = (int(self._fetch("PRAGMA data_version")[0]), self._database.total_changes)  # type: ignore[index]
        if self._changes == changes:
            return False
        self._changes = changes
        self._counts.clear()
        self._losses = None
        return True

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query).fetchall()
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def _fetch(self, query: str, *arguments: str | int) -> tuple[Any, ...] | None:
        rows = self._fetch_all(query, *arguments)
        return rows[0] if rows else None

    def _fetch_all(self, query: str, *arguments: str | int) -> list[tuple[Any, ...]]:
        try:
            with closing(self._database.execute(query, arguments)) as result:
                return result.fetchall()
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def transaction(self) -> Transaction:
        """All statements of the block, or none of them."""
        return Transaction(self._database, self.path)


def _of(signals: Sequence[Signal]) -> str:
    """A condition on the column `signal`: one of these, or damaged."""
    others = ", ".join(f"'{signal}'" for signal in SIGNALS if signal not in signals)
    return f"signal NOT IN ({others})" if others else "1"


def _names_another_file(journal: Path) -> bool:
    """Whether SQLite would look into another file when it plays this journal back, and delete that when it is done.

    It does so for several databases in one transaction, which no spool ever has. Others may have the spool open: their locks are
    on the database, so that closing the journal gives none of them up.
    """
    try:
        with open(open_file(journal, os.O_RDONLY), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(_SUPER_JOURNAL)))
            return file.read() == _SUPER_JOURNAL
    except OSError:  # there is none, or SQLite will say what is wrong
        return False


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
