"""Tables: rows of numbers, texts and images."""

from collections.abc import Iterable, Sequence
from typing import Any

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import IMAGE_BYTES, PIXEL_BYTES, TABLE_BYTES, TABLE_CELLS, TABLE_IMAGES, too_large
from tensormeter.conventions.semconv import TABLE_EVENT
from tensormeter.errors import UsageError
from tensormeter.record.media.image import Image
from tensormeter.record.media.parcel import Media, Parcel
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Table"]


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


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        number = classify(value)
    except Refused:
        return text_of(value)
    return "(on a device)" if isinstance(number, (DeviceValue, Deferred)) else number
