"""A spool in shared memory, used while the disk fails.

When the disk has refused writes for some seconds, the agent copies the waiting requests into a spool in shared memory
and uses that spool instead. When the disk works again, the contents are moved to the spool on the disk in one
transaction. If the agent is killed, both spools may exist, and the next agent reads both. Requests keep their IDs, so
no receiver stores a request twice.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.agent.spool.errors import ERRORS, named
from tensormeter.agent.spool.request import seal
from tensormeter.agent.spool.schema import SEALED
from tensormeter.agent.spool.spool import Spool
from tensormeter.disk.private import fault
from tensormeter.errors import SpoolError
from tensormeter.logger import get_logger

__all__ = ["MAX_BYTES", "MemorySpool", "works"]

logger: Final = get_logger("tensormeter.agent")

MAX_BYTES: Final = 64 << 20
"""Maximum size of a spool in memory, in bytes."""

_MOST_COPIED: Final = MAX_BYTES // 2
"""Maximum bytes of waiting requests to copy from the disk. Other requests wait on the disk until it works again."""

_NOTE: Final = ("", "refuge")
"""Key of a note, which lists the copied requests, in the table `aggregate`. No process has an empty ID."""

_TRIAL: Final = ("", "trial")
_TRIAL_BYTES: Final = 64 << 10

_REQUEST: Final = "id, signal, items, priority, thinned, checksum, body"


class MemorySpool:
    """A run's spool in shared memory. Only the agent's main thread may use it."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._folder = directory.memory

    @property
    def spool(self) -> Path:
        """Path of the spool in memory."""
        return self._folder / "spool.sqlite"

    def exists(self) -> bool:
        """Return whether memory contains a spool of this run that belongs to this user."""
        return not fault(self._folder.parent) and not fault(self._folder) and os.path.lexists(self.spool)

    def open(self, disk: Spool | None, max_bytes: int) -> Spool:
        """Open the spool in memory. If it is new, copy the readable requests that are waiting on the disk into it.

        Args:
            disk: Spool on the disk; None if it is not open.
            max_bytes: Maximum size in bytes, as for `Spool`, limited to `MAX_BYTES`.

        Raises:
            OSError: The folder cannot be created.
            SpoolError: The spool cannot be opened.
        """
        self._directory.make_ring_directory(self._folder)
        is_new = not self.exists()
        spool = Spool(self.spool, durability="none", max_bytes=min(max_bytes, MAX_BYTES))
        try:
            if is_new:
                self._fill(spool, disk)
            spool.elsewhere = self._note(spool).get("left", 0)
        except BaseException:
            spool.close()
            raise
        return spool

    def give_back(self, disk: Spool) -> None:
        """Move the spool in memory, if there is one, into the spool on the disk.

        Raises:
            SpoolError: The disk refuses the write.
        """
        if not self.exists():
            return
        spool = Spool(self.spool, durability="none")
        try:
            note = self._note(spool)
            self._copy_states(self._folder, self._directory.path)
            with disk.transaction():
                if self._note(disk).get("id") != note.get("id", ""):
                    _move(spool, disk, note)
        except ERRORS as error:
            raise named(error, f"cannot move {self.spool} to the disk", self.spool) from error
        finally:
            spool.close()
        self.remove()

    def remove(self) -> None:
        """Delete the spool in memory and the destinations' state next to it."""
        for path in self._folder.glob("spool.sqlite*"):
            path.unlink(missing_ok=True)
        (self._folder / "reserve").unlink(missing_ok=True)
        shutil.rmtree(self._folder / "exporters", ignore_errors=True)  # this follows no links

    def _fill(self, spool: Spool, disk: Spool | None) -> None:
        note: dict[str, Any] = {"id": uuid.uuid4().hex, "copied": [], "left": 0}
        with spool.transaction():
            try:
                if disk is not None:
                    _copy(disk, spool, note)
            except (*ERRORS, SpoolError) as error:
                logger.warning(
                    "cannot read all requests of the spool on disk: %s; keeping only the most recent requests", error
                )
                assert disk is not None
                _copy_recent(disk, spool, note)
            losses = disk.last_losses if disk is not None else {}
            _insert(spool, "IGNORE", "loss", [(reason, items, 0) for reason, items in losses.items()])
            _insert(spool, "REPLACE", "aggregate", [(*_NOTE, json.dumps(note))])
        self._copy_states(self._directory.path, self._folder)

    def _note(self, spool: Spool) -> dict[str, Any]:
        state = spool.aggregates(_NOTE[0]).get(_NOTE[1], "{}")
        with contextlib.suppress(ValueError):
            note = json.loads(state)
            if isinstance(note, dict):
                return note
        return {}

    def _copy_states(self, source: Path, target: Path) -> None:
        """Copy the exporters' state files."""
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(source / "exporters", target / "exporters", symlinks=True, dirs_exist_ok=True)


def works(path: Path) -> bool:
    """Return whether a spool can be opened and written to. This blocks on the disk."""
    try:
        spool = Spool(path)
        try:
            with spool.transaction():
                _insert(spool, "REPLACE", "aggregate", [(*_TRIAL, "x" * _TRIAL_BYTES)])
            with spool.transaction():
                _execute(spool, "DELETE FROM aggregate WHERE process = ? AND stream = ?", [_TRIAL])
        finally:
            spool.close()
    except SpoolError:
        return False
    return True


def _copy(disk: Spool, memory: Spool, note: dict[str, Any]) -> None:
    """Copy cursors, states and the oldest waiting requests."""
    # Read everything before writing anything, because the disk may fail in between.
    tables = {table: _rows(disk, table) for table in ("cursor", "process", "aggregate", "loss", "report", "origin")}
    requests, size = [], 0
    for (sequence,) in disk._fetch_all("SELECT DISTINCT sequence FROM pending ORDER BY sequence"):
        row = disk._fetch(f"SELECT sequence, {_REQUEST} FROM request WHERE sequence = ?", sequence)
        if row is None:
            continue
        size += len(row[-1])
        if size > _MOST_COPIED:
            break
        requests.append(row)
    copied = {row[0] for row in requests}
    pending, kept = _rows(disk, "pending"), _rows(disk, "kept")
    for table, content in tables.items():
        _insert(memory, "REPLACE", table, content)
    _execute(memory, f"INSERT INTO request (sequence, {_REQUEST}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", requests)
    _insert(memory, "ABORT", "pending", [row for row in pending if row[1] in copied])
    _insert(memory, "ABORT", "kept", [row for row in kept if row[1] in copied])
    note["copied"] = sorted(copied)
    note["left"] = sum(row[1] not in copied for row in pending)


def _copy_recent(disk: Spool, memory: Spool, note: dict[str, Any]) -> None:
    """Copy requests from memory that may still be waiting, because the disk cannot be read."""
    for recent in disk.recent:
        batch, signal, items, priority, check, body = recent.row
        row = (recent.sequence, batch, signal, items, priority, 0, check, body)
        _execute(memory, f"INSERT INTO request (sequence, {_REQUEST}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [row])
        _insert(memory, "ABORT", "pending", [(name, recent.sequence, items, 0) for name in recent.destinations])
    note["copied"] = [recent.sequence for recent in disk.recent]
    note["left"] = max(0, disk.last_pending - sum(len(recent.destinations) for recent in disk.recent))


def _move(memory: Spool, disk: Spool, note: dict[str, Any]) -> None:
    """Merge the spool in memory into the spool on the disk. Call this in a transaction of the spool on the disk."""
    copied = [number for number in note.get("copied", ()) if isinstance(number, int)]
    _execute(disk, "DELETE FROM request WHERE sequence = ?", [(number,) for number in copied])
    pending, kept = _rows(memory, "pending"), _rows(memory, "kept")
    for row in memory._fetch_all(f"SELECT sequence, {_REQUEST} FROM request ORDER BY sequence"):
        sequence = row[0] if row[0] in copied else None
        inserted = disk._database.execute(
            f"INSERT INTO request (sequence, {_REQUEST}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (sequence, *row[1:])
        ).lastrowid
        for table, rows in (("pending", pending), ("kept", kept)):
            _insert(disk, "ABORT", table, [(name, inserted, *rest) for name, at, *rest in rows if at == row[0]])
    positions = {row[:2]: row[2] for row in _rows(disk, "cursor")}
    _insert(disk, "REPLACE", "cursor", [row for row in _rows(memory, "cursor") if row[2] > positions.get(row[:2], -1)])
    lifecycles = {process: (started, ended) for process, started, ended in _rows(disk, "process")}
    for process, started, ended in _rows(memory, "process"):
        stored = lifecycles.get(process, (0, 0))
        _insert(disk, "REPLACE", "process", [(process, max(started, stored[0]), max(ended, stored[1]))])
    losses = {reason: (items, reported) for reason, items, reported in _rows(disk, "loss")}
    for reason, items, reported in _rows(memory, "loss"):
        known = losses.get(reason, (0, 0))
        _insert(disk, "REPLACE", "loss", [(reason, max(items, known[0]), max(reported, known[1]))])
    for table in ("aggregate", "report", "origin"):  # including the note
        _insert(disk, "REPLACE", table, _rows(memory, table))
    columns = "destination, id, reason, signal, items, priority, checksum, body"
    _execute(
        disk,
        f"INSERT OR IGNORE INTO quarantine ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        memory._fetch_all(f"SELECT {columns} FROM quarantine"),
    )


def _rows(spool: Spool, table: str) -> list[tuple[Any, ...]]:
    """Return a small table's rows without their checksums. Mismatches raise SpoolDamagedError."""
    return spool._all_sealed(table, "1")


def _insert(spool: Spool, on_conflict: str, table: str, rows: "Sequence[tuple[Any, ...]]") -> None:
    marks = ", ".join("?" * (SEALED[table].count(",") + 2))
    _execute(spool, f"INSERT OR {on_conflict} INTO {table} VALUES ({marks})", [(*row, seal(*row)) for row in rows])


def _execute(spool: Spool, statement: str, rows: "Sequence[tuple[Any, ...]]") -> None:
    spool._database.executemany(statement, rows)
