"""Tables, images and texts: what a script logs beside numbers.

They are not for the hot path: logging one copies it to a file beside the ring, from where the agent takes it.
What takes longer, such as compressing an image, the agent does.
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.errors import UsageError
from tensormeter.record.values import Deferred, DeviceValue, Refused, classify

__all__ = ["Image", "Media", "Parcel", "Table", "Text"]

MAX_BYTES: Final = 64 << 20
"""Of one piece as it is logged. What is more than 16 MiB when it is compressed is not delivered, and counted."""

MAX_CELLS: Final = 1_000_000
MAX_IMAGES: Final = 256
"""In the cells of one table."""

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
        body: JSON values of the record's body.
        data: Of an image: encoded if the body has a `content_type`, else rows of pixels, of which it has `shape` and `dtype`.
            Of a table: those of its images, one after the other; the body's `images` say the same of each, and its `size`.
    """

    __slots__ = ("body", "data", "event")

    def __init__(self, event: str, body: Mapping[str, Any], data: bytes = b"") -> None:
        if len(data) > MAX_BYTES:
            raise Refused(f"{len(data) >> 20} MiB at once; log at most {MAX_BYTES >> 20} MiB")
        self.event = event
        self.body = body
        self.data = data


class Media:
    """Something that is logged and is no number. Made of values, not of references: it can be changed afterwards."""

    def pack(self) -> Parcel:
        """A snapshot of it.

        Raises:
            Refused: It cannot be recorded.
        """
        raise NotImplementedError


class Table(Media):
    """Rows under named columns: ``run.log({"samples": Table(["text", "loss"], [["a", 0.1], ["b", 0.2]])})``.

    Cells are numbers, strings, booleans, None or an `Image`; NumPy scalars and CPU tensors with one element count as numbers;
    anything else becomes its `str`.
    """

    def __init__(self, columns: Sequence[str], data: Iterable[Sequence[Any]] = ()) -> None:
        """
        Args:
            columns: Their names.
            data: Rows.

        Raises:
            UsageError: A row is of another length than the columns, or there are more than a million cells, or more than 256
                images.
        """
        self.columns = [str(column) for column in columns]
        self._images: list[Image] = []
        self._rows: list[list[Any]] = []
        for row in data:
            self.add(*row)

    def add(self, *row: Any) -> None:
        """Add a row.

        Raises:
            UsageError: As above.
        """
        if len(row) != len(self.columns):
            raise UsageError(f"Table: expected {len(self.columns)} cells ({', '.join(self.columns)}), got {len(row)}")
        if (len(self._rows) + 1) * len(self.columns) > MAX_CELLS:
            raise UsageError(f"Table: expected at most {MAX_CELLS} cells; log it in parts")
        images = [value for value in row if isinstance(value, Image)]
        if len(self._images) + len(images) > MAX_IMAGES:
            raise UsageError(f"Table: expected at most {MAX_IMAGES} images; log it in parts, or images beside it")
        self._rows.append([self._place(value) if isinstance(value, Image) else _cell(value) for value in row])

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def _place(self, image: "Image") -> dict[str, int]:
        """A cell that says which of the table's images it shows."""
        self._images.append(image)
        return {"image": len(self._images) - 1}

    def pack(self) -> Parcel:
        body: dict[str, Any] = {"columns": self.columns, "rows": self._rows}
        parcels = [image.pack() for image in self._images]
        if parcels:
            body["images"] = [{**parcel.body, "size": len(parcel.data)} for parcel in parcels]
        return Parcel("tensormeter.table", body, b"".join(parcel.data for parcel in parcels))


class Text(Media):
    """A text, plain or in Markdown."""

    def __init__(self, text: str, *, markdown: bool = False) -> None:
        """
        Args:
            text: Up to 16 MiB.
            markdown: Whether it is Markdown.
        """
        self._text = str(text)
        self._type = "text/markdown" if markdown else "text/plain"

    def pack(self) -> Parcel:
        return Parcel("tensormeter.text", {"text": self._text, "content_type": self._type})


class Image(Media):
    """A picture, from an array, a tensor on the CPU, a PIL image, a file, or the bytes of a PNG, JPEG, GIF or WebP.

    Arrays are of shape (height, width), (height, width, c), or as torch has it (c, height, width), with c of 1, 3 or 4; uint8, or
    floats from 0 to 1. They become PNG, for which Pillow must be installed.
    """

    def __init__(self, data: Any, caption: str = "") -> None:
        """
        Args:
            data: See above. It is copied now.
            caption: For people.

        Raises:
            UsageError: It is no image.
        """
        self._caption = str(caption)
        if isinstance(data, str | Path):
            try:
                data = Path(data).read_bytes()
            except OSError as error:
                raise UsageError(f"Image: cannot read {data}: {error.strerror}") from None
        if isinstance(data, bytes | bytearray | memoryview):
            self._body, self._data = _encoded(bytes(data)), bytes(data)
            return
        if importlib.util.find_spec("PIL") is None:
            raise UsageError("Image: arrays are turned into PNG by Pillow; install tensormeter[media]")
        self._body, self._data = _pixels(data)

    def pack(self) -> Parcel:
        return Parcel("tensormeter.image", {**self._body, "caption": self._caption}, self._data)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        number = classify(value)
    except Refused:
        return str(value)
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
    return json.dumps({"event": parcel.event, "body": parcel.body, **about}).encode() + b"\n"
