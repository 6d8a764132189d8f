"""Writer of the record log of a `.wandb` file, for records that the installed wandb does not write."""

import struct
import zlib
from collections.abc import Iterable

__all__ = ["BLOCK", "record_log"]

BLOCK = 32768
"""Size of the blocks of a log in bytes."""


def record_log(records: Iterable[bytes]) -> bytes:
    """A log with these records, in chunks that end with their block."""
    log = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, is_first = record, True
        while is_first or rest:
            room = BLOCK - len(log) % BLOCK
            if room < 7:
                log += b"\0" * room
                room = BLOCK
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = (2 if rest else 1) if is_first else (3 if rest else 4)
            checksum = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            log += struct.pack("<IHB", checksum, len(piece), kind) + piece
            is_first = False
    return bytes(log)
