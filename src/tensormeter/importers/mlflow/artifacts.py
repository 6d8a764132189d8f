"""Import of a run's artifacts: images, tables, texts, figures, clips and pages become media, and others are recorded."""

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tensormeter.conventions.limits import TABLE_CELLS, TABLE_IMAGES, TEXT_BYTES
from tensormeter.conventions.media_types import content_type_of
from tensormeter.errors import EncodingError
from tensormeter.importers.artifact_records import artifact_record
from tensormeter.importers.bounded_parsing import parse_json
from tensormeter.importers.confined_folder import FileEntry, FileTooLargeError
from tensormeter.importers.media_files import FileItem, image_size, item_of_file, size_limit
from tensormeter.importers.mlflow.destination_files import PlacedFile, alert_of, place_of
from tensormeter.importers.mlflow.store import ArtifactSource
from tensormeter.importers.registry import SourceError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.otlp.media import Image

__all__ = ["ArtifactImport"]

_MOST_FILES: Final = 100_000
"""Maximum number of artifacts of a run."""
_MOST_RECORDS: Final = 10_000
"""Maximum number of files of a run that are recorded one by one."""
_LARGEST_TABLE: Final = 16 << 20
_LARGEST_CONTENT: Final = 64 << 20
"""Maximum size of a Parquet table in bytes when it is decompressed."""

_DATED_IMAGE: Final = re.compile(
    r"images/(?P<key>[^/]+)[+%]step[+%](?P<step>-?\d{1,18})[+%]timestamp[+%](?P<time>\d{1,15})[+%][0-9a-f-]{36}"
    r"(?P<copy>[+%]compressed)?\.\w+"
)
"""Paths of images that `mlflow.log_image` has logged with a step. Slashes of the key are `~`, or `#` in older versions."""

_MODEL_FILE: Final = "MLmodel"


class ArtifactImport:
    """Import of the artifacts of one run."""

    def __init__(
        self,
        source: ArtifactSource,
        requests: RunRequests,
        tally: Tally,
        *,
        tables: Sequence[str],
        time: int,
        is_destination: bool,
    ) -> None:
        """
        Args:
            source: The artifacts.
            requests: The run.
            tally: Counts of the import.
            tables: Paths of tables that `mlflow.log_table` has logged.
            time: Time of artifacts without a time, in nanoseconds since the Unix epoch.
            is_destination: Whether tensormeter's destination `mlflow` has written the run.
        """
        self._source = source
        self._requests = requests
        self._tally = tally
        self._tables = frozenset(tables)
        self._time = time
        self._is_destination = is_destination
        self._records = 0
        self._lists: dict[str, list[tuple[int, Image]]] = {}
        """Images of lists that the destination has written, by their folder."""

    def run(self) -> None:
        """Import the artifacts. Unreadable ones are reported and recorded.

        Raises:
            SourceError: The artifacts cannot be listed.
        """
        entries = list(self._source.files(_MOST_FILES))
        if len(entries) == _MOST_FILES:
            self._tally.report(f"{self._source.uri}: only the first {_MOST_FILES:,} artifacts were imported")
        models = {posixpath.dirname(entry.path) for entry in entries if posixpath.basename(entry.path) == _MODEL_FILE}
        # the tables contain them
        table_images = tuple(f"table_images/{posixpath.splitext(path)[0]}/" for path in self._tables)
        for entry in entries:
            if entry.path.startswith(table_images) or any(_is_in(entry.path, model) for model in models):
                continue
            try:
                kept = self._file(entry)
            except FileTooLargeError:
                kept = False
            except SourceError as error:
                self._tally.report(f"{self._source.uri}: {error}")
                kept = False
            if not kept:
                self._record(entry)
        for folder, images in self._lists.items():
            placed = place_of(f"{folder}.json")
            assert placed is not None
            content = {"images": [image for _, image in sorted(images, key=lambda numbered: numbered[0])]}
            self._add(FileItem("images", content), placed.key, placed.step, placed.time or self._time)
        for model in sorted(models):
            files = [entry for entry in entries if _is_in(entry.path, model)]
            self._add_record(model, "model", size=sum(entry.size for entry in files), files=len(files))
        self._tally.leave_out("models, which are recorded by their place", len(models))

    def _file(self, entry: FileEntry) -> bool:
        """Import a file as a media item. Return False if it should be recorded instead."""
        dated = _DATED_IMAGE.fullmatch(entry.path)
        if dated is not None:
            if dated["copy"]:
                return True  # a smaller copy of another image
            item = self._item(entry)
            key = re.sub("[~#]", "/", dated["key"])
            return item is not None and self._add(item, key, int(dated["step"]), int(dated["time"]) * 1_000_000)
        if entry.path in self._tables:
            table = self._table(entry)
            return table is not None and self._add(table, entry.path, None, self._time)
        if self._is_destination:
            placed = place_of(entry.path)
            if placed is not None:
                return self._destination_file(entry, placed)
            if entry.path.startswith("alerts/"):
                return self._alert(entry)
        item = self._item(entry)
        return item is not None and self._add(item, entry.path, None, self._time)

    def _item(self, entry: FileEntry) -> FileItem | None:
        limit = size_limit(entry.path)
        if not limit or entry.size > limit:
            return None
        return item_of_file(entry.path, self._source.read(entry.path, limit))

    def _add(self, item: FileItem, key: str, step: int | None, time: int) -> bool:
        return self._requests.item(item.kind, key, step, time, **item.content)

    def _record(self, entry: FileEntry) -> None:
        self._add_record(entry.path, "file", size=entry.size)

    def _add_record(self, path: str, kind: str, **fields: Any) -> None:
        self._records += 1
        if self._records > _MOST_RECORDS:
            self._tally.leave_out("artifacts, which were not recorded because the run has too many")
            return
        place = f"{self._source.uri.rstrip('/')}/{path}" if path else self._source.uri
        self._tally.leave_out("contents of artifacts, which are recorded by their place", kind == "file")
        self._requests.event(artifact_record(path or "artifacts", place, self._time, kind=kind, **fields))

    def _table(self, entry: FileEntry) -> FileItem | None:
        """Return a table that `mlflow.log_table` has written as JSON or Parquet; None if it cannot be kept."""
        if entry.size > _LARGEST_TABLE:
            return None
        data = self._source.read(entry.path, _LARGEST_TABLE)
        parsed = _parquet_table(data) if entry.path.endswith(".parquet") else _json_table(data)
        if parsed is None:
            return None
        columns, rows = parsed
        images = 0
        for row in rows:
            for place, cell in enumerate(row):
                path = self._image_path(cell)
                if path and images < TABLE_IMAGES:
                    row[place] = self._image(path)
                    images += 1
                elif not (cell is None or isinstance(cell, bool | int | float | str)):
                    row[place] = json.dumps(cell, ensure_ascii=False, default=str)
        return FileItem("table", {"columns": columns, "rows": rows})

    def _image_path(self, cell: Any) -> str:
        """Return the path of a cell's image; "" for other cells."""
        if isinstance(cell, Mapping) and cell.get("type") == "image":
            return str(cell.get("filepath", ""))
        return cell if isinstance(cell, str) and self._is_destination and cell.startswith("tables/") else ""

    def _image(self, path: str) -> Image | str:
        """Return the image of a table's cell, or its path if it cannot be read."""
        try:
            data = self._source.read(path, size_limit(path) or TEXT_BYTES)
        except SourceError as error:
            self._tally.report(f"{self._source.uri}: {error}")
            return path
        content_type = content_type_of(data)
        if content_type is None or not content_type.startswith("image/"):
            return path
        return Image("", data, content_type, *image_size(data))

    def _destination_file(self, entry: FileEntry, placed: PlacedFile) -> bool:
        """Import a file that tensormeter's destination has written, under its key and step."""
        time = self._time if placed.time is None else placed.time
        if placed.folder == "tables":
            table = None if placed.place else self._table(entry)
            return bool(placed.place) or (table is not None and self._add(table, placed.key, placed.step, time))
        item = self._item(entry)
        if item is not None and placed.place.isdecimal() and item.kind == "image":
            content = {name: value for name, value in item.content.items() if name != "caption"}
            folder = posixpath.dirname(entry.path)
            self._lists.setdefault(folder, []).append((int(placed.place), Image("", **content)))
            return True
        if item is not None and placed.folder == "videos" and item.kind == "image":
            item = FileItem("video", item.content)  # an animation in a GIF
        return item is not None and self._add(item, placed.key, placed.step, time)

    def _alert(self, entry: FileEntry) -> bool:
        alert = alert_of(entry.path, self._source.read(entry.path, TEXT_BYTES))
        if alert is None:
            return False
        title, time, step = alert.pop("title"), alert.pop("time"), alert.pop("step")
        return self._requests.item("alert", title, step, time, **alert)


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/") if folder else True


def _json_table(data: bytes) -> tuple[list[str], list[list[Any]]] | None:
    try:
        document = parse_json(data)
        columns = [str(column) for column in document["columns"]]
        rows = [list(row) for row in document["data"]]
    except (EncodingError, TypeError, KeyError):
        return None
    return (columns, rows) if len(rows) * (len(columns) + 1) <= TABLE_CELLS else None


def _parquet_table(data: bytes) -> tuple[list[str], list[list[Any]]] | None:
    try:
        import pyarrow.parquet as pq
        from pyarrow import BufferReader
    except ModuleNotFoundError:
        return None
    try:
        file = pq.ParquetFile(BufferReader(data))
        metadata = file.metadata
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if metadata.num_rows * (metadata.num_columns + 1) > TABLE_CELLS or size > _LARGEST_CONTENT:
            return None
        rows = file.read().to_pylist()
        columns = [str(name) for name in file.schema_arrow.names]
    except Exception:  # pyarrow raises many types for damaged files
        return None
    return columns, [[row.get(name) for name in columns] for row in rows]
