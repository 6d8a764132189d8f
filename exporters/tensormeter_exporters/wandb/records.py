"""Reader for a run's `.wandb` file, which finds the last row that wandb has written.

The file is a log in LevelDB's format: a header of 7 bytes, followed by blocks of 32 KiB with chunks of records. Each
chunk has a checksum, a length and a type. wandb's own reader is available only in Go.
"""

import struct
import zlib
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

__all__ = ["WandbFile"]

_FILE_HEADER: Final = 7
_BLOCK: Final = 32768
_HEADER: Final = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


class WandbFile:
    """Reader of a `.wandb` file. Each `read` call reads the complete records that were added since the previous call.

    Attributes:
        path: Path of the file, which may not exist yet.
        last_step: W&B step of the last row; -1 if there are no rows. Rows are ordered by step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_step = -1
        self._at = _FILE_HEADER

    def read(self) -> None:
        """Read to the end of the file. Blocks while it accesses the disk.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return
        start = at = self._at
        parts = b""
        while True:
            room = _BLOCK - at % _BLOCK
            if room < _HEADER.size:
                at += room
                room = _BLOCK
            here = at - start
            if here + _HEADER.size > len(data):
                return
            checksum, length, kind = _HEADER.unpack_from(data, here)
            piece = data[here + _HEADER.size : here + _HEADER.size + length]
            if len(piece) < length or checksum != zlib.crc32(piece, zlib.crc32(bytes([kind]))):
                return
            at += _HEADER.size + length
            parts = piece if kind in (_WHOLE, _FIRST) else parts + piece
            if kind in (_WHOLE, _LAST):
                self._note(parts)
                self._at = at

    def _note(self, data: bytes) -> None:
        try:
            record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
        except DecodeError:  # written by another version of wandb
            return
        if record.WhichOneof("record_type") == "history":
            self.last_step = max(self.last_step, record.history.step.num)
