"""Tables whose cells contain numbers, text and images."""

from collections.abc import Iterable, Sequence
from typing import Any

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import IMAGE_BYTES, PIXEL_BYTES, TABLE_BYTES, TABLE_CELLS, TABLE_IMAGES, too_large
from tensormeter.conventions.semconv import TABLE_EVENT
from tensormeter.errors import UsageError
from tensormeter.record.media.image import Image
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Table"]


class Table(Media):
    """A table with named columns: ``run.log({"samples": Table(["text", "loss"], [["a", 0.1], ["b", 0.2]])})``.

    A cell is a number, a string, a boolean, None or an `Image`. NumPy scalars and one-element CPU tensors count as numbers.
    Other objects are converted with `str`.

    The limits are 12 MiB as JSON, 700,000 cells (each row and the heading count as one extra cell), and 256 images. All
    images of a table together may take up to 16 MiB in encoded form, and up to 60 MiB as pixels. A larger table is dropped and
    counted. The warning appears when the table is logged, or after the agent has encoded its images.
    """

    def __init__(self, columns: Sequence[str], data: Iterable[Sequence[Any]] = ()) -> None:
        """
        Args:
            columns: Names of the columns.
            data: Rows of cells, with one cell per column.

        Raises:
            UsageError: The number of cells in a row differs from the number of columns.
        """
        self.columns = [text_of(column) for column in columns]
        self._images: list[Image] = []
        self._rows: list[list[Any]] = []
        self._excess_rows = 0  # number of rows that were not stored, because the table is too large to record
        self._max_rows = TABLE_CELLS // (len(self.columns) + 1) - 1  # the heading also counts as a row
        for row in data:
            self.add(*row)

    def add(self, *row: Any) -> None:
        """Add a row.

        Raises:
            UsageError: The number of cells differs from the number of columns.
        """
        if len(row) != len(self.columns):
            raise UsageError(f"Table: expected {len(self.columns)} cells ({', '.join(self.columns)}), got {len(row)}")
        images = sum(isinstance(value, Image) for value in row)
        if self._excess_rows or len(self._rows) >= max(self._max_rows, 0) or len(self._images) + images > TABLE_IMAGES:
            self._excess_rows += 1
            return
        self._rows.append([self._keep_image(value) if isinstance(value, Image) else _cell(value) for value in row])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows) + self._excess_rows

    def _keep_image(self, image: "Image") -> dict[str, int]:
        """Store an image, and return a cell that refers to the image by its index."""
        self._images.append(image)
        return {"image": len(self._images) - 1}

    def pack(self) -> EventContent:
        if self._max_rows < 0:
            raise _too_large_table(
                f"it has {len(self.columns)} columns, but the limit is {TABLE_CELLS // 2}; log it in parts"
            )
        if self._excess_rows and len(self._rows) < self._max_rows:
            raise _too_large_table(
                f"it has more than {TABLE_IMAGES} images; log it in parts, or log the images separately"
            )
        if self._excess_rows:
            raise _too_large_table(
                f"it has {len(self)} rows of {len(self.columns)} cells, but the limit is {self._max_rows} such rows; "
                "log it in parts"
            )
        body: dict[str, Any] = {"columns": self.columns, "rows": self._rows}
        text = json_text(body)
        size = json_bytes(body, text)
        if size > TABLE_BYTES:
            raise _too_large_table(too_large(size, TABLE_BYTES, "it", "log it in parts, or with fewer columns"))
        data = b"".join(image.data for image in self._images)
        for form, total, limit in (
            ("encoded", sum(image.encoded_size for image in self._images), IMAGE_BYTES),
            ("uncompressed", len(data), PIXEL_BYTES),
        ):
            if total > limit:
                advice = "log it in parts, or with smaller images"
                raise _too_large_table(too_large(total, limit, f"all its images together ({form})", advice))
        if self._images:
            images = [{**image.body, "size": len(image.data)} for image in self._images]
            text = json_text({**body, "images": images})
        return EventContent(TABLE_EVENT, text, data)


def _too_large_table(reason: str) -> Refused:
    return Refused(f"the table is too large: {reason}", Drop.TABLE_TOO_LARGE)


def _cell(value: Any) -> Any:
    """Convert a cell to a JSON value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        number = classify(value)
    except Refused:
        return text_of(value)
    return "(on a device)" if isinstance(number, (DeviceValue, Deferred)) else number
