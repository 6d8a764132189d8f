"""A check of the write-ahead log before SQLite opens it, because SQLite silently drops damaged parts of it.

SQLite replays the log up to the first frame with a wrong checksum, and treats this frame as the end of the log. A
killed process may leave an uncommitted transaction there. If committed transactions follow, however, the frame is
damaged, and the server may already have responded to the requests in these transactions.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from tensormeter.disk.private import open_file
from tensormeter.disk.wal_checksum import checksum, word_sums

__all__ = ["keep_damaged_log", "lost_transactions"]

_HEADER: Final = 32
_FRAME: Final = 24
_BATCH: Final = 256
"""Number of frames to read at once."""

_COPY: Final = 1 << 20


def lost_transactions(file: Path) -> str | None:
    """Return a message if a write-ahead log has committed transactions that cannot be replayed, or None.

    The check may read the whole log, which takes about two seconds per gigabyte. A log that restarts during the check
    counts as intact.

    Args:
        file: Path of the database.
    """
    path = file.with_name(file.name + "-wal")
    try:
        with path.open("rb") as log:
            header = log.read(_HEADER)
            loss = _inspect(log, header, path.stat().st_size)
            log.seek(0)
            return loss if log.read(_HEADER) == header else None
    except OSError:
        return None


def keep_damaged_log(file: Path) -> Path | None:
    """Copy the write-ahead log before SQLite overwrites it. Return the path of the copy, or None if the copy failed."""
    path = file.with_name(file.name + "-wal")
    copy = file.with_name(file.name + "-wal.damaged")
    if copy.exists():  # the first copy contains the most data
        return None
    try:
        with path.open("rb") as source, os.fdopen(open_file(copy), "wb") as target:
            while part := source.read(_COPY):
                target.write(part)
    except OSError:
        copy.unlink(missing_ok=True)
        return None
    return copy


def _inspect(log: BinaryIO, header: bytes, size: int) -> str | None:
    if len(header) < _HEADER:
        return None
    magic, _, page, _, salt_1, salt_2, *stored = struct.unpack(">8I", header)
    big_endian = {0x377F0682: False, 0x377F0683: True}.get(magic)
    salts = salt_1, salt_2
    # A page size of 1 means 65,536, as elsewhere in SQLite's files.
    if big_endian is None or page < 512 or page > 65536 or page & (page - 1):
        return (
            "the header of the write-ahead log is damaged; data that is only in the log is lost"
            if any(header)
            else None
        )
    state = checksum(header[:24], big=big_endian)
    is_broken_at = 0 if state != tuple(stored) else None
    commits = 0
    number = 0
    frames = (size - _HEADER) // (_FRAME + page)
    for first in range(0, frames, _BATCH):
        count = min(_BATCH, frames - first)
        content = log.read(count * (_FRAME + page))
        count = len(content) // (_FRAME + page)
        rows = np.frombuffer(content, np.uint8, count * (_FRAME + page)).reshape(count, _FRAME + page)
        frame_headers = np.ascontiguousarray(rows[:, :_FRAME]).view(">u4")
        if is_broken_at == 0 and first == 0:  # the salts in the header may also be damaged
            salts = int(frame_headers[0][2]), int(frame_headers[0][3])
        sums = None
        if is_broken_at is None:
            sums = word_sums(np.concatenate((rows[:, :8], rows[:, _FRAME:]), axis=1), big=big_endian)
        for index in range(count):
            number = first + index + 1
            _, committed, frame_1, frame_2, *frame_sum = frame_headers[index].tolist()
            if is_broken_at is None:
                assert sums is not None
                state = sums[index].after(state)
                if (frame_1, frame_2) != salts or state != tuple(frame_sum):
                    is_broken_at = number
            elif (frame_1, frame_2) == salts and committed:
                commits += 1
    if not commits:
        return None
    where = f"frame {is_broken_at} of {number}" if is_broken_at else "its header"
    return (
        f"the write-ahead log is damaged at {where}: {commits} later transactions were committed but cannot be read; "
        "their points and events are missing unless senders resend them"
    )
