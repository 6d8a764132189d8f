"""Files that grow by one request at a time, each of them once.

Before anything is written, a small state file says which request it is, how long each file was, and how long it will be.
So a request that comes again (its writer was killed before delivery knew) first undoes what is there of it, and half a
request at a file's end is seen and cut off.
A killed process loses nothing; a power failure can lose the last requests.

The state file may come from another machine, or from somebody else. So it can name only files in the folder that this process
writes to, and of those only the ones that have the state's own `writer` in their name.
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
    """Appends to files. Used by one thread of one process; blocks for the disk.

    Attributes:
        writer: A name that no other spool's files have, kept in the state: files that have it in their name are nobody else's.
            Every file must have it there: others are never shortened.
    """

    def __init__(self, state: Path | None, directory: Path, *, private: bool = False) -> None:
        """
        Args:
            state: Folder for the state file; without one, a request that comes again is appended again.
            directory: Folder of the files.
            private: Whether nobody else may read files that are made, whatever the umask is.
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
        """Append to each file what belongs there. Makes files and folders.

        Raises:
            OSError: The disk refuses. Then the same request may be appended again.
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
        """The length of a file, without what is there of this request."""
        if request_id == self._id and path in self._files:
            return self._files[path][0]
        return path.stat().st_size if path.exists() else 0

    def _undo(self, *, whole: bool) -> None:
        """Take back the last request: all of it, or what is only half there."""
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
                raise ValueError(f"{state}: the writer is {writer!r}")
            self._files = {path: lengths for path, lengths in files.items() if self._may_hold(path, writer)}
            self._id = str(document["id"])
            self.writer = writer
        except FileNotFoundError:
            self._files = {}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._files = {}
            logger.warning("%s cannot be used (%s); what follows goes into new files", state, error)

    def _may_hold(self, path: Path, writer: str) -> bool:
        inside = not path.is_symlink() and path.resolve().is_relative_to(self._directory.resolve())
        return inside and writer in re.split(r"[.-]", path.name)

    def _save(self) -> None:
        if self._state is None:
            return
        make_directory(self._state.parent)
        files = [[os.fspath(path), before, after] for path, (before, after) in self._files.items()]
        write_file(self._state, pack({"id": self._id, "writer": self.writer, "files": files}))
