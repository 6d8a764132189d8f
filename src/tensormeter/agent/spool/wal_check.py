"""Check of the write-ahead log that a killed process left, before SQLite opens the log.

SQLite reads a log up to the first frame that does not match its checksum, and silently drops the rest. The log's index
(`-shm`) survives its processes and contains the length of the log. Without an index, frames of the same log after the
first bad frame show that transactions are missing. Sources: SQLite's file format, section 4; for the index, "WAL-mode
file format".

A process that reads a file and closes it releases its locks on that file, so this process must not have the spool open.
"""

import errno
import os
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tensormeter.disk.atomic import write_file
from tensormeter.disk.boot import written_before_boot
from tensormeter.disk.private import open_file
from tensormeter.disk.wal_checksum import checksum, word_sums
from tensormeter.logger import get_logger

__all__ = ["LogState", "mend_log"]

logger: Final = get_logger("tensormeter.agent")

_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_INDEX_HEADER: Final = 48
_INDEX_VERSION: Final = 3007000
_MOST_BYTES: Final = 256 << 20


class LogState(NamedTuple):
    """State of a log.

    Attributes:
        lost: Whether transactions are lost.
        torn: Whether frames follow the log's last complete transaction. A later check could take these frames for part
            of the log, so the log should be checkpointed and emptied.
    """

    lost: bool
    torn: bool


@dataclass(frozen=True)
class _Index:
    """Contents of a log's index."""

    frames: int
    """Number of committed frames."""
    carried_over: int
    """Number of committed frames that are already in the database."""
    salts: bytes


def mend_log(database: Path) -> "LogState":
    """Check the log that a killed process left, and keep a copy if it is damaged.

    If all frames of a damaged log are in the database, the log is removed, because SQLite would replay older contents
    from it.

    After a power failure, the end of a log and its index may contain anything, so only SQLite's rule applies: the log
    ends at the first bad frame. Lost data is then noticed because processes have no end event (`cut_processes`).

    Args:
        database: Path of the spool. This process must not have it open.

    Returns:
        State of the log.
    """
    index = _index(database.with_name(f"{database.name}-shm"))  # read before the log, which only grows
    path = database.with_name(f"{database.name}-wal")
    try:
        log = _read(path)
    except FileNotFoundError:
        log = b""
    except OSError:  # SQLite will report what is wrong
        return LogState(lost=False, torn=False)
    good, total, last, salts = _frames(log)
    torn = last > good
    if index is not None and salts is not None and index.salts != salts:
        index = None  # the index belongs to an earlier log
    expected = index.frames if index else total
    if good >= expected or written_before_boot(path, database.with_name(f"{database.name}-shm")):
        return LogState(lost=False, torn=torn)
    whole = index is not None and index.carried_over >= index.frames
    aside = database.with_name(f"{database.name}.damaged-{time.time_ns()}-wal")
    try:
        if whole:
            path.unlink(missing_ok=True)
        elif log:
            write_file(aside, log)
    except OSError as error:
        logger.error("cannot keep a copy of %s: %s", path, error)
    if whole:
        if log:
            logger.warning("%s was damaged; nothing is lost, because the database contains all its data", path)
        return LogState(lost=False, torn=False)
    logger.error(
        "%s is damaged: only %d of %d pages can be read, so the last changes to the spool are lost%s",
        path,
        good,
        expected,
        f"; a copy was saved as {aside.name}" if log else "",
    )
    return LogState(lost=True, torn=True)


def _read(path: Path) -> bytes:
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"{path} is larger than {_MOST_BYTES} bytes")
    return content


def _index(path: Path) -> _Index | None:
    """Read the log's index; return None if it is unreliable."""
    try:
        content = _read(path)[: 2 * _INDEX_HEADER + 4]
    except OSError:
        return None
    first, second = content[:_INDEX_HEADER], content[_INDEX_HEADER : 2 * _INDEX_HEADER]
    if len(content) < 2 * _INDEX_HEADER + 4 or first != second:
        return None
    version, _, _, initialized, _, _, frames, _ = struct.unpack_from("=IIIBBHII", first)
    if (
        version != _INDEX_VERSION
        or not initialized
        or checksum(first[:40], big=sys.byteorder == "big") != struct.unpack_from("=II", first, 40)
    ):
        return None
    (carried_over,) = struct.unpack_from("=I", content, 2 * _INDEX_HEADER)
    return _Index(frames, carried_over, first[32:40])


def _frames(log: bytes) -> tuple[int, int, int, bytes | None]:
    """Count the frames of a log.

    Returns:
        Number of intact frames up to the last commit; number of complete frames of this log; number of the last frame
        that may belong to this log; salts in the log's header, or None if the header is invalid.
    """
    if len(log) < _HEADER:
        return 0, 0, 0, None
    magic, _, size = struct.unpack_from(">III", log)
    salts = log[16:24]
    big = _MAGIC.get(magic) == ">"
    state = checksum(log[:24], big=big)
    if magic not in _MAGIC or state != struct.unpack_from(">II", log, 24) or not 512 <= size <= 65536 or size % 8:
        frame_count = int(len(log) > _HEADER)
        return 0, frame_count, frame_count, None
    whole = (len(log) - _HEADER) // (_FRAME_HEADER + size)
    frames = np.frombuffer(log, np.uint8, whole * (_FRAME_HEADER + size), _HEADER).reshape(whole, _FRAME_HEADER + size)
    header_sums, page_sums = word_sums(frames[:, :8], big=big), word_sums(frames[:, _FRAME_HEADER:], big=big)
    good = total = last = 0
    intact = True
    for number, (header_sum, page_sum) in enumerate(zip(header_sums, page_sums, strict=True)):
        frame = bytes(frames[number, :_FRAME_HEADER])
        if frame[8:16] != salts:
            intact = False  # this frame belongs to an earlier log or is damaged
            continue
        last = number + 1
        if intact:
            state = page_sum.after(header_sum.after(state))
            # The last frame may be half-written; the frames after it were written earlier.
            intact = state == struct.unpack_from(">II", frame, 16)
            if intact and struct.unpack_from(">I", frame, 4)[0]:
                good = total = number + 1
        else:
            total = number + 1
    return good, total, last, salts
