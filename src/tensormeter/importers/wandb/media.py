"""Media of a W&B run: the objects with a `_type` in its history, and the files that they name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tensormeter.conventions.limits import IMAGE_BYTES, MEDIA_BYTES, TABLE_BYTES, TABLE_IMAGES, TEXT_BYTES
from tensormeter.conventions.media_types import content_type_of
from tensormeter.importers.bounded_parsing import parse_json
from tensormeter.importers.confined_folder import ConfinedFolder
from tensormeter.importers.plain_values import plain_value
from tensormeter.importers.registry import SourceError
from tensormeter.importers.run_requests import ItemKind, RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.otlp.media import Image

__all__ = ["RunMedia"]

_FILES: Final[dict[str, ItemKind]] = {
    "image-file": "image",
    "video-file": "video",
    "audio-file": "audio",
    "html-file": "html",
    "plotly-file": "figure",
    "table-file": "table",
}
_LISTS: Final = {"audio": ("audio", "audio-file"), "videos": ("videos", "video-file"), "html": ("html", "html-file")}
_LARGEST_TABLE: Final = 4 * TABLE_BYTES
_MOST_BINS: Final = 10_000
_MEDIA_CELLS: Final = ("Image", "Audio", "Video", "Html", "Molecule", "Object3D", "Plotly", "Bokeh")


class RunMedia:
    """Media of one run. Files are read from the run's folder `files` only. Not thread-safe."""

    def __init__(
        self, requests: RunRequests, tally: Tally, folder: Path, charts: Mapping[str, tuple[str, Mapping[str, Any]]]
    ) -> None:
        """
        Args:
            requests: Receiver of the items.
            tally: Counts of the import.
            folder: Folder of the run's files, such as ``wandb/offline-run-.../files``.
            charts: Charts by the key of their table; see `charts.charts_of`.
        """
        self._requests = requests
        self._tally = tally
        self._folder = ConfinedFolder(folder)
        self._charts = charts

    def add(self, key: str, step: int, time: int, item: Mapping[str, Any]) -> None:
        """Add an object of the history that has a `_type`. Objects that cannot be kept are counted by type."""
        kind = item["_type"]
        try:
            if kind == "histogram":
                self._histogram(key, step, time, item)
            elif kind == "images/separated":
                self._images(key, step, time, item)
            elif kind in _LISTS:
                field, kind_of_one = _LISTS[kind]
                for entry in item.get(field) or ():
                    if isinstance(entry, Mapping):
                        self._file(kind_of_one, key, step, time, entry)
            elif kind in _FILES:
                self._file(kind, key, step, time, item)
            else:
                self._tally.leave_out(f"W&B objects of type {kind}")
        except SourceError as error:
            self._tally.leave_out(f"W&B objects of type {kind} without a readable file")
            self._tally.report(f"{self._folder.root}: left out {key!r} at step {step}, {error}")
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            self._tally.leave_out(f"damaged W&B objects of type {kind}")
            self._tally.report(f"{self._folder.root}: left out {key!r} at step {step}, {type(error).__name__}: {error}")

    def _histogram(self, key: str, step: int, time: int, item: Mapping[str, Any]) -> None:
        counts, edges = item.get("values"), item.get("bins")
        packed = item.get("packedBins")
        if isinstance(packed, Mapping):
            number = int(packed["count"])
            if not 0 < number <= _MOST_BINS:
                raise ValueError(f"{number} bins")
            edges = float(packed["min"]) + float(packed["size"]) * np.arange(number + 1)
        self._requests.histogram(key, step, time, np.asarray(edges, float), np.asarray(counts, float))

    def _images(self, key: str, step: int, time: int, item: Mapping[str, Any]) -> None:
        captions = item.get("captions")
        names = item["filenames"]
        if len(names) > TABLE_IMAGES:
            raise ValueError(f"{len(names):,} images; the limit is {TABLE_IMAGES}")
        images = []
        for number, name in enumerate(names):
            caption = captions[number] if isinstance(captions, Sequence) and number < len(captions) else ""
            images.append(self._image("", {**item, "path": name, "caption": caption}))
        if item.get("all_masks") or item.get("all_boxes"):
            self._tally.leave_out("masks and boxes of images")
        if len(images) == 1:
            content = {
                name: getattr(images[0], name) for name in ("data", "content_type", "width", "height", "caption")
            }
            self._requests.item("image", key, step, time, **content)
        else:
            self._requests.item("images", key, step, time, images=images)

    def _image(self, key: str, item: Mapping[str, Any]) -> Image:
        data = self._read(item, IMAGE_BYTES)
        content_type = content_type_of(data)
        if content_type is None or not content_type.startswith("image/"):
            raise ValueError(f"images of the format {str(item.get('format'))[:20]!r} cannot be stored")
        width, height = (item.get(name) for name in ("width", "height"))
        return Image(
            key,
            data,
            content_type,
            width if isinstance(width, int) else 0,
            height if isinstance(height, int) else 0,
            _text(item.get("caption")),
        )

    def _file(self, kind: str, key: str, step: int, time: int, item: Mapping[str, Any]) -> None:
        match _FILES[kind]:
            case "image":
                image = self._image(key, item)
                content = {
                    name: getattr(image, name) for name in ("data", "content_type", "width", "height", "caption")
                }
                self._requests.item("image", key, step, time, **content)
                if item.get("masks") or item.get("boxes"):
                    self._tally.leave_out("masks and boxes of images")
            case "video" | "audio" as noun:
                data = self._read(item, MEDIA_BYTES)
                content_type = content_type_of(data)
                if content_type is None:
                    raise ValueError("a file of this format cannot be stored")
                self._requests.item(
                    noun, key, step, time, data=data, content_type=content_type, caption=_text(item.get("caption"))
                )
            case "html":
                text = self._read(item, TEXT_BYTES).decode(errors="replace")
                self._requests.item("html", key, step, time, html=text)
            case "figure":
                text = self._read(item, TEXT_BYTES).decode(errors="replace")
                self._requests.item("figure", key, step, time, figure=text)
            case _:
                self._table(key, step, time, parse_json(self._read(item, _LARGEST_TABLE)))

    def _table(self, key: str, step: int, time: int, table: Mapping[str, Any]) -> None:
        columns = [str(column) for column in table["columns"]]
        rows = [[self._cell(cell) for cell in row] for row in table["data"]]
        key, chart = self._charts.get(key, (key, None))
        self._requests.item("table", key, step, time, chart=chart, columns=columns, rows=rows)

    def _cell(self, cell: Any) -> bool | int | float | str | None:
        """Return a cell of a table. For media, W&B stores only the name of the class here, and the file in another folder."""
        if cell in _MEDIA_CELLS:
            self._tally.leave_out("media in cells of tables")
        if isinstance(cell, Mapping | list):
            return json.dumps(plain_value(cell))
        return cell if isinstance(cell, bool | int | float | str) else None

    def _read(self, item: Mapping[str, Any], limit: int) -> bytes:
        return self._folder.read(_text(item.get("path")), limit)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
