"""Reader of TensorFlow's record files, in which each record has a length and two checksums."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tensormeter.importers.tensorboard.checksums import masked_checksums

__all__ = ["read_records"]

_LENGTH: Final = struct.Struct("<Q")
_HEADER: Final = 12
"""Bytes before a record: its length, and the checksum of the length."""
_FOOTER: Final = 4
_READ: Final = 4 << 20
_LONGEST_RECORD: Final = 256 << 20
_LONGEST_CHECKED: Final = 2048
"""Length up to which the contents are checked, in bytes. Longer records are media, whose formats have checksums."""


def read_records(
    path: Path, *, advance: Callable[[int], None] = lambda size: None, damage: Callable[[str], None] = lambda text: None
) -> Iterator[bytes]:
    """Yield the records of a file. Damaged records are skipped. Blocks on the disk.

    Args:
        path: Path of the file.
        advance: Function that is called with the number of bytes read since the last call.
        damage: Function that is called with a description of damage. A file that ends within a record is damaged too.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        position = 0
        rest = b""
        wanted = _READ
        while chunk := file.read(max(_READ, wanted)):
            advance(len(chunk))
            data = rest + chunk
            starts, lengths, end, wanted = _find_records(data)
            sound, intact = _check(data, starts, lengths)
            for start, length, is_sound in zip(starts[:intact], lengths[:intact], sound, strict=False):
                if is_sound:
                    yield data[start : start + length]
                else:
                    damage(f"{path}: the record at byte {position + start:,} is damaged; skipped it")
            if intact < len(starts) or wanted < 0:
                at = starts[intact] - _HEADER if intact < len(starts) else end
                damage(f"{path}: damaged at byte {position + at:,}; left out the rest of the file")
                return
            rest = data[end:]
            position += end
        if rest:
            damage(f"{path}: ends within a record, as after a killed process; read everything before it")


def _find_records(data: bytes) -> tuple[list[int], list[int], int, int]:
    """Return the start and length of each complete record, the end of the last one, and the bytes that the next one needs.

    That number is negative if the next length is invalid.
    """
    starts: list[int] = []
    lengths: list[int] = []
    at, size = 0, len(data)
    unpack = _LENGTH.unpack_from
    while at + _HEADER <= size:
        (length,) = unpack(data, at)
        end = at + _HEADER + length + _FOOTER
        if end > size:
            return starts, lengths, at, -1 if length > _LONGEST_RECORD else end - size
        starts.append(at + _HEADER)
        lengths.append(length)
        at = end
    return starts, lengths, at, 0


def _check(data: bytes, starts: list[int], lengths: list[int]) -> tuple[list[bool], int]:
    """Return whether each record is sound, and the number of records before the first damaged length."""
    if not starts:
        return [], 0
    buffer = np.frombuffer(data, np.uint8)
    first, sizes = np.array(starts, np.int64), np.array(lengths, np.int64)
    words = np.ndarray((len(data) - 3,), "<u4", data, 0, (1,))
    headers = masked_checksums(buffer, first - _HEADER, np.full(len(first), _LENGTH.size, np.int64))
    damaged = np.flatnonzero(headers != words[first - _FOOTER])
    intact = int(damaged[0]) if len(damaged) else len(first)
    first, sizes = first[:intact], sizes[:intact]
    small = sizes <= _LONGEST_CHECKED
    sound = np.ones(intact, bool)
    sound[small] = masked_checksums(buffer, first[small], sizes[small]) == words[(first + sizes)[small]]
    return sound.tolist(), intact
