"""A writer that appends each request to files exactly once.

Before a request is appended, its ID and the length of each file before and after the append are written to a small
state file. If the writer is killed before the request is acknowledged, the request is appended again, and its earlier
copy is removed first. An incomplete request at the end of a file is detected and removed.

If the process is killed, no data is lost. A power failure can lose the latest requests.

The state file may come from another machine or user. An entry is therefore used only if its file is in the exporter's
folder and the file's name contains the `writer` from the state file.
"""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tensormeter.disk.atomic import write_file
from tensormeter.disk.checked_json import pack, unpack
from tensormeter.disk.private import make_directory
from tensormeter.logger import get_logger

__all__ = ["AppendOnce"]

logger: Final = get_logger("tensormeter.agent")

_STATE: Final = "appended.json"
_WRITER: Final = re.compile(r"[0-9a-f]{16}")


class AppendOnce:
    """Writer of requests to files. Not thread-safe. Calls block while they access the disk.

    Attributes:
        writer: Unique text for the names of this spool's files, stored in the state file. The name of each file must
            contain this text, because other files are never truncated.
    """

    def __init__(self, state: Path | None, directory: Path, *, private: bool = False) -> None:
        """
        Args:
            state: Folder for the state file; None to keep the state only in memory. Another agent then appends retried
                requests again.
            directory: Folder for the files.
            private: Whether only this user may read new files, regardless of the umask.
        """
        self._directory = directory
        self._mode = 0o600 if private else 0o666
        self._state = None if state is None else state / _STATE
        self._id = ""
        self.writer = uuid.uuid4().hex[:16]
        self._files: dict[Path, tuple[int, int]] = {}
        if self._state is not None:
            self._load(self._state)

    def append(self, request_id: str, pieces: Mapping[Path, bytes]) -> None:
        """Append one request, which consists of a piece for each file. Missing files and folders are created.

        Raises:
            OSError: A file cannot be written. The same request can be appended again.
        """
        self._undo(whole=request_id == self._id)
        self._id = request_id
        self._files = {}
        for path, data in pieces.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.stat().st_size if path.exists() else 0
            self._files[path] = before, before + len(data)
        self._save()
        for path, data in pieces.items():
            with open(path, "ab", opener=lambda name, flags: os.open(name, flags, self._mode)) as file:
                file.write(data)

    def size(self, request_id: str, path: Path) -> int:
        """Return the length of a file, in bytes, without the piece of this request."""
        if request_id == self._id and path in self._files:
            return self._files[path][0]
        return path.stat().st_size if path.exists() else 0

    def _undo(self, *, whole: bool) -> None:
        """Remove the last request from the files if it is incomplete or `whole` is set."""
        for path, (before, after) in self._files.items():
            size = path.stat().st_size if path.exists() else 0
            if before < size and (whole or size < after):
                os.truncate(path, before)

    def _load(self, state: Path) -> None:
        try:
            document = unpack(state.read_bytes())
            files = {Path(path): (int(before), int(after)) for path, before, after in document["files"]}
            writer = str(document["writer"])
            if not _WRITER.fullmatch(writer):
                raise ValueError(f"{state}: invalid writer {writer!r}")
            self._files = {path: lengths for path, lengths in files.items() if self._may_hold(path, writer)}
            self._id = str(document["id"])
            self.writer = writer
        except FileNotFoundError:
            self._files = {}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._files = {}
            logger.warning("cannot read %s (%s); later requests will be written to new files", state, error)

    def _may_hold(self, path: Path, writer: str) -> bool:
        inside = not path.is_symlink() and path.resolve().is_relative_to(self._directory.resolve())
        return inside and writer in re.split(r"[.-]", path.name)

    def _save(self) -> None:
        if self._state is None:
            return
        make_directory(self._state.parent)
        files = [[os.fspath(path), before, after] for path, (before, after) in self._files.items()]
        write_file(self._state, pack({"id": self._id, "writer": self.writer, "files": files}))
