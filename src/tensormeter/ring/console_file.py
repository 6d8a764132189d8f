"""The file through which a process hands its output to the agent: a ring of chunks in shared memory.

::

    header, 4096 bytes    words (`ConsoleWord`)
    space                 chunks: length, kind, time, then the bytes of the text; a chunk may continue at the start

One process writes the file, and never waits. The agent reads it, and frees its space by advancing `ConsoleWord.TAIL`.
Positions count the bytes of all chunks over all laps. A forked child writes to a separate file.
"""

import contextlib
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tensormeter.disk.private import open_file
from tensormeter.errors import RingError
from tensormeter.ring.format import CONSOLE_HEADER_BYTES, CONSOLE_MAGIC, CONSOLE_VERSION, ConsoleWord

__all__ = ["Chunk", "ConsoleFile", "child_console_file", "child_console_files", "console_file", "relay_console_file"]

_SUFFIX: Final = ".console"
_HEADER: Final = struct.Struct("<IIq")
_pack: Final = _HEADER.pack
_HEAD: Final = int(ConsoleWord.HEAD)
_TAIL: Final = int(ConsoleWord.TAIL)


def console_file(ring_path: Path) -> Path:
    """Return the path of the file for the output of the process with this ring."""
    return ring_path.with_suffix(_SUFFIX)


def relay_console_file(ring_path: Path) -> Path:
    """Return the path of the file for the output that a relay passes on for the process with this ring."""
    return ring_path.with_suffix(f".relay{_SUFFIX}")


def child_console_file(path: Path) -> Path:
    """Return a new path for the output of a forked child. `path` is the parent's file, or the file of another child."""
    return path.with_name(f"{path.name.partition('.')[0]}.{secrets.randbits(40) + 1}{_SUFFIX}")


def child_console_files(ring_path: Path) -> dict[int, Path]:
    """Return the files for the output of a process's forked children, by their numbers."""
    files = {}
    with contextlib.suppress(OSError), os.scandir(ring_path.parent) as entries:
        for entry in entries:
            process, _, rest = entry.name.partition(".")
            number = rest.removesuffix(_SUFFIX)
            if process == ring_path.stem and rest != number and number.isascii() and number.isdecimal():
                files[int(number)] = Path(entry.path)
    return files


class Chunk(NamedTuple):
    """Some output of a process: the text of one `write`, or a log record as JSON.

    Attributes:
        start: Position of the chunk.
        end: Position after the chunk.
        kind: Value of `format.ConsoleKind`.
        time: Time of the call in nanoseconds since the Unix epoch.
        data: Text in UTF-8.
    """

    start: int
    end: int
    kind: int
    time: int
    data: bytes


class ConsoleFile:
    """A mapped file. The writer's methods are not thread-safe."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.words = memoryview(mapping)[:CONSOLE_HEADER_BYTES].cast("q")
        self.size = self.words[ConsoleWord.SIZE]
        self._mapping = mapping
        self._head = self.words[ConsoleWord.HEAD]

    @classmethod
    def create(cls, path: Path, size: int) -> "ConsoleFile":
        """Create a file and reserve its space in memory or on disk, so that a full file system causes an error here.

        Raises:
            OSError: The file cannot be created.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, CONSOLE_HEADER_BYTES + size)
            else:  # macOS
                os.ftruncate(descriptor, CONSOLE_HEADER_BYTES + size)
            mapping = mmap.mmap(descriptor, CONSOLE_HEADER_BYTES + size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        words = memoryview(mapping)[:CONSOLE_HEADER_BYTES].cast("q")
        words[ConsoleWord.VERSION] = CONSOLE_VERSION
        words[ConsoleWord.SIZE] = size
        words[ConsoleWord.WRITER_PID] = os.getpid()
        words[ConsoleWord.MAGIC] = CONSOLE_MAGIC
        return cls(path, mapping)

    @classmethod
    def open(cls, path: Path) -> "ConsoleFile | None":
        """Map an existing file; return None if it is not complete yet.

        Raises:
            OSError: The file cannot be opened.
            RingError: The file is damaged, or of another version.
        """
        descriptor = open_file(path, os.O_RDWR)
        try:
            length = os.fstat(descriptor).st_size
            if length <= CONSOLE_HEADER_BYTES:
                return None
            mapping = mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)
        words = memoryview(mapping)[:CONSOLE_HEADER_BYTES].cast("q")
        if words[ConsoleWord.MAGIC] == 0:
            return None
        if (
            words[ConsoleWord.MAGIC] != CONSOLE_MAGIC
            or words[ConsoleWord.VERSION] != CONSOLE_VERSION
            or words[ConsoleWord.SIZE] != length - CONSOLE_HEADER_BYTES
        ):
            raise RingError(f"{path} is not a console file of this version")
        return cls(path, mapping)

    def put(self, kind: int, time: int, data: bytes) -> int:
        """Append a chunk, and return the position after it; return 0 if there is no space for it. Never waits."""
        head, size, words = self._head, self.size, self.words
        chunk = _pack(len(data), kind, time) + data
        end = head + len(chunk)
        if end - words[_TAIL] > size:
            return 0
        start = head % size
        stop = start + len(chunk)
        if stop <= size:
            self._mapping[CONSOLE_HEADER_BYTES + start : CONSOLE_HEADER_BYTES + stop] = chunk
        else:
            rest = size - start
            self._mapping[CONSOLE_HEADER_BYTES + start :] = chunk[:rest]
            self._mapping[CONSOLE_HEADER_BYTES : CONSOLE_HEADER_BYTES + stop - size] = chunk[rest:]
        self._head = end
        words[_HEAD] = end  # after the chunk, so that the reader sees only complete chunks
        return end

    def count(self, reason: ConsoleWord, lines: int) -> None:
        """Count lines that cannot be delivered."""
        self.words[reason] += lines

    def drops(self) -> dict[str, int]:
        """Return the number of lines that cannot be delivered, by reason. Omit reasons with no lines."""
        words = self.words
        counts = {
            "console_full": words[ConsoleWord.FULL] + words[ConsoleWord.TOO_FAST],
            "console_limit": words[ConsoleWord.OVER_LIMIT],
        }
        return {reason: count for reason, count in counts.items() if count > 0}

    def chunks(self, position: int, end: int) -> Iterator[Chunk]:
        """Yield the chunks between two positions. `position` is the start of a chunk.

        Raises:
            RingError: A chunk or the end is damaged.
        """
        if end - position > self.size:  # zeros would be read as very many empty chunks
            raise RingError(f"{self.path}: the position {end} of the last chunk is damaged")
        while position < end:
            length, kind, time = _HEADER.unpack(self._read(position, _HEADER.size))
            stop = position + _HEADER.size + length
            if stop > end:
                raise RingError(f"{self.path}: a chunk of {length} bytes is damaged")
            yield Chunk(position, stop, kind, time, self._read(position + _HEADER.size, length))
            position = stop

    def _read(self, position: int, length: int) -> bytes:
        start = position % self.size
        if start + length <= self.size:
            start += CONSOLE_HEADER_BYTES
            return self._mapping[start : start + length]
        rest = self.size - start
        return (
            self._mapping[CONSOLE_HEADER_BYTES + start :]
            + self._mapping[CONSOLE_HEADER_BYTES : CONSOLE_HEADER_BYTES + length - rest]
        )
