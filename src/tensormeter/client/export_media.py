"""Export of a run's media to files."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from tensormeter.client.connection import ApiError
from tensormeter.client.records import Record, RecordedMedia, RecordedTable
from tensormeter.client.run import StoredRun
from tensormeter.disk.atomic import replacing

__all__ = ["export_media"]

_MOST: Final = 10_000
"""Maximum number of items of each kind that are exported, the newest ones."""

_UNSAFE: Final = re.compile(r"[^\w.-]")
_LONGEST: Final = 100

_EXTENSIONS: Final = {"image/jpeg": "jpg", "audio/mpeg": "mp3"}


def export_media(run: StoredRun, folder: Path) -> tuple[int, int]:
    """Write the media of a run to files named KIND/KEY-STEP, such as `images/samples-100.png`.

    Tables become JSON with `columns`, `data` and, if they have one, `chart`; their images become separate files, whose paths are in the cells. If two files
    would have the same name, later ones get a number. The newest 10,000 items of each kind are exported.

    Returns:
        Number of files written, and of media that the server could not return.

    Raises:
        TensormeterError: The server does not respond or returns an error.
        OSError: A file cannot be written.
    """
    files = _Files(folder)
    read: Mapping[str, Callable[..., list[Any]]] = {"images": run.images, "videos": run.videos, "audio": run.audio}
    for kind, items in read.items():
        for media in reversed(items(limit=_MOST)):
            if isinstance(media, RecordedMedia) and isinstance(media.body, Mapping) and "digest" in media.body:
                files.download(kind, media, media.content_type, media.read)
    for text in reversed(run.texts(limit=_MOST)):
        files.write("texts", text, "txt", text.text.encode())
    for record in reversed(run.html(limit=_MOST)):
        files.write("html", record, "html", str(_field(record, "html")).encode())
    for record in reversed(run.figures(limit=_MOST)):
        files.write("figures", record, "plotly.json", str(_field(record, "figure")).encode())
    for table in reversed(run.tables(limit=_MOST)):
        _write_table(run, files, table)
    return files.count, files.missing


class _Files:
    def __init__(self, folder: Path) -> None:
        self.count = self.missing = 0
        self._folder = folder
        self._used: set[str] = set()

    def write(self, kind: str, record: Record, extension: str, data: bytes, part: str = "") -> str:
        """Write a file, and return its path relative to the folder."""
        key = "_".join(part for part in _UNSAFE.sub("_", record.key).split("_") if part.strip("."))[:_LONGEST] or "_"
        stem = f"{kind}/{key}-{record.time if record.step is None else record.step}{part}"
        name, number = f"{stem}.{extension}", 1
        while name in self._used:
            number += 1
            name = f"{stem}-{number}.{extension}"
        self._used.add(name)
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
        self.count += 1
        return name

    def download(
        self, kind: str, record: Record, content_type: str, read: Callable[[], bytes], part: str = ""
    ) -> str | None:
        """Download and write a file, and return its path relative to the folder; None if the server does not return it."""
        try:
            data = read()
        except ApiError as error:
            if error.status not in (404, 500):
                raise
            self.missing += 1
            return None
        return self.write(kind, record, _extension(content_type), data, part)


def _write_table(run: StoredRun, files: _Files, table: RecordedTable) -> None:
    rows = [list(row) for row in table.rows]
    for number, row in enumerate(rows):
        for position, cell in enumerate(row):
            if isinstance(cell, dict) and "digest" in cell and "content_type" in cell:
                read = partial(run.read_media, str(cell["digest"]))
                row[position] = files.download(
                    "tables", table, str(cell["content_type"]), read, f"-{number}-{position}"
                )
    document: dict[str, Any] = {"columns": list(table.columns), "data": rows}
    if table.chart is not None:
        document["chart"] = table.chart
    files.write("tables", table, "json", json.dumps(document, ensure_ascii=False).encode())


def _field(record: Record, name: str) -> Any:
    return record.body.get(name, "") if isinstance(record.body, Mapping) else ""


def _extension(content_type: str) -> str:
    return _EXTENSIONS.get(content_type, _UNSAFE.sub("", content_type.partition("/")[2])[:16] or "bin")
