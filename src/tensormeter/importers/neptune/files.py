"""Files of a Neptune run: images, tables, texts, clips and pages become media, and others are recorded."""

from pathlib import Path, PurePosixPath
from typing import Final

from tensormeter.conventions.limits import TEXT_BYTES
from tensormeter.importers.artifact_records import artifact_record
from tensormeter.importers.confined_folder import ConfinedFolder, FileTooLargeError
from tensormeter.importers.media_files import FileItem, item_of_file, size_limit
from tensormeter.importers.registry import SourceError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally

__all__ = ["RunFiles"]

_FOLDERS: Final = ("file_set", "artifact")
"""Types of attributes with several files."""


class RunFiles:
    """Files of one run. They are read from the folder of the project's files only."""

    def __init__(self, requests: RunRequests, tally: Tally, folder: Path) -> None:
        self._requests = requests
        self._tally = tally
        self._folder = ConfinedFolder(folder)

    def add(self, key: str, kind: str, step: int | None, time: int, path: str) -> None:
        """Add a file.

        Args:
            key: Path of the attribute.
            kind: Type of the attribute.
            step: Step, or None.
            time: Time in nanoseconds since the Unix epoch.
            path: Path of the file relative to the folder.
        """
        try:
            place = self._folder.locate(path)
            item = None if kind in _FOLDERS else self._item(path)
        except FileTooLargeError:
            item = None
        except SourceError as error:
            self._tally.report(f"{key}: the file was left out: {error}")
            self._tally.leave_out("unreadable files")
            return
        if item is not None and self._requests.item(item.kind, key, step, time, **item.content):
            return
        size = place.stat().st_size if place.is_file() else None
        self._tally.leave_out("contents of files, which are recorded by their place")
        self._requests.event(artifact_record(key, str(place), time, kind=kind, step=step, size=size))

    def _item(self, path: str) -> FileItem | None:
        """Return the item that a file becomes. Neptune 2 stores files without a suffix."""
        has_suffix = bool(PurePosixPath(path).suffix)
        limit = size_limit(path) if has_suffix else TEXT_BYTES
        if not limit:
            return None
        data = self._folder.read(path, limit)
        item = item_of_file(path, data)
        return None if item is not None and item.kind == "text" and not has_suffix and b"\0" in data else item
