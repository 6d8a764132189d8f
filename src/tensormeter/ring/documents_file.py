"""The file next to a ring that holds the run's documents that have changed: its configuration, summary and definitions.

Each line is a JSON object with `time` and documents by name. The first line holds the whole documents. The other lines hold the
entries that later changes have added or replaced. Once these take much more space than the documents, the file is replaced.
Many changes therefore take little time and space, and no change is lost if the process is killed.
"""

import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import open_file

__all__ = ["Documents", "DocumentsFile", "read_documents"]

Documents = Mapping[str, Mapping[str, Any]]
"""Documents by name. Each is a JSON object."""

_CHANGES: Final = 1 << 16
"""Number of bytes that changes may take, in addition to four times the size of the whole documents."""


class DocumentsFile:
    """Writes the file. The calls must not overlap."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: Path of the file. It is created by the first call of `write`.
        """
        self._path = path
        self._descriptor = -1
        self._close: Callable[[], object] = lambda: None
        self._left = 0

    def write(self, changes: Documents | None, whole: Documents) -> None:
        """Write a change.

        Args:
            changes: Entries that have been added or replaced, by document; None if entries have been removed.
            whole: All documents that have changed so far, after the change.

        Raises:
            OSError: The change cannot be written, for example because the disk is full.
        """
        line = b"" if changes is None else _line(changes)
        if not line or len(line) > self._left:
            self._replace(whole)
            return
        self._left -= len(line)
        try:
            written = os.write(self._descriptor, line)
        except OSError:
            written = 0
        if written != len(line):
            self._replace(whole)

    def _replace(self, whole: Documents) -> None:
        self._left = 0
        self._close()
        line = _line(whole)
        write_file(self._path, line)
        self._descriptor = open_file(self._path, os.O_WRONLY | os.O_APPEND)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._close.atexit = False  # an agent on a thread may still be reading
        self._left = 4 * len(line) + _CHANGES


def read_documents(path: Path) -> tuple[dict[str, dict[str, Any]], int] | None:
    """Return the latest documents, and the time of their last change in nanoseconds since the Unix epoch.

    Returns:
        None if there is no file, or if it cannot be read.
    """
    documents: dict[str, dict[str, Any]] = {}
    changed_at = 0
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            first, *changes = file.read().split(b"\n")
        for line in [first, *changes[:-1]]:  # the last one is empty, or incomplete because the process was killed
            change = json.loads(line)
            changed_at = int(change.pop("time"))
            for name, entries in change.items():
                documents.setdefault(name, {}).update(entries)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
    return documents, changed_at


def _line(documents: Documents) -> bytes:
    return json.dumps({**documents, "time": time.time_ns()}, separators=(",", ":")).encode() + b"\n"
