"""Conversion of files that other trackers have stored to media items."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from tensormeter.conventions.limits import IMAGE_BYTES, MEDIA_BYTES, PIXEL_BYTES, TABLE_CELLS, TEXT_BYTES
from tensormeter.conventions.media_types import content_type_of
from tensormeter.importers.bounded_parsing import has_too_many_values
from tensormeter.importers.run_requests import ItemKind

__all__ = ["FileItem", "image_size", "item_of_file", "plotly_figure", "size_limit"]

_TEXTS: Final = frozenset(
    {".txt", ".log", ".md", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".sh", ".diff", ".patch"}
)
_PAGES: Final = frozenset({".html", ".htm"})
_IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp"})
_CLIPS: Final = frozenset({".mp4", ".webm", ".wav", ".mp3", ".ogg", ".oga", ".flac"})
_TABLES: Final = frozenset({".csv", ".tsv"})

_LONGEST_PAGE: Final = 32 << 20
"""Maximum size of a page in bytes. Pages with Plotly's script are large, but only their figure is kept."""

_NEW_PLOT: Final = re.compile(r"Plotly\.newPlot\(\s*[\"'][^\"']{1,200}[\"']\s*,\s*")
_SEPARATOR: Final = re.compile(r"\s*,\s*")


@dataclass(frozen=True)
class FileItem:
    """A media item: its kind, and the fields of its content, for `RunRequests.item`."""

    kind: ItemKind
    content: dict[str, Any] = field(repr=False)


def size_limit(name: str) -> int:
    """Return the maximum size in bytes of a file with this name that can become an item; 0 if none can."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _IMAGES:
        return IMAGE_BYTES
    if suffix in _CLIPS:
        return MEDIA_BYTES
    if suffix in _PAGES:
        return _LONGEST_PAGE
    return TEXT_BYTES if suffix in _TEXTS | _TABLES else 0


def item_of_file(name: str, data: bytes, caption: str = "") -> FileItem | None:
    """Return the item that a file becomes; None if its contents are of no kind that is kept.

    Args:
        name: Name of the file, whose suffix decides how a text is read.
        data: Contents.
        caption: Caption of an image, video, audio clip, page or figure.
    """
    content_type = content_type_of(data)
    if content_type is not None:
        return _encoded(content_type, data, caption)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _IMAGES | _CLIPS:
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if suffix in _PAGES:
        figure = plotly_figure(text)
        if figure is not None:
            return FileItem("figure", {"figure": figure, "caption": caption})
        return FileItem("html", {"html": text, "caption": caption})
    if suffix in _TABLES:
        table = _table(text, "\t" if suffix == ".tsv" else ",")
        if table is not None:
            return table
    if suffix == ".json" and _is_figure(text):
        return FileItem("figure", {"figure": text, "caption": caption})
    return FileItem("text", {"text": text, "content_type": "text/markdown" if suffix == ".md" else "text/plain"})


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an encoded image in pixels; 0 if they are unknown. Pixels are not decoded."""
    try:
        import PIL.Image

        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # Pillow is missing, or cannot read the image
        return 0, 0
    return (width, height) if width * height <= PIXEL_BYTES else (0, 0)


def plotly_figure(page: str) -> str | None:
    """Return the figure of a page that Plotly has written, as JSON with `data` and `layout`; None if there is none.

    Pages are shown without scripts, so such a page would be empty.
    """
    match = None
    for match in _NEW_PLOT.finditer(page):  # noqa: B007 - the last one; earlier ones are in Plotly's own script
        pass
    if match is None or has_too_many_values(page[match.end() :]):
        return None
    try:
        data, end = json.JSONDecoder().raw_decode(page, match.end())
        comma = _SEPARATOR.match(page, end)
        layout = json.JSONDecoder().raw_decode(page, comma.end())[0] if comma is not None else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, list) or not isinstance(layout, dict):
        return None
    return json.dumps({"data": data, "layout": layout}, ensure_ascii=False, separators=(",", ":"))


def _encoded(content_type: str, data: bytes, caption: str) -> FileItem:
    content = {"data": data, "content_type": content_type, "caption": caption}
    if content_type.startswith("audio/"):
        return FileItem("audio", content)
    if content_type.startswith("video/"):
        return FileItem("video", content)
    width, height = image_size(data)
    return FileItem("image", content | {"width": width, "height": height})


def _is_figure(text: str) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(document, dict)
        and isinstance(document.get("data"), list)
        and isinstance(document.get("layout"), dict)
    )


def _table(text: str, delimiter: str) -> FileItem | None:
    """Return the table of a file with a heading; None if its rows have different lengths or are too many."""
    try:
        rows = list(_rows(text, delimiter))
    except csv.Error:
        return None
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows) or len(rows) * (len(rows[0]) + 1) > TABLE_CELLS:
        return None
    return FileItem("table", {"columns": rows[0], "rows": [[_cell(cell) for cell in row] for row in rows[1:]]})


def _rows(text: str, delimiter: str) -> Iterator[Sequence[str]]:
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        if row:
            yield row


def _cell(text: str) -> str | int | float:
    """Return the number that a cell contains, or its text. Texts such as "007" stay texts."""
    try:
        number = int(text)
        return number if str(number) == text and -(1 << 63) <= number < 1 << 63 else text
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
