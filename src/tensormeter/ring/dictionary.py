"""The dictionary of a ring: an append-only file next to the ring that holds metadata, streams and layouts.

An entry is ``length | kind | CRC-32 | 0``, four words of 4 bytes, followed by the payload, which is padded to 8 bytes. The CRC
covers the kind and the payload. A position without an entry holds zeros.
The writer reserves disk space in blocks before it needs them, so that a full disk is noticed before an entry is written in part.
"""

import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file
from tensormeter.ring.format import EntryKind

__all__ = ["Dictionary"]

_HEAD: Final = struct.Struct("<IIIxxxx")
_BLOCK: Final = 1 << 20
_ALIGNMENT: Final = 8


class Dictionary:
    """A dictionary file. Writers construct it with `create`, and readers with `open`. Any thread may call `append`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.published = memoryview(bytearray(8)).cast("q")
        """Writer: one word, in which `append` stores the position up to which readers may read."""
        self._descriptor = descriptor
        # At exit, an agent on a thread may still be reading. The system then closes the descriptor.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._reserved = 0
        self._claimed = 0
        self._appends = 0
        self._lock = threading.RLock()  # reentrant, because a signal handler may log
        self._position = 0

    @classmethod
    def create(cls, path: Path, size: int = 0) -> "Dictionary":
        """Create an empty dictionary, with reserved space for at least `size` bytes of entries.

        Raises:
            OSError: The file could not be created, for example because the file system is full.
        """
        path.unlink(missing_ok=True)
        dictionary = cls(path, open_file(path))
        try:
            dictionary._reserve(size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return dictionary

    @classmethod
    def open(cls, path: Path) -> "Dictionary":
        """Open an existing dictionary for reading.

        Raises:
            OSError: The file cannot be opened.
        """
        return cls(path, open_file(path, os.O_RDONLY))

    def append(self, kind: EntryKind, payload: bytes) -> bool:
        """Append an entry.

        Returns:
            False if the entry cannot be stored, for example because the file system is full.
        """
        with self._lock:
            size = _HEAD.size + _align(len(payload))
            start = self._claimed
            try:
                self._reserve(start + size)
            except OSError:
                return False
            start = self._claimed  # a signal handler may have appended an entry
            self._claimed = start + size
            self._appends += 1
            try:
                return self._write(start, _entry(kind, payload))
            except BaseException:  # such as Ctrl-C: readers must still find later entries
                self._write(start, _entry(EntryKind.VOID, bytes(len(payload))))
                raise
            finally:
                self._appends -= 1
                if self._appends == 0:  # otherwise this is a signal handler that has interrupted an earlier append
                    self.published[0] = self._claimed

    def entries(self, end: int | None) -> Iterator[tuple[EntryKind, bytes]]:
        """Iterate over the entries since the last call.

        Args:
            end: Position up to which the writer has published entries. None if the writer is gone. In this case, read all
                complete entries of the file, also those that were not published.
        """
        limit = os.fstat(self._descriptor).st_size if end is None else end
        chunk, start = b"", self._position
        while self._position + _HEAD.size <= limit:
            offset = self._position - start
            if len(chunk) - offset < _HEAD.size:
                chunk, start, offset = (
                    self._read(self._position, min(limit - self._position, _BLOCK)),
                    self._position,
                    0,
                )
                if len(chunk) < _HEAD.size:
                    return
            length, kind, checksum = _HEAD.unpack_from(chunk, offset)
            size = _HEAD.size + _align(length)
            if self._position + size > limit:
                return
            if length == 0:  # reserved space, or an entry that a signal handler's entry has overtaken
                rest = chunk[offset:].lstrip(b"\0")
                self._position = start + (len(chunk) - len(rest)) // _ALIGNMENT * _ALIGNMENT
                continue
            if len(chunk) - offset < size:
                chunk, start, offset = self._read(self._position, size), self._position, 0
            payload = chunk[offset + _HEAD.size : offset + _HEAD.size + length]
            self._position += size
            if checksum == _checksum(kind, payload) and kind in _KINDS:
                yield EntryKind(kind), payload

    def _write(self, start: int, entry: bytes) -> bool:
        try:
            return os.pwrite(self._descriptor, entry, start) == len(entry)
        except OSError:
            return False

    def _read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def _reserve(self, size: int) -> None:
        """Reserve disk space for the first `size` bytes of the file."""
        while self._reserved < size:
            upto = max(self._reserved + _BLOCK, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, self._reserved, upto - self._reserved)
            else:  # macOS
                os.ftruncate(self._descriptor, upto)
            self._reserved = upto


_KINDS: Final = frozenset(int(kind) for kind in EntryKind if kind is not EntryKind.VOID)


def _entry(kind: EntryKind, payload: bytes) -> bytes:
    head = _HEAD.pack(len(payload), kind, _checksum(kind, payload))
    return head + payload + bytes(_align(len(payload)) - len(payload))


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, kind)


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
