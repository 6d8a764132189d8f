"""Inbox for media, which converts the media files next to a ring to log records."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tensormeter.agent.background.items import SUFFIX, Item, event_of, is_slow, read_item, unread_body
from tensormeter.agent.ingest.media_encoding import encode_audio, encode_image, encode_video, image_size
from tensormeter.disk.private import open_file
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Event
from tensormeter.otlp.media import (
    Alert,
    Audio,
    Figure,
    Html,
    Image,
    Images,
    Media,
    Table,
    Text,
    TooLargeError,
    Video,
)
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

    @property
    def is_slow(self) -> bool:
        """Whether the event of the file takes long to make; see `agent.background`.

        Raises:
            EncodingError: The file cannot be read.
        """
        try:
            return is_slow(self.path)
        except OSError as error:
            raise EncodingError(f"{self.path.name}: {error}") from None

    def hand_over(self, process: str, resource: Mapping[str, Any]) -> Item:
        """Return the file's item, and rename the file, so that it is no longer among the waiting ones.

        Raises:
            EncodingError: The file is damaged.
            OSError: The file cannot be renamed.
        """
        item = read_item(self.path, process, dict(resource))
        path = self.path.with_suffix(SUFFIX)
        os.rename(self.path, path)
        return replace(item, path=path)

    def unread_event(self, process: str, resource: Mapping[str, Any], problem: str) -> Event:
        """Return an event for a file that `is_slow`, without what takes long, which the problem explains.

        Raises:
            EncodingError: The file is damaged.
        """
        item = read_item(self.path, process, dict(resource))
        return event_of(item, unread_body(item, problem))

    def event(self) -> Event:
        """Return the contents of the file as a log record.

        Raises:
            TooLargeError: The contents exceed their limit.
            EncodingError: The file is damaged or cannot be read.
        """
        header: dict[str, Any] = {}
        try:
            with open(open_file(self.path, os.O_RDONLY), "rb") as file:
                line, _, data = file.read().partition(b"\n")
            header = json.loads(line)
            media = _media(header["event"], header["key"] or "", header["body"], data)
            return media.event(header["time"], header["step"])
        except TooLargeError as error:
            if header["event"] == Table.EVENT and error.kind != "table":
                raise TooLargeError("table", f"table {header['key']!r}: {error}") from None
            raise
        except EncodingError:
            raise
        except Exception as error:  # an encoder may raise anything
            raise EncodingError(f"{self.path.name}: {type(error).__name__}: {error}") from None


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

    def handed_over(self) -> Iterator[Path]:
        """Yield the files that an earlier agent has handed over, in order."""
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(path for path in self._folder.iterdir() if path.suffix == SUFFIX)


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
        case Images.EVENT:
            return Images(key, _images(body, data))
        case Video.EVENT:
            return _video(key, body, data)
        case Audio.EVENT:
            return _audio(key, body, data)
        case Figure.EVENT:
            return Figure(key, **body)
        case Html.EVENT:
            return Html(key, **body)
        case _:
            raise EncodingError(f"unknown event {event!r}")


def _table(key: str, body: dict[str, Any], data: bytes) -> Table:
    images = _images(body, data)
    rows = [[images[cell["image"]] if isinstance(cell, dict) else cell for cell in row] for row in body["rows"]]
    return Table(key, body["columns"], rows, body.get("chart"))


def _images(body: dict[str, Any], data: bytes) -> list[Image]:
    """Return the images of a table or a list, which have no keys."""
    images, start = [], 0
    for image in body.get("images", ()):
        images.append(_image("", image, data[start : start + image["size"]]))
        start += image["size"]
    return images


def _image(key: str, body: dict[str, Any], data: bytes) -> Image:
    """Return an image, encoding raw pixels as PNG. An encoded image is kept as it is."""
    if "content_type" in body:
        return Image(key, data, body["content_type"], *image_size(data), body["caption"])
    height, width, _ = body["shape"]
    return Image(key, encode_image(body, data), "image/png", width, height, body["caption"])


def _video(key: str, body: dict[str, Any], data: bytes) -> Video:
    """Return a video, encoding raw frames. An encoded video is kept as it is."""
    if "content_type" in body:
        size = image_size(data) if body["content_type"].startswith("image/") else (0, 0)
        return Video(key, data, body["content_type"], *size, caption=body["caption"])
    frames, height, width, _ = body["shape"]
    content_type, encoded = encode_video(body, data)
    return Video(key, encoded, content_type, width, height, frames, body["caption"])


def _audio(key: str, body: dict[str, Any], data: bytes) -> Audio:
    """Return an audio clip, encoding raw samples as WAV. An encoded clip is kept as it is."""
    if "content_type" in body:
        return Audio(key, data, **{name: body[name] for name in ("content_type", "sample_rate", "caption")})
    return Audio(key, encode_audio(body, data), "audio/wav", body["sample_rate"], body["caption"])
