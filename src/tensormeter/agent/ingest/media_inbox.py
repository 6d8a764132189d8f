"""Inbox for media, which converts the media files next to a ring to log records."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensormeter.conventions.semconv import RUN_CONFIG
from tensormeter.disk.private import open_file
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Event
from tensormeter.otlp.media import Alert, Image, Media, Table, Text, TooLargeError
from tensormeter.ring.file import media_directory

__all__ = ["Inbox", "Piece"]


@dataclass(frozen=True)
class Piece:
    """A media file.

    Attributes:
        number: Position in the order of logging, starting at 1.
        path: Path of the file.
    """

    number: int
    path: Path

    def event(self) -> Event:
        """Return the contents of the file as a log record.

        Raises:
            TooLargeError: The contents exceed their limit.
            EncodingError: The file is damaged.
        """
        line, _, data = self._read().partition(b"\n")
        try:
            header = json.loads(line)
            if header["event"] == RUN_CONFIG:
                return Event(RUN_CONFIG, header["time"], {"config": header["body"]["config"]})
            media = _media(header["event"], header["key"] or "", header["body"], data)
            return media.event(header["time"], header["step"])
        except TooLargeError as error:
            if header["event"] == Table.EVENT and error.kind != "table":
                raise TooLargeError("table", f"table {header['key']!r}: {error}") from None
            raise
        except (ValueError, KeyError, TypeError, ImportError) as error:
            raise EncodingError(f"{self.path.name}: {type(error).__name__}: {error}") from None

    def _read(self) -> bytes:
        with open(open_file(self.path, os.O_RDONLY), "rb") as file:
            return file.read()


class Inbox:
    """The media files of one process. Only the agent's main thread may use it."""

    def __init__(self, ring_path: Path, taken: int) -> None:
        """
        Args:
            ring_path: Path of the process's ring.
            taken: Number of the last piece in the spool. Files up to this number are leftovers of a killed agent, and
                are deleted.
        """
        self._folder = media_directory(ring_path)
        for piece in self.pieces():
            if piece.number <= taken:
                piece.path.unlink(missing_ok=True)

    def pieces(self) -> Iterator[Piece]:
        """Yield the waiting files in order."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        for name in sorted(names):
            if name.isdecimal():
                yield Piece(int(name), self._folder / name)


def _media(event: str, key: str, body: dict[str, Any], data: bytes) -> Media:
    match event:
        case Table.EVENT:
            return _table(key, body, data)
        case Text.EVENT:
            return Text(key, **body)
        case Alert.EVENT:
            return Alert(**body)
        case Image.EVENT:
            return _image(key, body, data)
        case _:
            raise EncodingError(f"unknown event {event!r}")


def _table(key: str, body: dict[str, Any], data: bytes) -> Table:
    images, start = [], 0
    for image in body.get("images", ()):
        images.append(_image("", image, data[start : start + image["size"]]))
        start += image["size"]
    rows = [[images[cell["image"]] if isinstance(cell, dict) else cell for cell in row] for row in body["rows"]]
    return Table(key, body["columns"], rows)


def _size(data: bytes) -> tuple[int, int]:
    """Return the width and height of an encoded image; 0 if they are unknown."""
    try:
        import PIL.Image

        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.size
    except (ImportError, OSError, ValueError):
        return 0, 0


def _image(key: str, body: dict[str, Any], data: bytes) -> Image:
    """Return an image, encoding raw pixels as PNG. An encoded image is kept as it is."""
    if "content_type" in body:
        return Image(key, data, body["content_type"], *_size(data), body["caption"])
    import PIL.Image

    shape = tuple(body["shape"])
    pixels = np.frombuffer(data, body["dtype"]).reshape(shape)
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(pixels.astype(np.float64)), 0, 1) * 255).round().astype(np.uint8)
    image = PIL.Image.fromarray(pixels[:, :, 0] if shape[2] == 1 else pixels)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=3)
    return Image(key, encoded.getvalue(), "image/png", shape[1], shape[0], body["caption"])
