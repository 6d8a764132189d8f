"""A disk that remembers everything in order, and what it may hold after its power has failed.

`RecordedDisk` mounts a file system (FUSE) that passes everything through to a folder, in a separate process, and records each
operation that a power failure could undo: writes, changes of size, names, syncs. A program that writes text into the file `.mark`
at its top records what it has been promised, in order with the rest. `states` reads such a record; `State.make` makes a folder
with what the disk may hold if power fails after a number of operations.

The model of a disk:

- Data of a file is there up to its last `fsync`. Names in a folder are there up to the last `fsync` of that folder.
- `Leniency.NOTHING`: nothing else is. The strictest disk that POSIX allows.
- `Leniency.SOME`: of everything else some is there, as with a journal of metadata (ext4, data=ordered). Names come in the order in which
  they were made, and a sync of anything makes all earlier ones durable. Each file has any of its overwritten pages of 4 KiB, and a
  beginning of the bytes that made it longer, whose last pages may be zeros; a missing change of size hides all later ones.
- `Leniency.ALL`: everything is, as after a crash of the programs alone.
"""

import enum
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.fuse_disk import HIDDEN, MountedDisk, pass_through

PAGE = 4096
LONG_AGO = 1_000_000_000
"""The time of the files that a power failure has left: before the machine was started again."""

MARK = "/.mark"
MARK_HANDLE = 1 << 30


class RecordedDisk(MountedDisk):
    """A mounted file system that records.

    Attributes:
        record: The file of operations.
    """

    def __init__(self, folder: Path) -> None:
        """Mount it in an empty folder. Blocks until it can be used.

        Raises:
            Unavailable: This machine cannot mount it.
        """
        self.record = folder / "record"
        self.record.touch()
        super().__init__(folder, "recorded_disk", str(self.record))

    def mark(self, text: str) -> None:
        """Record a promise."""
        mark(self.path, text)


def mark(mount: Path, text: str) -> None:
    """Record a promise on the disk that is mounted there."""
    descriptor = os.open(mount / MARK[1:], os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Operation:
    """One of a record.

    Attributes:
        time: When, by the monotonic clock.
        kind: "create", "mkdir", "unlink", "rmdir", "rename", "link", "write", "truncate", "fsync", "fsyncdir" or "mark".
        where: Path, or number of the file for "write", "truncate" and "fsync".
        rest: Data of the operation.
    """

    time: float
    kind: str
    where: Any
    rest: tuple[Any, ...] = ()


def operations(record: Path) -> list[Operation]:
    """All operations of a record."""
    recorded = []
    with record.open("rb") as file:
        while True:
            try:
                moment, kind, where, *rest = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return recorded
            recorded.append(Operation(moment, kind, where, tuple(rest)))


class Leniency(enum.Enum):
    """The part of the unsynced data that a disk keeps; see the module."""

    NOTHING = "nothing"
    SOME = "some"
    ALL = "all"


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        if operation.kind == "truncate":
            (size,) = operation.rest
            del self.data[size:]
            self.data.extend(bytes(size - len(self.data)))
            return
        offset, content = operation.rest
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(content)] = content

    def sync(self) -> None:
        for operation in self.pending:
            self.apply(operation)
        self.pending = []

    def settled(self, chance: random.Random) -> bytearray:
        """The content on the disk, with some of the data that was not synced."""
        disk = _File(bytearray(self.data))
        grows = True
        for operation in self.pending:
            if operation.kind == "truncate":
                if not grows or chance.random() < 0.5:
                    break
                disk.apply(operation)
                continue
            offset, content = operation.rest
            inside = max(0, min(len(content), len(disk.data) - offset))
            for at in range(0, inside, PAGE):
                if chance.random() < 0.5:
                    page = content[at : min(at + PAGE, inside)]
                    disk.apply(Operation(0, "write", 0, (offset + at, page)))
            if inside == len(content) or not grows:
                continue
            added = content[inside:]
            if chance.random() < 0.2:
                grows = False
                added = added[: chance.randrange(len(added) + 1) // PAGE * PAGE]
            if chance.random() < 0.1:
                grows = False
                added = added[: len(added) // 2] + bytes(len(added) - len(added) // 2)
            if added:
                disk.apply(Operation(0, "write", 0, (offset + inside, added)))
        return disk.data


@dataclass
class _Folder:
    names: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)


class State:
    """A disk at some moment of its record. `advance` it, then `make` folders of what it may hold."""

    def __init__(self, record: list[Operation]) -> None:
        self._record = record
        self._at = 0
        self._nodes: dict[int, _File | _Folder] = {0: _Folder()}
        self._ids = -1
        """Number of the next folder. The top has 0, and files have those of the record, from 1."""
        self._pending: list[tuple[int, str, int | None]] = []
        """Changes of names since the last sync of anything: (folder, name, node or None)."""
        self._journal: dict[int, dict[str, int]] = {0: {}}
        """Names in each folder as of that sync."""
        self.marks: list[tuple[float, str]] = []
        """Promises so far, with their times."""
        self.time = 0.0

    def advance(self, cut: int) -> None:
        """Go on until so many operations of the record are done."""
        for operation in self._record[self._at : cut]:
            self._do(operation)
            self.time = operation.time
        self._at = max(self._at, cut)

    def make(self, folder: Path, leniency: Leniency, chance: random.Random) -> None:
        """Put what the disk may hold into a folder, which is emptied first."""
        shutil.rmtree(folder, ignore_errors=True)
        names = {number: dict(node.durable) for number, node in self._nodes.items() if isinstance(node, _Folder)}
        if leniency is Leniency.ALL:
            names = {number: dict(node.names) for number, node in self._nodes.items() if isinstance(node, _Folder)}
        elif leniency is Leniency.SOME:
            names = {number: dict(entries) for number, entries in self._journal.items()}
            for where, name, node in self._pending[: chance.randrange(len(self._pending) + 1)]:
                _set(names[where], name, node)

        def put(number: int, path: Path) -> None:
            node = self._nodes[number]
            if isinstance(node, _Folder):
                path.mkdir(mode=0o700)
                for name, child in names[number].items():
                    put(child, path / name)
                return
            if leniency is Leniency.ALL:
                synced_file = _File(bytearray(node.data), list(node.pending))
                synced_file.sync()
                data = synced_file.data
            else:
                data = node.data if leniency is Leniency.NOTHING else node.settled(chance)
            path.write_bytes(data)
            path.chmod(0o600)
            if leniency is not Leniency.ALL:
                os.utime(path, (LONG_AGO, LONG_AGO))

        put(0, folder)

    def _do(self, operation: Operation) -> None:
        kind, where, rest = operation.kind, operation.where, operation.rest
        if kind == "mark":
            self.marks.append((operation.time, where))
        elif kind in ("write", "truncate"):
            self._file(where).pending.append(operation)
        elif kind == "fsync":
            self._file(where).sync()
            self._commit()
        elif kind == "fsyncdir":
            folder = self._folder(where)
            folder.durable = dict(folder.names)
            self._commit()
        elif kind == "create":
            (number,) = rest
            self._nodes.setdefault(number, _File())
            self._name(where, number)
        elif kind == "mkdir":
            self._nodes[self._ids] = _Folder()
            self._journal[self._ids] = {}
            self._name(where, self._ids)
            self._ids -= 1
        elif kind in ("unlink", "rmdir"):
            self._name(where, None)
        elif kind in ("rename", "link"):
            parent, name = self._parent(where)
            node = parent.names[name]
            if kind == "rename":
                self._name(where, None)
            if not os.path.basename(rest[0]).startswith(HIDDEN):
                self._name(rest[0], node)

    def _commit(self) -> None:
        for where, name, node in self._pending:
            _set(self._journal[where], name, node)
        self._pending = []

    def _name(self, path: str, node: int | None) -> None:
        if os.path.basename(path).startswith(HIDDEN):
            return
        parent, name = self._parent(path)
        _set(parent.names, name, node)
        number = next(number for number, candidate in self._nodes.items() if candidate is parent)
        self._pending.append((number, name, node))

    def _parent(self, path: str) -> tuple[_Folder, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _folder(self, path: str) -> _Folder:
        node: _File | _Folder = self._nodes[0]
        for part in path.split("/"):
            if part:
                assert isinstance(node, _Folder)
                node = self._nodes[node.names[part]]
        assert isinstance(node, _Folder)
        return node

    def _file(self, number: int) -> _File:
        node = self._nodes.setdefault(number, _File())
        assert isinstance(node, _File)
        return node


def _set(names: dict[str, int], name: str, node: int | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def cuts(record: list[Operation], number: int, chance: random.Random, *, after: int = 0) -> list[int]:
    """Numbers of operations after which power fails: in order, some of them right before or behind syncs."""
    syncs = [at for at, operation in enumerate(record) if operation.kind.startswith("fsync") and at > after]
    chosen = [chance.randrange(after, len(record)) + 1 for _ in range(number - number // 3)]
    chosen += [chance.choice(syncs) + chance.randrange(2) for _ in range(number // 3)]
    return sorted(chosen)


def each_state(record: list[Operation], chosen: list[int]) -> Iterator[State]:
    """The disk at each of some cuts, in order."""
    state = State(record)
    for cut in chosen:
        state.advance(cut)
        yield state


def serve(mount: str, backing: str, record: str) -> None:
    """Be the file system until the standard input ends."""
    import mfusepy

    log = open(record, "ab", buffering=0)  # noqa: SIM115
    order = threading.RLock()
    numbers: dict[int, int] = {}
    last = 0

    def say(kind: str, where: Any, *rest: Any) -> None:
        log.write(pickle.dumps((time.monotonic(), kind, where, *rest)))

    def number_of(handle: int) -> int:
        return numbers[os.fstat(handle).st_ino]

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        subprocess.run(["umount", "-l", mount], check=False)
        os._exit(0)

    plain_operations: Any = pass_through(backing)

    class Recording(plain_operations):
        def init(self, path: str) -> None:
            threading.Thread(target=wait_for_the_end, daemon=True).start()
            print("mounted", flush=True)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == MARK:
                return {"st_mode": 0o100666, "st_nlink": 1, "st_size": 0}
            return super().getattr(path, None if fh == MARK_HANDLE else fh)

        def open(self, path: str, flags: int) -> int:
            if path == MARK:
                return MARK_HANDLE
            with order:
                handle = super().open(path, flags)
                if flags & os.O_TRUNC:
                    say("truncate", number_of(handle), 0)
                return handle

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            nonlocal last
            with order:
                handle = super().create(path, mode, fi)
                last += 1
                numbers[os.fstat(handle).st_ino] = last
                say("create", path, last)
                return handle

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return b"" if fh == MARK_HANDLE else super().read(path, size, offset, fh)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            with order:
                if fh == MARK_HANDLE:
                    say("mark", bytes(data).decode())
                    return len(data)
                written = super().write(path, data, offset, fh)
                say("write", number_of(fh), offset, bytes(data[:written]))
                return written

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            if path == MARK:
                return
            with order:
                super().truncate(path, length, fh)
                status = os.stat(backing + path) if fh is None else os.fstat(fh)
                say("truncate", numbers[status.st_ino], length)

        def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> None:
            with order:
                super().fallocate(path, mode, offset, size, fh)
                say("truncate", number_of(fh), os.fstat(fh).st_size)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            with order:
                say("fsync", number_of(fh))

        def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
            with order:
                say("fsyncdir", path)

        def release(self, path: str, fh: int) -> None:
            if fh != MARK_HANDLE:
                super().release(path, fh)

        def mkdir(self, path: str, mode: int) -> None:
            with order:
                super().mkdir(path, mode)
                say("mkdir", path)

        def rmdir(self, path: str) -> None:
            with order:
                super().rmdir(path)
                say("rmdir", path)

        def unlink(self, path: str) -> None:
            with order:
                super().unlink(path)
                say("unlink", path)

        def rename(self, old: str, new: str) -> None:
            with order:
                super().rename(old, new)
                say("rename", old, new)

        def link(self, target: str, source: str) -> None:
            with order:
                super().link(target, source)
                say("link", source, target)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            if path != MARK:
                super().utimens(path, times)

    mfusepy.FUSE(Recording(), mount, foreground=True, fsname="recorded_disk", allow_other=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
