"""What W&B has been given, and how much of it is known to be in its files.

wandb hands what it is given to a process of its own, which writes its file every 15 seconds and does not say when; what it has not
written is gone if the agent is killed. So a request is kept in the destination's folder from before it is logged until its rows are
seen in wandb's file, and each row has a step of W&B's counter that is decided at once. The next agent logs again what
is kept and not in the files.
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
        number: Of the request; names its file.
        id: Of the request.
        signal: Of the request.
        first: W&B's step of its first row, for each process that it speaks of.
        rows: How many rows it has, for each of them.
    """

    number: int
    id: str
    signal: str
    first: Mapping[str, int]
    rows: Mapping[str, int]

    def last(self, process: str) -> int:
        """W&B's step of the process's last row."""
        return self.first[process] + self.rows[process] - 1


class Journal:
    """A small file, replaced in one step, and beside it the bodies of requests. Used by one thread; blocks for the disk.

    Attributes:
        accepted: Id of the last request that was logged whole, but for what was refused.
        refused: How many items of it were refused, and why.
        entries: Requests that may not be in the files yet, in order.
        files: The file that wandb writes for each process, or wrote last.
        written: W&B's last step of each process in the files before that.
    """

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: Where it is kept; without one, nothing outlives this agent.
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
        """Keep a request, before any of it is logged. The same one again changes nothing.

        Args:
            request: The request.
            rows: Its rows, for each process that it speaks of.
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
        """Whether steps of a process have been decided."""
        return process in self._next

    def go_on(self, process: str, written: int) -> None:
        """Decide that the next row of a process comes behind a step."""
        self._next[process] = written + 1

    def accept(self, entry: Entry, refused: int = 0, reason: str = "") -> None:
        """All of it has been logged, but for what was refused."""
        self.accepted = entry.id
        self.refused = refused, reason
        self._save()

    def drop(self, entry: Entry) -> None:
        """None of it is, or will be, logged."""
        self.entries = [other for other in self.entries if other is not entry]
        if self._folder is not None:
            self._body(entry).unlink(missing_ok=True)
        self._save()

    @staticmethod
    def set_aside(folder: Path | None) -> Path | None:
        """Give the file another name, so that a new journal begins. Returns its path then."""
        if folder is None:
            return None
        aside = folder / f"{_STATE}.damaged"
        (folder / _STATE).replace(aside)
        return aside

    def request(self, entry: Entry) -> Request:
        """The request of an entry that an earlier agent has left."""
        with open(open_file(self._body(entry), os.O_RDONLY), "rb") as file:
            return Request(entry.id, cast("Signal", entry.signal), file.read(), 0)

    def open(self, process: str, path: Path, written: int) -> None:
        """Another file is written from now on; those before have the steps up to `written`."""
        self.files[process] = path
        self.written[process] = written
        self._save()

    def forget(self, written: Mapping[str, int], finished: Iterable[str] = ()) -> None:
        """Let go of what is in the files.

        Args:
            written: W&B's last step of each process in its files. They are written in order, so what came before is there, too.
            finished: Processes of which everything is there.
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
