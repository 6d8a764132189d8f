"""A journal of requests that were logged to W&B but may not be in its files yet.

wandb passes rows to a separate process, which writes its file every 15 seconds without confirmation. If the agent is
killed, unwritten rows are lost. Therefore, the journal stores each request in the destination's folder before it is
logged, and keeps it until its rows are found in wandb's file. The journal also fixes the W&B step of each row in
advance. The next agent logs the stored rows that are not in the files.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from tensormeter.disk.atomic import write_file
from tensormeter.disk.checked_json import pack, unpack
from tensormeter.disk.private import make_directory, open_file
from tensormeter.exporter import Request, Signal

__all__ = ["Entry", "Journal"]

_STATE: Final = "journal.json"
_EMPTY: Final[Mapping[str, Any]] = {"accepted": "", "number": 0, "entries": [], "next": {}, "files": {}, "written": {}}


@dataclass(frozen=True)
class Entry:
    """A request that may not be in wandb's files yet.

    Attributes:
        number: Number of the request, which is also the name of its file.
        id: ID of the request.
        signal: Signal of the request.
        first: W&B step of the first row, by process.
        rows: Number of rows, by process.
    """

    number: int
    id: str
    signal: str
    first: Mapping[str, int]
    rows: Mapping[str, int]

    def last(self, process: str) -> int:
        """Return the W&B step of the process's last row."""
        return self.first[process] + self.rows[process] - 1


class Journal:
    """The journal: a small file that is replaced atomically, and one file per request body.

    Not thread-safe. Calls block while they access the disk.

    Attributes:
        accepted: ID of the last request that was logged, except for its refused items.
        refused: Number of refused items in that request, and the reason.
        entries: Requests that may not be in wandb's files yet, in order.
        files: Path of the current or last wandb file, by process.
        written: Last W&B step in earlier files, by process.
    """

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: Folder of the journal; None to keep the journal only while this agent runs.
        """
        self._folder = folder
        document = _EMPTY
        if folder is not None and (folder / _STATE).exists():
            document = unpack((folder / _STATE).read_bytes())
        self.accepted: str = document["accepted"]
        count, reason = document.get("refused", (0, ""))
        self.refused = int(count), str(reason)
        self.entries = [Entry(**entry | {"number": int(entry["number"])}) for entry in document["entries"]]
        self.files = {process: Path(path) for process, path in document["files"].items()}
        self.written: dict[str, int] = dict(document["written"])
        self._next: dict[str, int] = dict(document["next"])
        self._number = int(document["number"])

    def begin(self, request: Request, rows: Mapping[str, int]) -> Entry:
        """Store a request before any part of it is logged. Storing it again changes nothing.

        Args:
            request: Request to store.
            rows: Number of rows in the request, by process.
        """
        if self.entries and self.entries[-1].id == request.id:
            return self.entries[-1]
        self._number += 1
        first = {process: self._next.get(process, 0) for process in rows}
        entry = Entry(self._number, request.id, request.signal, first, dict(rows))
        if self._folder is not None:
            make_directory(self._folder)
            with open(open_file(self._body(entry), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(request.body)
        self._next |= {process: entry.last(process) + 1 for process in rows}
        self.entries.append(entry)
        self._save()
        return entry

    def knows(self, process: str) -> bool:
        """Return whether the journal contains steps of a process."""
        return process in self._next

    def go_on(self, process: str, written: int) -> None:
        """Set the last W&B step of a process. Its next row gets the step after it."""
        self._next[process] = written + 1

    def accept(self, entry: Entry, refused: int = 0, reason: str = "") -> None:
        """Record that a request has been logged, except for `refused` items."""
        self.accepted = entry.id
        self.refused = refused, reason
        self._save()

    def drop(self, entry: Entry) -> None:
        """Remove a request that will not be logged."""
        self.entries = [other for other in self.entries if other is not entry]
        if self._folder is not None:
            self._body(entry).unlink(missing_ok=True)
        self._save()

    @staticmethod
    def set_aside(folder: Path | None) -> Path | None:
        """Rename the journal's file, so that a new journal can begin. Return the new path, or None without a folder."""
        if folder is None:
            return None
        aside = folder / f"{_STATE}.damaged"
        (folder / _STATE).replace(aside)
        return aside

    def request(self, entry: Entry) -> Request:
        """Read the request of an entry that an earlier agent wrote."""
        with open(open_file(self._body(entry), os.O_RDONLY), "rb") as file:
            return Request(entry.id, cast("Signal", entry.signal), file.read(), 0)

    def open(self, process: str, path: Path, written: int) -> None:
        """Record that wandb writes a new file. Earlier files contain the steps up to `written`."""
        self.files[process] = path
        self.written[process] = written
        self._save()

    def forget(self, written: Mapping[str, int], finished: Iterable[str] = ()) -> None:
        """Remove the requests whose rows are in wandb's files.

        Args:
            written: Last W&B step in the files, by process. The files also contain all earlier rows.
            finished: Processes whose rows are all in the files.
        """
        waiting: list[Entry] = []
        there = set(finished)
        for entry in reversed(self.entries):
            there |= {
                process
                for process in entry.rows
                if entry.rows[process] and entry.last(process) <= written.get(process, -1)
            }
            if there.issuperset(entry.rows):
                if self._folder is not None:
                    self._body(entry).unlink(missing_ok=True)
            else:
                waiting.append(entry)
        if len(waiting) < len(self.entries):
            self.entries = waiting[::-1]
            self._save()

    def _body(self, entry: Entry) -> Path:
        return cast("Path", self._folder) / f"{entry.number}.request"

    def _save(self) -> None:
        if self._folder is None:
            return
        make_directory(self._folder)
        document = {
            "accepted": self.accepted,
            "refused": self.refused,
            "number": self._number,
            "entries": [asdict(entry) for entry in self.entries],
            "next": self._next,
            "files": {process: os.fspath(path) for process, path in self.files.items()},
            "written": self.written,
        }
        write_file(self._folder / _STATE, pack(document))
