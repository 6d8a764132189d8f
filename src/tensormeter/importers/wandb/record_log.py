"""Reader of the record log in a `.wandb` file.

The log has LevelDB's format: a header of 7 bytes, followed by blocks of 32 KiB with chunks of records. Each chunk has a
checksum, a length and a type.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["is_record_log", "read_records"]

_FILE_HEADER: Final = b":W&B\xe1\xbe\x00"
_BLOCK: Final = 32768
_READ: Final = 64 * _BLOCK
_HEADER: Final = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS: Final = {kind: zlib.crc32(bytes([kind])) for kind in (_WHOLE, _FIRST, _MIDDLE, _LAST)}
_LONGEST_RECORD: Final = 64 << 20


def is_record_log(path: Path) -> bool:
    """Return whether a file begins like a `.wandb` file. Blocks on the disk.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_FILE_HEADER)) == _FILE_HEADER


def read_records(
    path: Path, *, advance: Callable[[int], None] = lambda size: None, damage: Callable[[str], None] = lambda text: None
) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file. Damaged records are skipped. Blocks on the disk.

    Args:
        path: Path of the file.
        advance: Function that is called with the number of bytes read since the last call.
        damage: Function that is called with a description of damage. A file that ends within a record is damaged too.

    Raises:
        OSError: The file cannot be read.
    """
    pieces: list[bytes] = []
    size = 0
    position = 0
    truncated = False
    with path.open("rb") as file:
        while data := file.read(_READ):
            advance(len(data))
            for start in range(0, len(data), _BLOCK):
                block = data[start : start + _BLOCK]
                at = len(_FILE_HEADER) if position == start == 0 else 0
                while at + _HEADER.size <= len(block):
                    checksum, length, kind = _HEADER.unpack_from(block, at)
                    end = at + _HEADER.size + length
                    if kind == 0 and length == 0 and not any(block[at:]):  # space that the writer had reserved
                        break
                    piece = block[at + _HEADER.size : end]
                    if len(piece) < length and len(block) < _BLOCK:
                        truncated = True
                        break
                    if kind not in _SEEDS or zlib.crc32(piece, _SEEDS[kind]) != checksum or len(piece) < length:
                        damage(f"{path}: damaged at byte {position + start + at:,}; skipped the rest of that block")
                        pieces.clear()
                        break
                    at = end
                    if kind == _WHOLE:
                        yield piece
                        continue
                    if kind == _FIRST:
                        pieces, size = [], 0
                    elif not pieces:  # the beginning is damaged
                        continue
                    pieces.append(piece)
                    size += length
                    if size > _LONGEST_RECORD:
                        damage(f"{path}: a record is larger than {_LONGEST_RECORD >> 20} MiB; skipped it")
                        pieces.clear()
                    elif kind == _LAST:
                        yield b"".join(pieces)
                        pieces.clear()
                else:  # a header that is cut off
                    truncated = truncated or (len(block) < _BLOCK and any(block[at:]))
            position += len(data)
    if truncated or pieces:
        damage(f"{path}: ends within a record, as after a killed process; read everything before it")
