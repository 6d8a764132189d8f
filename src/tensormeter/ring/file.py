"""Functions that create, open and update ring files, for both the writer and the reader."""

import fcntl
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.unicode_names import printable
from tensormeter.disk.private import oddity, open_file
from tensormeter.errors import RingError
from tensormeter.ring.console_file import child_console_files, console_file, relay_console_file
from tensormeter.ring.dictionary import Dictionary
from tensormeter.ring.documents_file import Documents, DocumentsFile, read_documents
from tensormeter.ring.format import (
    DISK_REPORT,
    DISK_REPORT_BYTES,
    DURATION_BUCKETS,
    HEADER_BYTES,
    LANE_HEADER_BYTES,
    LANE_TABLE,
    LOG_DURATIONS,
    MAGIC,
    MAX_LANES,
    TROUBLE,
    TROUBLE_BYTES,
    VERSION,
    Drop,
    EntryKind,
    HeaderWord,
    LaneWord,
    LogPath,
    SpoolLoss,
    State,
)
from tensormeter.ring.layout import Layout, StreamEntry

__all__ = ["RingFile", "dictionary_file", "documents_file", "is_of_another_version", "is_written", "media_directory"]

_SEPARATOR: Final = "\x1e"
"""ASCII record separator. It separates the agent's reports `trouble`, `set_aside` and `lost` in the file."""


def media_directory(ring_path: Path) -> Path:
    """Return the directory for media items that wait for the agent. The file names are numbers in logging order."""
    return ring_path.with_suffix(".media")


def dictionary_file(ring_path: Path) -> Path:
    """Return the path of the ring's dictionary."""
    return ring_path.with_suffix(".names")


def documents_file(ring_path: Path) -> Path:
    """Return the path of the file with the run's changed documents (see `tensormeter.ring.documents_file`)."""
    return ring_path.with_suffix(".documents")


class RingFile:
    """A memory-mapped ring file. Writers construct it with `create`, and readers with `open`.

    Any thread may call the methods. The hot path accesses `buffer` and `words` directly.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, dictionary: Dictionary) -> None:
        self.path = path.resolve()  # `writer_alive` compares resolved paths
        self.buffer = mapping
        self._dictionary = dictionary
        self._documents = DocumentsFile(documents_file(self.path))
        self.words = memoryview(mapping).cast("q")
        lanes = self.words[HeaderWord.LANES]
        self.lanes = [
            (self.words[LANE_TABLE + 2 * i], self.words[LANE_TABLE + 2 * i + 1]) for i in range(lanes)
        ]  # (offset of the lane's header, size of the lane's space for rows)
        self._lock_file: int | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        metadata: Mapping[str, Any],
        *,
        buffer_bytes: int,
        lanes: int = 8,
    ) -> "RingFile":
        """Create and lock a ring file and its dictionary, and reserve their disk space.

        The file appears at `path` once it is complete.

        The first lane belongs to the thread that creates the recorder. If there are several lanes, the first lane gets half of
        `buffer_bytes`, and the other lanes share the rest.

        Raises:
            RingError: The file could not be created or locked, for example because the file system is full.
        """
        payload = json.dumps(metadata).encode()
        first = _align(buffer_bytes // 2, mmap.PAGESIZE) if lanes > 1 else _align(buffer_bytes, mmap.PAGESIZE)
        other = _align((buffer_bytes - first) // (lanes - 1), mmap.PAGESIZE) if lanes > 1 else 0
        table, offset = [], HEADER_BYTES
        for i in range(lanes):
            size = max(first if i == 0 else other, mmap.PAGESIZE)
            table.append((offset, size - LANE_HEADER_BYTES))
            offset += size
        temporary = path.with_suffix(".new")
        lock_file = _lock(path.with_suffix(".lock"))
        try:
            dictionary = Dictionary.create(dictionary_file(path), len(payload) + mmap.PAGESIZE)
            mapping = _map_new(temporary, offset)
            words = memoryview(mapping).cast("q")
            words[HeaderWord.VERSION] = VERSION
            words[HeaderWord.FILE_BYTES] = offset
            words[HeaderWord.LANES] = lanes
            words[HeaderWord.WRITER_PID] = os.getpid()
            words[HeaderWord.CREATED] = time.time_ns()
            for i, (start, size) in enumerate(table):
                words[LANE_TABLE + 2 * i] = start
                words[LANE_TABLE + 2 * i + 1] = size
            ring = cls(path, mapping, dictionary)
            ring._lock_file = lock_file
            dictionary.published = words[HeaderWord.DICTIONARY_END : HeaderWord.DICTIONARY_END + 1]
            if not dictionary.append(EntryKind.METADATA, payload):
                raise RingError(f"cannot write the run's metadata ({len(payload)} bytes) to {dictionary.path}")
            words[HeaderWord.MAGIC] = MAGIC
            # An agent thread in this process may find the file at once, and must not consider its writer dead.
            _owned.add(ring.path)
            temporary.rename(path)
        except BaseException as error:
            _owned.discard(path.resolve())
            os.close(lock_file)
            path.with_suffix(".lock").unlink(missing_ok=True)
            temporary.unlink(missing_ok=True)
            dictionary_file(path).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise RingError(f"cannot reserve {offset} bytes for the ring file {path}: {error.strerror}") from error
            raise
        return ring

    @classmethod
    def open(cls, path: Path) -> "RingFile":
        """Map an existing ring file, in order to read its rows and to write the agent's words.

        Raises:
            RingError: The file cannot be mapped, is not a complete ring file, or has a different version.
        """
        try:
            with open(open_file(path, os.O_RDWR), "r+b") as file:
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
                f"{path} has ring version {head[HeaderWord.VERSION]}, but this tensormeter reads version {VERSION}; "
                "deliver the run with the tensormeter that recorded it",
            )
        table = head[LANE_TABLE : LANE_TABLE + 2 * head[HeaderWord.LANES]].tolist()
        if max(map(sum, zip(table[::2], table[1::2], strict=True))) + LANE_HEADER_BYTES > len(mapping):
            raise RingError(f"{path} is an incomplete ring file; move it out of the way")
        try:
            dictionary = Dictionary.open(dictionary_file(path))
        except OSError as error:
            raise RingError(f"cannot open the dictionary of the ring file {path}: {error}") from error
        return cls(path, mapping, dictionary)

    @property
    def process(self) -> str:
        """Unique id of the writing process. The file is named after this id."""
        return self.path.stem

    @property
    def state(self) -> State:
        """State that the writer has stored most recently."""
        return State(self.words[HeaderWord.STATE])

    def writer_alive(self) -> bool:
        """Return whether the process that created the file is still running and has not released the file."""
        return is_written(self.path)

    def add_streams(self, first: int, streams: Sequence[StreamEntry]) -> bool:
        """Publish streams. Call this method before `add_layout`, and before writing rows with these streams.

        Args:
            first: Number of the first stream. The others have the following numbers.
            streams: Streams, as returned by `Stream.to_entry`.

        Returns:
            False if the dictionary cannot grow, for example because the file system is full.
        """
        return self._append(EntryKind.STREAMS, {"first": first, "streams": streams})

    def add_layout(self, layout: Layout, numbers: Sequence[int]) -> bool:
        """Publish a layout. Call this method before writing the first row with this layout.

        Args:
            layout: Layout.
            numbers: Numbers of the columns' streams.

        Returns:
            False if the dictionary cannot grow.
        """
        return self._append(EntryKind.LAYOUT, layout.to_json(numbers))

    def add_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Publish metadata. New values replace earlier values with the same names. All other values stay unchanged.

        Returns:
            False if the dictionary cannot grow.
        """
        return self._append(EntryKind.METADATA, metadata)

    def entries(self, *, unpublished: bool = False) -> Iterator[tuple[EntryKind, dict[str, Any]]]:
        """Iterate over the dictionary entries that have been published since the last call.

        Args:
            unpublished: Whether to read complete entries that the writer could not publish before it was killed.
        """
        end = None if unpublished else self.words[HeaderWord.DICTIONARY_END]
        for kind, payload in self._dictionary.entries(end):
            yield kind, json.loads(payload)

    def _append(self, kind: EntryKind, entry: Mapping[str, Any]) -> bool:
        return self._dictionary.append(kind, json.dumps(entry, separators=(",", ":")).encode())

    def write_documents(self, changes: Documents | None, whole: Documents) -> None:
        """Write a change of the run's documents. The reader may see only the result of several changes.

        Args:
            changes: Entries that have been added or replaced, by document; None if entries have been removed.
            whole: All documents that have changed so far, after the change.

        Raises:
            OSError: The change cannot be written.
        """
        self._documents.write(changes, whole)
        self.words[HeaderWord.DOCUMENT_CHANGES] += 1

    def documents(self) -> tuple[dict[str, dict[str, Any]], int] | None:
        """Return the latest documents that have changed, and the time of the last change in nanoseconds.

        Returns:
            None if nothing has changed, or if the file cannot be read.
        """
        return read_documents(documents_file(self.path))

    def drops(self) -> dict[str, int]:
        """Return the total number of points that could not be recorded, by reason. Omit reasons with no points."""
        counts = {
            reason.name.lower(): sum(self.words[(start >> 3) + LaneWord.DROPS + reason] for start, _ in self.lanes)
            for reason in Drop
        }
        return {reason: count for reason, count in counts.items() if count}

    def spool_losses(self) -> dict[str, int]:
        """Return the number of recorded items that cannot be delivered, by reason. Omit reasons with no items."""
        counts = {reason.name.lower(): self.words[HeaderWord.SPOOL_LOSSES + reason] for reason in SpoolLoss}
        return {reason: count for reason, count in counts.items() if count}

    @property
    def trouble(self) -> str:
        """The agent's latest report on failing deliveries, or "" if all deliveries succeed."""
        return printable(self._agent_words()[0])

    @property
    def set_aside(self) -> str:
        """The agent's latest report on quarantined requests, or "" if no receiver has rejected a request."""
        return printable(self._agent_words()[1])

    @property
    def lost(self) -> str:
        """The agent's latest report on items that the agent or a receiver has dropped, or "" if there are none."""
        return printable(self._agent_words()[2])

    def report(self, trouble: str, set_aside: str, lost: str = "") -> None:
        """Write the agent's reports, each truncated to its reserved space. Only the agent calls this method."""
        parts = [
            text.replace(_SEPARATOR, " ").encode(errors="replace")[: TROUBLE_BYTES // 3 - 1]
            for text in (trouble, set_aside, lost)
        ]
        encoded = _SEPARATOR.encode().join(parts).rstrip(_SEPARATOR.encode())
        if encoded == self._agent_bytes():
            return
        self.words[TROUBLE >> 3] = 0
        self.buffer[TROUBLE + 8 : TROUBLE + 8 + len(encoded)] = encoded
        self.words[TROUBLE >> 3] = len(encoded)

    @property
    def disk_report(self) -> str:
        """The agent's latest report on disk problems, or "" if there are none."""
        length = self.words[DISK_REPORT >> 3]
        content = self.buffer[DISK_REPORT + 8 : DISK_REPORT + 8 + min(max(length, 0), DISK_REPORT_BYTES)]
        return bytes(content).decode(errors="replace")

    def report_disk(self, text: str) -> None:
        """Write `disk_report`, truncated to its reserved space. Only the agent calls this method."""
        encoded = text.encode(errors="replace")[:DISK_REPORT_BYTES]
        if text == self.disk_report or encoded.decode(errors="replace") == self.disk_report:
            return
        self.words[DISK_REPORT >> 3] = 0
        self.buffer[DISK_REPORT + 8 : DISK_REPORT + 8 + len(encoded)] = encoded
        self.words[DISK_REPORT >> 3] = len(encoded)
        self.words[HeaderWord.DISK_REPORTS] += 1

    def _agent_words(self) -> list[str]:
        """Return the agent's three reports: `trouble`, `set_aside` and `lost`."""
        parts = self._agent_bytes().decode(errors="replace").split(_SEPARATOR, 2)
        return parts + [""] * (3 - len(parts))

    def _agent_bytes(self) -> bytes:
        length = self.words[TROUBLE >> 3]
        return bytes(self.buffer[TROUBLE + 8 : TROUBLE + 8 + min(max(length, 0), TROUBLE_BYTES)])

    def log_durations_offset(self, path: LogPath) -> int:
        """Return the byte offset of the log call durations for a path."""
        return LOG_DURATIONS + path * (1 + DURATION_BUCKETS) * 8

    def log_durations(self, path: LogPath) -> tuple[int, list[int]]:
        """Return the sum of the log call durations for a path in nanoseconds, and the number of calls in each duration bucket.

        Threads update the counts without a lock, so a call may not be counted if several threads log at the same time.
        """
        start = self.log_durations_offset(path) >> 3
        total, *counts = self.words[start : start + 1 + DURATION_BUCKETS]
        return total, counts

    def head_positions(self) -> list[int]:
        """Return the position after the last row of each lane. Meaningful only after the writer has finished."""
        return [self.words[(start >> 3) + LaneWord.HEAD] for start, _ in self.lanes]

    def tail_positions(self) -> list[int]:
        """Return the position up to which the agent has spooled the rows of each lane."""
        return [self.words[(start >> 3) + LaneWord.TAIL] for start, _ in self.lanes]

    def request_flush(self, positions: Sequence[int]) -> int:
        """Ask the agent to deliver all rows up to the given position in each lane.

        The writer's threads must not call this method at the same time.

        Returns:
            Number of the flush request. The request is complete once `HeaderWord.FLUSHED` has reached this number.
        """
        for (start, _), position in zip(self.lanes, positions, strict=True):
            self.words[(start >> 3) + LaneWord.FLUSH] = position
        number = self.words[HeaderWord.FLUSH_REQUESTS] + 1
        self.words[HeaderWord.FLUSH_REQUESTS] = number
        return number

    def flush_positions(self) -> list[int]:
        """Return the position in each lane up to which the last flush request asks the agent to deliver rows."""
        return [self.words[(start >> 3) + LaneWord.FLUSH] for start, _ in self.lanes]

    def release(self) -> None:
        """Release the writer's lock. Readers then treat the writer as ended. The mapping stays valid."""
        if self._lock_file is not None:
            _owned.discard(self.path)
            os.close(self._lock_file)
            self._lock_file = None

    def remove(self) -> None:
        """Delete the file and all files that accompany it. Existing mappings stay valid."""
        self.path.unlink(missing_ok=True)
        dictionary_file(self.path).unlink(missing_ok=True)
        documents_file(self.path).unlink(missing_ok=True)
        for path in (console_file(self.path), relay_console_file(self.path), *child_console_files(self.path).values()):
            path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        shutil.rmtree(media_directory(self.path), ignore_errors=True)  # does not follow symbolic links


def is_written(path: Path) -> bool:
    """Return whether the process that created a ring file is still running and has not released the file.

    The ring file itself is not opened.

    Raises:
        RingError: The state of the writer is unknown, because the lock file cannot be opened.
    """
    if path in _owned:
        return True
    lock_path = path.with_suffix(".lock")
    try:
        descriptor = open_file(lock_path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RingError(oddity(lock_path) or f"cannot open {lock_path}: {error.strerror}") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def is_of_another_version(path: Path) -> bool:
    """Return whether a file is a ring file with a different format version."""
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            head = memoryview(file.read(HEADER_BYTES)).cast("q")
    except (OSError, TypeError):  # TypeError: the file ends in the middle of a word
        return False
    return len(head) > HeaderWord.VERSION and head[HeaderWord.MAGIC] == MAGIC and head[HeaderWord.VERSION] != VERSION


_owned: set[Path] = set()
"""Ring files that this process writes. A process cannot test a POSIX lock that it holds itself, and closing any descriptor of
the lock file releases the lock. `is_written` therefore checks this set first, because the agent may be a thread in the training
process."""


def disown_after_fork() -> None:
    """Forget the parent process's ring files in a forked child process. The parent keeps its locks."""
    _owned.clear()


os.register_at_fork(after_in_child=disown_after_fork)


def _align(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _lock(path: Path) -> int:
    descriptor = -1
    try:
        descriptor = open_file(path)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise RingError(f"cannot lock {path}: {error.strerror}") from error
    return descriptor


def _map_new(path: Path, size: int) -> mmap.mmap:
    """Create a file, reserve its disk space and map it.

    Because the space is reserved, a full file system causes an error here instead of a SIGBUS in `log`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:  # macOS
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    finally:
        os.close(descriptor)
