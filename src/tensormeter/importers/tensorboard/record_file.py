"""Reader of TensorFlow's record files, in which each record has a length and two checksums."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.tensorboard.checksums import masked_checksums

__all__ = ["RecordBlock", "read_blocks"]

_LENGTH: Final = struct.Struct("<Q")
_HEADER: Final = 12
"""Bytes before a record: its length, and the checksum of the length."""
_FOOTER: Final = 4
_READ: Final = 4 << 20
_LONGEST_RECORD: Final = 64 << 20
"""Length up to which a record is read, in bytes. Longer ones are graphs, or media beyond the limit."""
_LONGEST_CHECKED: Final = 2048
"""Length up to which the contents are checked, in bytes. Longer records are media, whose formats have checksums."""


class RecordBlock(NamedTuple):
    """Consecutive records of a file.

    Attributes:
        data: Bytes of the file, with all records.
        starts: Offset of each record in `data`, int64, shape (n,).
        lengths: Length of each record in bytes, int64, shape (n,).
    """

    data: bytes
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def record(self, index: int) -> bytes:
        """Return the bytes of a record."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])]


def read_blocks(
    path: Path, *, advance: Callable[[int], None] = lambda size: None, damage: Callable[[str], None] = lambda text: None
) -> Iterator[RecordBlock]:
    """Yield the records of a file in blocks of about 4 MiB. Damaged records are skipped. Blocks on the disk.

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
            found, sizes, end, wanted = _find_records(data)
            starts, lengths = np.array(found, np.int64), np.array(sizes, np.int64)
            sound = _check(data, starts, lengths)
            for start in starts[: len(sound)][~sound].tolist():
                damage(f"{path}: the record at byte {position + start:,} is damaged; skipped it")
            if sound.any():
                yield RecordBlock(data, starts[: len(sound)][sound], lengths[: len(sound)][sound])
            if len(sound) == len(starts) and wanted < 0 and (length := _sound_length(data, end)) is not None:
                damage(f"{path}: the record at byte {position + end:,} has {length >> 20:,} MiB; skipped it")
                position += end + _HEADER + length + _FOOTER
                rest, wanted = b"", 0
                file.seek(position)
                continue
            if len(sound) < len(starts) or wanted < 0:
                at = found[len(sound)] - _HEADER if len(sound) < len(starts) else end
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


def _sound_length(data: bytes, at: int) -> int | None:
    """Return the length of the record whose header is at an offset; None if the length is damaged."""
    (length,) = _LENGTH.unpack_from(data, at)
    checksums = masked_checksums(np.frombuffer(data, np.uint8), np.array([at]), np.array([_LENGTH.size]))
    return int(length) if checksums[0] == int.from_bytes(data[at + 8 : at + _HEADER], "little") else None


def _check(data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each record is sound, for the records before the first one with a damaged length."""
    if not len(starts):
        return np.zeros(0, bool)
    buffer = np.frombuffer(data, np.uint8)
    words: NDArray[np.uint32] = np.ndarray((len(data) - 3,), "<u4", data, 0, (1,))
    headers = masked_checksums(buffer, starts - _HEADER, np.full(len(starts), _LENGTH.size, np.int64))
    damaged = np.flatnonzero(headers != words[starts - _FOOTER])
    intact = int(damaged[0]) if len(damaged) else len(starts)
    starts, lengths = starts[:intact], lengths[:intact]
    small = lengths <= _LONGEST_CHECKED
    sound: NDArray[np.bool_] = np.ones(intact, bool)
    sound[small] = masked_checksums(buffer, starts[small], lengths[small]) == words[(starts + lengths)[small]]
    return sound
