"""Media of a trackio run: the objects with a `_type` in its rows, and the files that they name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tensormeter.conventions.limits import IMAGE_BYTES, MEDIA_BYTES, TABLE_CELLS, TABLE_IMAGES
from tensormeter.importers.confined_folder import ConfinedFolder
from tensormeter.importers.media_files import FileItem, item_of_file, size_limit
from tensormeter.importers.registry import SourceError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.importers.trackio.store import NOT_FINITE
from tensormeter.otlp.media import Image

__all__ = ["RunMedia"]

_PREFIX: Final = "trackio."
_FILES: Final = frozenset({"trackio.image", "trackio.video", "trackio.audio", "trackio.html"})
_LONGEST_CAPTION: Final = 65_536
_MOST_BINS: Final = 10_000


class RunMedia:
    """Media of one run. Files are read from trackio's folder `media` only. Not thread-safe."""

    def __init__(self, requests: RunRequests, tally: Tally, folder: Path) -> None:
        self._requests = requests
        self._tally = tally
        self._folder = ConfinedFolder(folder)

    def add(self, key: str, step: int | None, time: int, value: Mapping[str, Any]) -> None:
        """Add an object with a `_type`. Objects that cannot be kept are counted by type."""
        kind = str(value.get("_type"))
        if kind in _FILES:
            item = self._file(value)
            if item is not None:
                self._requests.item(item.kind, key, step, time, **item.content)
        elif kind == "trackio.histogram":
            self._histogram(key, step, time, value)
        elif kind == "trackio.table":
            self._table(key, step, time, value.get("_value"))
        elif kind == "trackio.markdown":
            text = str(value.get("_value") or "")
            self._requests.item("text", key, step, time, text=text, content_type="text/markdown")
        else:
            self._tally.leave_out(f"values of the type {kind.removeprefix(_PREFIX)[:50]}")

    def add_list(self, key: str, step: int | None, time: int, values: Sequence[Any]) -> None:
        """Add a list: images become one item, and other media have a number in their keys."""
        if not values or not all(isinstance(value, Mapping) and "_type" in value for value in values):
            self._tally.leave_out("lists in the history")
            return
        if all(value["_type"] == "trackio.image" for value in values) and len(values) <= TABLE_IMAGES:
            images = [image for value in values if (image := self._image(value)) is not None]
            self._requests.item("images", key, step, time, images=images)
            return
        for number, value in enumerate(values):
            self.add(f"{key}/{number}", step, time, value)

    def _file(self, value: Mapping[str, Any]) -> FileItem | None:
        """Return the item of an object with a file; None if it cannot be kept, which is reported."""
        path, caption = str(value.get("file_path") or ""), value.get("caption")
        kind = str(value["_type"]).removeprefix(_PREFIX)
        try:
            data = self._folder.read(path, size_limit(path) or max(IMAGE_BYTES, MEDIA_BYTES))
        except SourceError as error:
            self._tally.report(f"{self._folder.root}: the {kind} was left out: {error}")
            self._tally.leave_out(f"unreadable {kind} files")
            return None
        item = item_of_file(path, data, str(caption or "")[:_LONGEST_CAPTION])
        if item is not None and kind == "video" and item.kind == "image":
            return FileItem("video", item.content)  # an animation in a GIF
        if item is None or item.kind != kind:
            self._tally.leave_out(f"{kind} files in a format that is not kept")
            return None
        return item

    def _image(self, value: Mapping[str, Any]) -> Image | None:
        item = self._file(value)
        return Image("", **item.content) if item is not None and item.kind == "image" else None

    def _histogram(self, key: str, step: int | None, time: int, value: Mapping[str, Any]) -> None:
        edges, counts = value.get("bins"), value.get("values")
        if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) > _MOST_BINS:
            self._tally.leave_out("histograms with invalid buckets")
            return
        if not counts:
            self._tally.leave_out("histograms without values")
            return
        try:
            self._requests.histogram(key, step, time, np.array(edges, float), np.array(counts, float))
        except (ValueError, TypeError, OverflowError):
            self._tally.leave_out("histograms with invalid buckets")

    def _table(self, key: str, step: int | None, time: int, rows: Any) -> None:
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            self._tally.leave_out("damaged tables")
            return
        columns = list(dict.fromkeys(str(name) for row in rows for name in row))
        if len(rows) * (len(columns) + 1) > TABLE_CELLS:
            self._tally.leave_out("table items that are too large")
            return
        numeric = {name for name in columns if _is_numeric([row.get(name) for row in rows])}
        if sum(_is_image(cell) for row in rows for cell in row.values()) > TABLE_IMAGES:
            self._tally.leave_out("tables with too many images")
            return
        cells = [[self._cell(row.get(name), is_number=name in numeric) for name in columns] for row in rows]
        self._requests.item("table", key, step, time, columns=columns, rows=cells)

    def _cell(self, value: Any, *, is_number: bool) -> Any:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # trackio permits lists of images
        if _is_image(value):
            return self._image(value)
        if is_number and isinstance(value, str):
            return NOT_FINITE.get(value, value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return json.dumps(value, ensure_ascii=False, default=str)


def _is_image(cell: Any) -> bool:
    """Return whether a cell contains an image, or a list with one, which trackio permits."""
    value = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
    return isinstance(value, Mapping) and value.get("_type") == "trackio.image"


def _is_numeric(cells: Sequence[Any]) -> bool:
    """Return whether a column contains numbers, so that texts such as "NaN" are numbers as well."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    return all(text in NOT_FINITE for text in texts) and any(isinstance(cell, int | float) for cell in cells)
