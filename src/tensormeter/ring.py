"""The ring file: a process's rows in shared memory, and all that is needed to deliver them.

A training process writes it, the agent reads it, and neither waits for the other.
The file outlives its writer: after SIGKILL every row whose write had ended can be read by anyone who opens the file.

Layout (little-endian words of 8 bytes; offsets in bytes from the start of the file)::

    0      header       4096 bytes, the words named in `HeaderWord`; the table of lanes begins at word 64, the agent's
                        words on a failing delivery at byte 2048, how long log calls took at byte 3200
    4096   dictionary   append-only entries: length | kind | JSON, padded to 8
    ...    lanes        one for each writing thread: 128 bytes of the words named in `LaneWord`, then the rows

A dictionary entry is published by writing its length last.
Entry 1 is the metadata (resource, settings, run), which a later entry may replace; the others describe row layouts.

A row is ``mark | time | step | value ... | mark``.
The mark is ``position << 13 | layout``: the row's position (bytes written to the lane before it, over all laps, a multiple
of 8, up to 2**50) and, in the low 16 bits, the id of its layout.
The last word of a row is stored last, so a row is there when both marks are right, and a writer killed at any instant
leaves whole rows followed by something that is not one.
Rows never straddle the end of a lane: a mark with the layout `WRAP` sends the reader back to its start, and one with
`SKIP`, followed by a size, covers a row whose writing failed.
On machines that reorder stores (arm64), a reader must let the writer's stores settle between seeing the marks and reading
the values: see `tensormeter.pipeline.reader`.

Values are float64 (`d`), int64 (`q`), float64 stored by a device (`D`), or one of the columns of distributions
(see `tensormeter.distribution`).
A device's word holds `PENDING` until the device has stored its value over it; `LOST` says that it never will.
Both are NaNs that arithmetic does not produce.

The writer holds a POSIX record lock on the file's `.lock` companion for as long as it lives.
Such a lock is not inherited over fork, so children that outlive the writer do not look like it.
"""

import enum
import fcntl
import json
import mmap
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from tensormeter.errors import RingError

__all__ = [
    "LOST",
    "PENDING",
    "SKIP",
    "WRAP",
    "Column",
    "Drop",
    "EntryKind",
    "HeaderWord",
    "LaneWord",
    "Layout",
    "LogPath",
    "RingFile",
    "SpoolLoss",
    "State",
    "Stream",
    "media_directory",
    "row_bytes",
]

MAGIC: Final = 0x474E_4952_5445_4D54  # "TMETRING" in the file
VERSION: Final = 2

HEADER_BYTES: Final = 4096
LANE_TABLE: Final = 64
TROUBLE: Final = 2048
"""Offset of the agent's words on a failing delivery: their length, then at most TROUBLE_BYTES of UTF-8."""
TROUBLE_BYTES: Final = 1024
LOG_DURATIONS: Final = 3200
"""Offset of how long log calls took, for each `LogPath`: the sum in nanoseconds, then the counts of DURATION_BUCKETS buckets."""
SHORTEST_DURATION_BITS: Final = 6
DURATION_BUCKETS: Final = 26
"""Bucket i counts durations of more than ``2 ** (i + 5)`` and up to ``2 ** (i + 6)`` ns; the first and the last are open."""
LANE_HEADER_BYTES: Final = 128
MAX_LANES: Final = 64

LAYOUT_BITS: Final = 16
POSITION_SHIFT: Final = 13
"""A mark is ``position << 13 | layout``: positions are multiples of 8, so the low 16 bits are free for the layout."""
WRAP: Final = 0xFFFF
SKIP: Final = 0xFFFE
MAX_LAYOUT: Final = 0xFFFD

PENDING: Final = 0x7FF7_A5C3_5A3C_C3A5
LOST: Final = 0x7FF7_A5C3_5A3C_105D


class HeaderWord(enum.IntEnum):
    """Word indices in the file's header. Those from AGENT_PID on are written by the agent, the others by the writer."""

    MAGIC = 0
    VERSION = 1
    FILE_BYTES = 2
    DICTIONARY_BYTES = 3
    LANES = 4
    WRITER_PID = 5
    CREATED = 6
    STATE = 7
    SIGTERM = 8
    """Time at which the writer was told to end, or 0."""
    AGENT_PID = 16
    PENDING_REQUESTS = 17
    """Requests spooled for an online destination and neither accepted nor rejected yet."""
    STALLED = 18
    """1 while a destination cannot be reached, and it makes no sense to wait for it. `RingFile.trouble` says why."""
    QUARANTINED_ITEMS = 20
    """Points and events that a receiver has rejected for good."""
    ENDED = 19
    """1 once everything that the writer left, and the news of its end, is in the spool."""
    SPOOL_LOSSES = 32
    """The first of the counters of items, one for each `SpoolLoss`."""


class LaneWord(enum.IntEnum):
    """Word indices in a lane's header. TAIL is written by the agent, the others by the writer."""

    TAIL = 0
    """Position up to which rows are in the spool and their space is free."""
    HEAD = 1
    """Position after the last row; written when the writer finishes, to know when everything has been read."""
    DROPS = 2
    """The first of the counters, one for each `Drop`."""


class Drop(enum.IntEnum):
    """Why something that was logged could not be recorded. Rows are counted for RING_FULL, values for the others."""

    RING_FULL = 0
    UNSUPPORTED_VALUE = 1
    TOO_MANY_LAYOUTS = 2
    DEVICE_UNFINISHED = 3
    MEDIA_FULL = 4


class SpoolLoss(enum.IntEnum):
    """Why something that was recorded will not arrive. Of all processes of the run on this node together."""

    SPOOL_FULL_SYSTEM = 0
    SPOOL_FULL_MEDIA = 1
    SPOOL_FULL_SCALARS = 2
    DAMAGED = 3
    """Could not be read from the disk any more."""
    REFUSED = 4
    """A receiver took the rest of the request, but not these."""


class State(enum.IntEnum):
    """What the writer says of itself. A dead writer whose state is still OPEN has crashed, or was preempted if it had been
    told to end.
    """

    OPEN = 0
    FINISHED = 1
    FAILED = 2
    PREEMPTED = 3


class LogPath(enum.IntEnum):
    """Which way a log call went."""

    DIRECT = 0
    """One C call, for a known row of plain numbers. One call in 64 is timed."""
    GENERAL = 1
    """Through `Recorder.log`. Every call is timed."""


class EntryKind(enum.IntEnum):
    """Kinds of dictionary entries."""

    METADATA = 1
    LAYOUT = 2


@dataclass(frozen=True)
class Stream:
    """What values are of: one metric with one attribute set. (OpenTelemetry's data model calls this a metric stream.)

    Attributes:
        name: The metric's name.
        kind: `gauge`: each value is a point. The values of the others are aggregated by the agent: `counter`,
            `up_down_counter`, `histogram`, `exponential`; and, as they are totals already, `observable_counter` and
            `observable_up_down_counter`.
        unit: UCUM unit, or "".
        description: For people, or "".
        attributes: (key, value) pairs; JSON values.
        scope: The instrumentation scope as (name, version, schema URL, attributes as pairs), or () for tensormeter's own.
        bounds: Of the buckets of a `histogram`; or (most buckets of a side, highest scale) of an `exponential` one.
    """

    name: str
    kind: str = "gauge"
    unit: str = ""
    description: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()
    scope: tuple[Any, ...] = ()
    bounds: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name} | {
            field.name: value
            for field in fields(self)
            if field.name != "name" and (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Stream":
        return cls(**{key: _tuples(value) for key, value in entry.items()})


@dataclass(frozen=True)
class Column:
    """One value of a row.

    Attributes:
        stream: What it is a value of.
        code: How it is stored.
        words: How many words it takes.
    """

    stream: Stream
    code: str
    words: int = 1


@dataclass(frozen=True)
class Layout:
    """What the words of a row mean.

    Attributes:
        id: 1 to MAX_LAYOUT; the low 16 bits of the mark.
        columns: In the order of their words.
        stepped: Whether the step means anything; not in rows of instruments.
    """

    id: int
    columns: tuple[Column, ...]
    stepped: bool = True

    @classmethod
    def of_gauges(cls, id: int, names: Iterable[str], codes: str) -> "Layout":
        """The layout of a row of plain gauges."""
        return cls(id, tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.stream.name for column in self.columns)

    @property
    def codes(self) -> str:
        return "".join(column.code for column in self.columns)

    @property
    def row_bytes(self) -> int:
        return row_bytes(sum(column.words for column in self.columns))

    def to_json(self) -> dict[str, Any]:
        """Compact, because the dictionary's space is bounded: a plain gauge is its name."""
        streams = [column.stream.to_json() for column in self.columns]
        entry: dict[str, Any] = {
            "id": self.id,
            "codes": self.codes,
            "streams": [stream["name"] if len(stream) == 1 else stream for stream in streams],
        }
        if any(column.words != 1 for column in self.columns):
            entry["words"] = [column.words for column in self.columns]
        return entry if self.stepped else entry | {"stepped": False}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Layout":
        streams = [
            Stream(stream) if isinstance(stream, str) else Stream.from_json(stream) for stream in entry["streams"]
        ]
        words = entry.get("words", [1] * len(streams))
        columns = tuple(map(Column, streams, entry["codes"], words))
        return cls(entry["id"], columns, entry.get("stepped", True))


def media_directory(ring_path: Path) -> Path:
    """Where tables, images and texts of a ring's process wait for the agent: files, named by the order of logging."""
    return ring_path.with_suffix(".media")


def row_bytes(words: int) -> int:
    """Bytes of a row whose values take so many words."""
    return 8 * (words + 4)


class RingFile:
    """A mapped ring file.

    Constructed by `create` (in the writer) or `open` (in a reader).
    Every method is safe on any thread; none is meant for the hot path, which uses `buffer` and `words` directly.
    """

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.buffer = mapping
        self.words = memoryview(mapping).cast("q")
        lanes = self.words[HeaderWord.LANES]
        self.lanes = [
            (self.words[LANE_TABLE + 2 * i], self.words[LANE_TABLE + 2 * i + 1]) for i in range(lanes)
        ]  # (offset of the lane's header, bytes for rows)
        self._dictionary_end = HEADER_BYTES + self.words[HeaderWord.DICTIONARY_BYTES]
        self._next_entry = HEADER_BYTES
        self._append = threading.RLock()  # re-entered by a signal handler that logs
        self._lock_file: int | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        metadata: Mapping[str, Any],
        *,
        buffer_bytes: int,
        lanes: int = 8,
        dictionary_bytes: int = 1 << 20,
    ) -> "RingFile":
        """Make, reserve and lock a ring file; it appears under `path` when it is whole.

        The first lane, the one of the thread that logs first, gets half of `buffer_bytes`; the others share the rest.

        Raises:
            RingError: The file system refuses, for example because it is full.
        """
        payload = json.dumps(metadata).encode()
        dictionary = _align(dictionary_bytes + len(payload), mmap.PAGESIZE)
        first = _align(buffer_bytes // 2, mmap.PAGESIZE) if lanes > 1 else _align(buffer_bytes, mmap.PAGESIZE)
        other = _align((buffer_bytes - first) // (lanes - 1), mmap.PAGESIZE) if lanes > 1 else 0
        table, offset = [], HEADER_BYTES + dictionary
        for i in range(lanes):
            size = max(first if i == 0 else other, mmap.PAGESIZE)
            table.append((offset, size - LANE_HEADER_BYTES))
            offset += size
        temporary = path.with_suffix(".new")
        lock_file = _lock(path.with_suffix(".lock"))
        try:
            mapping = _map_new(temporary, offset)
            words = memoryview(mapping).cast("q")
            words[HeaderWord.VERSION] = VERSION
            words[HeaderWord.FILE_BYTES] = offset
            words[HeaderWord.DICTIONARY_BYTES] = dictionary
            words[HeaderWord.LANES] = lanes
            words[HeaderWord.WRITER_PID] = os.getpid()
            words[HeaderWord.CREATED] = time.time_ns()
            for i, (start, size) in enumerate(table):
                words[LANE_TABLE + 2 * i] = start
                words[LANE_TABLE + 2 * i + 1] = size
            ring = cls(path, mapping)
            ring._lock_file = lock_file
            if not ring._append_entry(EntryKind.METADATA, payload):
                raise RingError(f"ring file {path}: the run's metadata of {len(payload)} bytes does not fit")
            words[HeaderWord.MAGIC] = MAGIC
            temporary.rename(path)
        except BaseException as error:
            os.close(lock_file)
            path.with_suffix(".lock").unlink(missing_ok=True)
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise RingError(f"cannot reserve {offset} bytes for the ring file {path}: {error.strerror}") from error
            raise
        _owned.add(path)
        return ring

    @classmethod
    def open(cls, path: Path) -> "RingFile":
        """Map an existing ring file, for reading rows and for writing the agent's words.

        Raises:
            RingError: Not a ring file, or one of another version.
        """
        try:
            with path.open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise RingError(f"cannot map the ring file {path}: {error}") from error
        head = memoryview(mapping)[:HEADER_BYTES].cast("q") if len(mapping) >= HEADER_BYTES else None
        if (
            head is None
            or head[HeaderWord.MAGIC] != MAGIC
            or head[HeaderWord.FILE_BYTES] != len(mapping)
            or not 0 < head[HeaderWord.LANES] <= MAX_LANES
        ):
            raise RingError(f"{path} is not a ring file; move it out of the way")
        if head[HeaderWord.VERSION] != VERSION:
            raise RingError(
                f"{path} has ring version {head[HeaderWord.VERSION]}, this tensormeter reads {VERSION}; "
                "deliver it with the version that wrote it",
            )
        ring = cls(path, mapping)
        ends = [ring._dictionary_end, *(start + size + LANE_HEADER_BYTES for start, size in ring.lanes)]
        if max(ends) > len(mapping):
            raise RingError(f"{path} is not a whole ring file; move it out of the way")
        return ring

    @property
    def process(self) -> str:
        """Unique id of the writing process: the file's name."""
        return self.path.stem

    @property
    def state(self) -> State:
        return State(self.words[HeaderWord.STATE])

    def writer_alive(self) -> bool:
        """Whether the process that created the file still runs and has not released it."""
        if self.path in _owned:
            return True
        lock_path = self.path.with_suffix(".lock")
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def add_layout(self, layout: Layout) -> bool:
        """Publish a layout, which must happen before its first row. False: the dictionary is full."""
        payload = json.dumps(layout.to_json(), separators=(",", ":")).encode()
        return self._append_entry(EntryKind.LAYOUT, payload)

    @property
    def dictionary_left(self) -> float:
        """Share of the dictionary that is free, from 0 to 1. Meaningful in the writer."""
        return (self._dictionary_end - self._next_entry) / self.words[HeaderWord.DICTIONARY_BYTES]

    def add_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Publish metadata that replaces what was there. False: the dictionary is full."""
        return self._append_entry(EntryKind.METADATA, json.dumps(metadata).encode())

    def entries(self) -> Iterator[tuple[EntryKind, dict[str, Any]]]:
        """The dictionary entries that were published since the last call."""
        while self._next_entry + 16 <= self._dictionary_end:
            index = self._next_entry >> 3
            length = self.words[index]
            if length == 0:
                return
            start = self._next_entry + 16
            payload = json.loads(self.buffer[start : start + length])
            self._next_entry = start + _align(length, 8)
            yield EntryKind(self.words[index + 1]), payload

    def drops(self) -> dict[str, int]:
        """What could not be recorded, by reason, over all lanes; reasons that never occurred are left out."""
        counts = {
            reason.name.lower(): sum(self.words[(start >> 3) + LaneWord.DROPS + reason] for start, _ in self.lanes)
            for reason in Drop
        }
        return {reason: count for reason, count in counts.items() if count}

    def spool_losses(self) -> dict[str, int]:
        """What was recorded and will not arrive, by reason; reasons that never occurred are left out."""
        counts = {reason.name.lower(): self.words[HeaderWord.SPOOL_LOSSES + reason] for reason in SpoolLoss}
        return {reason: count for reason, count in counts.items() if count}

    @property
    def trouble(self) -> str:
        """The agent's last words on a delivery that fails; "" if none does."""
        length = self.words[TROUBLE >> 3]
        return self.buffer[TROUBLE + 8 : TROUBLE + 8 + min(max(length, 0), TROUBLE_BYTES)].decode(errors="replace")

    @trouble.setter
    def trouble(self, text: str) -> None:
        encoded = text.encode(errors="replace")[:TROUBLE_BYTES]
        self.words[TROUBLE >> 3] = 0
        self.buffer[TROUBLE + 8 : TROUBLE + 8 + len(encoded)] = encoded
        self.words[TROUBLE >> 3] = len(encoded)

    def log_durations_offset(self, path: LogPath) -> int:
        """Byte offset of the words that tell how long the log calls of a path took."""
        return LOG_DURATIONS + path * (1 + DURATION_BUCKETS) * 8

    def log_durations(self, path: LogPath) -> tuple[int, list[int]]:
        """How long the log calls of a path took: (sum in nanoseconds, counts by bucket). Written without a lock: a count
        can be missing where several threads log.
        """
        start = self.log_durations_offset(path) >> 3
        total, *counts = self.words[start : start + 1 + DURATION_BUCKETS]
        return total, counts

    def heads(self) -> list[int]:
        """For each lane the position after its last row. Only meaningful once the writer has finished."""
        return [self.words[(start >> 3) + LaneWord.HEAD] for start, _ in self.lanes]

    def tails(self) -> list[int]:
        """For each lane the position up to which its rows are in the spool."""
        return [self.words[(start >> 3) + LaneWord.TAIL] for start, _ in self.lanes]

    def release(self) -> None:
        """Give up the writer's lock: from now on the writer counts as gone. The mapping stays valid."""
        if self._lock_file is not None:
            _owned.discard(self.path)
            os.close(self._lock_file)
            self._lock_file = None

    def remove(self) -> None:
        """Delete the file and its lock. Mappings stay valid until their processes end."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        shutil.rmtree(media_directory(self.path), ignore_errors=True)

    def _append_entry(self, kind: EntryKind, payload: bytes) -> bool:
        with self._append:
            length = len(payload)
            size = 16 + _align(length, 8)
            start = self._next_entry
            if start + size + 8 > self._dictionary_end:
                return False
            self._next_entry = start + size  # no call since it was looked at: a signal handler gets another place
            self.buffer[start + 16 : start + 16 + length] = payload
            self.words[(start >> 3) + 1] = kind
            self.words[start >> 3] = length
            return True


_owned: set[Path] = set()
"""Ring files of this very process. A POSIX lock cannot be tested from the process that holds it, and closing any
descriptor of the lock file would release it; an agent thread in the trainer therefore looks here first."""


def disown_after_fork() -> None:
    """In a forked child: the parent's ring files are not ours. The locks themselves stayed with the parent."""
    _owned.clear()


os.register_at_fork(after_in_child=disown_after_fork)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, all the way down, so that what holds them can be a key."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _align(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _lock(path: Path) -> int:
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise RingError(f"cannot lock {path}: {error.strerror}") from error
    return descriptor


def _map_new(path: Path, size: int) -> mmap.mmap:
    """A new, reserved, prefaulted shared mapping: a full file system is an error here, not a SIGBUS in `log`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:  # macOS
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    finally:
        os.close(descriptor)
