"""Tables, images and texts: what a script logs beside numbers.

They are not for the hot path: logging one copies it to a file beside the ring, from where the agent takes it.
What takes longer, such as compressing an image, the agent does.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import (
    CAPTION_CHARACTERS,
    IMAGE_BYTES,
    PIXEL_BYTES,
    TABLE_BYTES,
    TABLE_CELLS,
    TABLE_IMAGES,
    TEXT_BYTES,
    too_large,
)
from tensormeter.conventions.semconv import IMAGE_EVENT, TABLE_EVENT, TEXT_EVENT
from tensormeter.errors import UsageError
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Image", "Media", "Parcel", "Table", "Text", "to_line"]

_BEGINNINGS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


class Parcel:
    """What goes into the file: a description as JSON, and bytes.

    Attributes:
        event: Name of the log record that it becomes.
        body: The record's body, as JSON in one line.
        data: Of an image: encoded if the body has a `content_type`, else rows of pixels, of which it has `shape` and `dtype`.
            Of a table: those of its images, one after the other; the body's `images` say the same of each, and its `size`.
    """

    __slots__ = ("body", "data", "event")

    def __init__(self, event: str, body: Mapping[str, Any] | str, data: bytes = b"") -> None:
        self.event = event
        self.body = body if isinstance(body, str) else json_text(body)
        self.data = data


class Media:
    """Something that is logged and is no number. Made of values, not of references: it can be changed afterwards."""

    def pack(self) -> Parcel:
        """A snapshot of it.

        Raises:
            Refused: It cannot be recorded; larger than its limit, for example.
        """
        raise NotImplementedError


class Table(Media):
    """Rows under named columns: ``run.log({"samples": Table(["text", "loss"], [["a", 0.1], ["b", 0.2]])})``.

    Cells are numbers, strings, booleans, None or an `Image`; NumPy scalars and CPU tensors with one element count as numbers;
    anything else becomes its `str`.

    At most 12 MiB as JSON, 700,000 cells (each row counting as one more), and 256 images of 16 MiB together. A larger table is not
    recorded when it is logged: there is a warning, and it is counted.
    """

    def __init__(self, columns: Sequence[str], data: Iterable[Sequence[Any]] = ()) -> None:
        """
        Args:
            columns: Their names.
            data: Rows.

        Raises:
            UsageError: A row is of another length than the columns.
        """
        self.columns = [text_of(column) for column in columns]
        self._images: list[Image] = []
        self._rows: list[list[Any]] = []
        self._beyond = 0  # rows that are not kept, since the table is too large to be recorded
        self._most_rows = TABLE_CELLS // (len(self.columns) + 1) - 1  # the heading counts as a row
        for row in data:
            self.add(*row)

    def add(self, *row: Any) -> None:
        """Add a row.

        Raises:
            UsageError: As above.
        """
        if len(row) != len(self.columns):
            raise UsageError(f"Table: expected {len(self.columns)} cells ({', '.join(self.columns)}), got {len(row)}")
        images = sum(isinstance(value, Image) for value in row)
        if self._beyond or len(self._rows) >= max(self._most_rows, 0) or len(self._images) + images > TABLE_IMAGES:
            self._beyond += 1
            return
        self._rows.append([self._place(value) if isinstance(value, Image) else _cell(value) for value in row])

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows) + self._beyond

    def _place(self, image: "Image") -> dict[str, int]:
        """A cell that says which of the table's images it shows."""
        self._images.append(image)
        return {"image": len(self._images) - 1}

    def pack(self) -> Parcel:
        if self._most_rows < 0:
            raise _too_large_table(
                f"it has {len(self.columns)} columns, the limit is {TABLE_CELLS // 2}: log it in parts"
            )
        if self._beyond and len(self._rows) < self._most_rows:
            raise _too_large_table(f"it has more than {TABLE_IMAGES} images: log it in parts, or the images next to it")
        if self._beyond:
            raise _too_large_table(
                f"it has {len(self)} rows of {len(self.columns)} cells, the limit is {self._most_rows} such rows: "
                "log it in parts"
            )
        body: dict[str, Any] = {"columns": self.columns, "rows": self._rows}
        text = json_text(body)
        size = json_bytes(body, text)
        if size > TABLE_BYTES:
            raise _too_large_table(too_large(size, TABLE_BYTES, "it", "log it in parts, or leave columns out"))
        data = b"".join(image.data for image in self._images)
        for what, total, limit in (
            ("encoded", sum(image.encoded_size for image in self._images), IMAGE_BYTES),
            ("in pixels", len(data), PIXEL_BYTES),
        ):
            if total > limit:
                advice = "log it in parts, or smaller images"
                raise _too_large_table(too_large(total, limit, f"all its images together ({what})", advice))
        if self._images:
            images = [{**image.body, "size": len(image.data)} for image in self._images]
            text = json_text({**body, "images": images})
        return Parcel(TABLE_EVENT, text, data)


def _too_large_table(words: str) -> Refused:
    return Refused(f"the table is too large; {words}", Drop.TABLE_TOO_LARGE)


class Text(Media):
    """A text, plain or in Markdown."""

    def __init__(self, text: str, *, markdown: bool = False) -> None:
        """
        Args:
            text: Up to 4 MiB as JSON. A longer one is not recorded when it is logged: there is a warning, and it is counted.
            markdown: Whether it is Markdown.
        """
        self._text = text_of(text)
        self._type = "text/markdown" if markdown else "text/plain"

    def pack(self) -> Parcel:
        body = {"text": self._text, "content_type": self._type}
        size, text = len(self._text), ""
        if size <= TEXT_BYTES:
            text = json_text(body)
            size = json_bytes(body, text)
        if size > TEXT_BYTES:
            words = too_large(size, TEXT_BYTES, "the text", "log it in parts")
            raise Refused(words, Drop.TEXT_TOO_LARGE)
        return Parcel(TEXT_EVENT, text)


class Image(Media):
    """A picture, from an array, a tensor on the CPU, a PIL image, a file, or the bytes of a PNG, JPEG, GIF or WebP.

    Arrays are of shape (height, width), (height, width, c), or as torch has it (c, height, width), with c of 1, 3 or 4; uint8, or
    floats from 0 to 1. They become PNG, for which Pillow must be installed.

    At most 16 MiB in its encoded form, and 60 MiB of pixels. A larger one is not recorded: there is a warning, when it is logged or
    as soon as it has been encoded, and it is counted.

    Attributes:
        body: JSON values that describe `data`.
        data: Encoded, or rows of pixels.
    """

    def __init__(self, data: Any, caption: str = "") -> None:
        """
        Args:
            data: See above. It is copied now.
            caption: For people. Cut after 65,536 characters.

        Raises:
            UsageError: It is no image.
        """
        self._caption = text_of(caption)
        if len(self._caption) > CAPTION_CHARACTERS:
            self._caption = self._caption[: CAPTION_CHARACTERS - 1] + "…"
        if isinstance(data, str | Path):
            try:
                data = Path(data).read_bytes()
            except OSError as error:
                raise UsageError(f"Image: cannot read {data}: {error.strerror}") from None
        if isinstance(data, bytes | bytearray | memoryview):
            self._set(_encoded(bytes(data)), bytes(data))
            return
        if importlib.util.find_spec("PIL") is None:
            raise UsageError("Image: arrays are turned into PNG by Pillow; install tensormeter[media]")
        self._set(*_pixels(data))

    def _set(self, body: dict[str, Any], data: bytes) -> None:
        self.body = {**body, "caption": self._caption}
        self.data = data

    @property
    def encoded_size(self) -> int:
        """Bytes of what is encoded already; 0 for pixels."""
        return len(self.data) if "content_type" in self.body else 0

    def pack(self) -> Parcel:
        for size, limit, what, advice in (
            (self.encoded_size, IMAGE_BYTES, "the image", "log a smaller one, or a JPEG"),
            (len(self.data), PIXEL_BYTES, "the image, as pixels,", "log a smaller one, or give it as uint8 or encoded"),
        ):
            if size > limit:
                raise Refused(too_large(size, limit, what, advice), Drop.IMAGE_TOO_LARGE)
        return Parcel(IMAGE_EVENT, self.body, self.data)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        number = classify(value)
    except Refused:
        return text_of(value)
    return "(on a device)" if isinstance(number, (DeviceValue, Deferred)) else number


def _encoded(data: bytes) -> dict[str, Any]:
    for beginning, content_type in _BEGINNINGS.items():
        if data.startswith(beginning):
            return {"content_type": content_type}
    raise UsageError("Image: expected the bytes of a PNG, JPEG, GIF or WebP")


def _pixels(data: Any) -> tuple[dict[str, Any], bytes]:
    """Shape and dtype, and the values row by row."""
    if hasattr(data, "convert") and hasattr(data, "tobytes"):  # PIL
        mode = data.mode if data.mode in ("L", "RGB", "RGBA") else "RGB"
        image = data.convert(mode)
        return {"shape": [image.height, image.width, len(mode)], "dtype": "uint8"}, image.tobytes()
    channels_first = False
    if hasattr(data, "detach"):
        if data.device.type != "cpu":
            raise UsageError(
                f"Image: the tensor is on {data.device}, and reading it would wait for it; log image.cpu()"
            )
        data, channels_first = data.detach().numpy(), True
    if not hasattr(data, "__array_interface__"):
        raise UsageError(f"Image: expected an array, a tensor, a PIL image, a path or bytes, got {type(data).__name__}")
    shape, dtype = list(data.shape), str(data.dtype)
    if dtype not in ("uint8", "float16", "float32", "float64", "bool"):
        raise UsageError(f"Image: expected an array of uint8, of floats from 0 to 1, or of bool, got {dtype}")
    if channels_first and len(shape) == 3 and shape[0] in (1, 3, 4):
        data = data.transpose(1, 2, 0)
        shape = [*shape[1:], shape[0]]
    if len(shape) == 2:
        shape = [*shape, 1]
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        raise UsageError(f"Image: expected shape (h, w), (h, w, c) or, of a tensor, (c, h, w), got {tuple(data.shape)}")
    return {"shape": shape, "dtype": dtype}, data.tobytes()


def to_line(parcel: Parcel, **about: Any) -> bytes:
    """The first line of the file."""
    head = json_text({"event": parcel.event, **about}).removesuffix("}")
    return f'{head},"body":{parcel.body}}}\n'.encode("utf-8", "surrogatepass")
