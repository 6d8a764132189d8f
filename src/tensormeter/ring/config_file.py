"""The file next to a ring that holds the run's configuration once it has changed.

Each line is a JSON object with `config` and `time`. The first line holds the whole configuration. The other lines hold the
entries that later changes have added or replaced. Once these take much more space than the configuration, the file is replaced.
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

__all__ = ["ConfigFile", "read_config"]

_CHANGES: Final = 1 << 16
"""Number of bytes that changes may take, in addition to four times the size of the whole configuration."""


class ConfigFile:
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

    def write(self, changes: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
        """Write a change.

        Args:
            changes: Entries that have been added or replaced; None if entries have been removed.
            config: The whole configuration after the change.

        Raises:
            OSError: The change cannot be written, for example because the disk is full.
        """
        line = b"" if changes is None else _line(changes)
        if not line or len(line) > self._left:
            self._replace(config)
            return
        self._left -= len(line)
        try:
            written = os.write(self._descriptor, line)
        except OSError:
            written = 0
        if written != len(line):
            self._replace(config)

    def _replace(self, config: Mapping[str, Any]) -> None:
        self._left = 0
        self._close()
        line = _line(config)
        write_file(self._path, line)
        self._descriptor = open_file(self._path, os.O_WRONLY | os.O_APPEND)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._left = 4 * len(line) + _CHANGES


def read_config(path: Path) -> tuple[dict[str, Any], int] | None:
    """Return the latest configuration, and the time of its last change in nanoseconds since the Unix epoch.

    Returns:
        None if there is no file, or if it cannot be read.
    """
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            first, *changes = file.read().split(b"\n")
        whole = json.loads(first)
        config, changed_at = dict(whole["config"]), int(whole["time"])
        for line in changes[:-1]:  # the last one is empty, or incomplete because the process was killed
            change = json.loads(line)
            config.update(change["config"])
            changed_at = int(change["time"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return config, changed_at


def _line(config: Mapping[str, Any]) -> bytes:
    return json.dumps({"config": config, "time": time.time_ns()}, separators=(",", ":")).encode() + b"\n"
