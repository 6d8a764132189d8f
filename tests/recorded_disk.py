"""A disk that remembers everything in order, and what it may hold after its power has failed.

`RecordedDisk` mounts a file system (FUSE) that passes everything through to a folder, in a process of its own, and records each
operation that a loss of power could undo: writes, changes of size, names, syncs. A program that writes text into the file `.mark`
at its top records what it has been promised, in order with the rest. `states` reads such a record; `State.make` makes a folder
with what the disk may hold if power fails after a number of operations.

The model of a disk:

- What was written to a file is there up to its last `fsync`. Names in a folder are there up to the last `fsync` of that folder.
- `Leniency.NOTHING`: nothing else is. The strictest disk that POSIX allows.
- `Leniency.SOME`: of everything else some is there, as with a journal of metadata (ext4, data=ordered). Names come in the order in which
  they were made, and a sync of anything makes all earlier ones durable. Of each file any of the overwritten pages of 4 KiB, and of what
  made it longer a beginning, whose last pages may be zeros; a change of size that is not there hides all that came after it.
- `Leniency.ALL`: everything is, as after a crash of the programs alone.
"""

import enum
import errno
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

PAGE = 4096
LONG_AGO = 1_000_000_000
"""When files were written last that a loss of power has left: before the machine was started again."""

MARK = "/.mark"
MARK_HANDLE = 1 << 30
HIDDEN = ".fuse_hidden"
"""Start of the names that libfuse gives to files that are open and deleted."""


class Unavailable(Exception):
    """This machine cannot mount such a file system."""


class RecordedDisk:
    """A mounted file system.

    Attributes:
        path: Where it is mounted.
        backing: The folder where its files are.
        record: The file of operations.
    """

    def __init__(self, folder: Path) -> None:
        """Mount it in an empty folder. Blocks until it can be used.

        Raises:
            Unavailable: This machine cannot mount it.
        """
        if sys.platform != "linux" or not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise Unavailable("there is no /dev/fuse that can be used")
        if os.geteuid() != 0:
            raise Unavailable("mounting needs root")
        try:
            import mfusepy  # noqa: F401
        except (ImportError, OSError) as error:
            raise Unavailable(f"mfusepy or libfuse2 is missing ({error})") from error
        self.path, self.backing, self.record = folder / "mount", folder / "backing", folder / "record"
        self.path.mkdir()
        self.backing.mkdir()
        self.record.touch()
        log = folder / "recorded_disk.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self.path), str(self.backing), str(self.record)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise Unavailable(f"no file system can be mounted: {log.read_text()[-500:]}")

    def mark(self, text: str) -> None:
        """Record a promise."""
        mark(self.path, text)

    def close(self) -> None:
        """Unmount it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)
            subprocess.run(["umount", "-l", str(self.path)], check=False)
        self._process.stdout.close()


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
        rest: What belongs to it.
    """

    time: float
    kind: str
    where: Any
    rest: tuple[Any, ...] = ()


def operations(record: Path) -> list[Operation]:
    """All operations of a record."""
    found = []
    with record.open("rb") as file:
        while True:
            try:
                moment, kind, where, *rest = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return found
            found.append(Operation(moment, kind, where, tuple(rest)))


class Leniency(enum.Enum):
    """How much of what was not synced a disk holds; see the module."""

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
        """What the disk has of it, with some of what was not synced."""
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
            names = {number: dict(held) for number, held in self._journal.items()}
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
                held = _File(bytearray(node.data), list(node.pending))
                held.sync()
                data = held.data
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
        number = next(number for number, held in self._nodes.items() if held is parent)
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

    class Recording(mfusepy.Operations):
        use_ns = True

        def init(self, path: str) -> None:
            threading.Thread(target=wait_for_the_end, daemon=True).start()
            print("mounted", flush=True)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == MARK:
                return {"st_mode": 0o100666, "st_nlink": 1, "st_size": 0}
            status = os.lstat(backing + path) if fh in (None, MARK_HANDLE) else os.fstat(fh)
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks")
            times = {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(backing + path)]

        def open(self, path: str, flags: int) -> int:
            if path == MARK:
                return MARK_HANDLE
            with order:
                handle = os.open(backing + path, flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL))
                if flags & os.O_TRUNC:
                    say("truncate", number_of(handle), 0)
                return handle

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            nonlocal last
            with order:
                handle = os.open(backing + path, os.O_RDWR | os.O_CREAT, mode & 0o7777)
                last += 1
                numbers[os.fstat(handle).st_ino] = last
                say("create", path, last)
                return handle

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return b"" if fh == MARK_HANDLE else os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            with order:
                if fh == MARK_HANDLE:
                    say("mark", bytes(data).decode())
                    return len(data)
                written = os.pwrite(fh, data, offset)
                say("write", number_of(fh), offset, bytes(data[:written]))
                return written

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            if path == MARK:
                return
            with order:
                os.truncate(backing + path if fh is None else fh, length)
                status = os.stat(backing + path) if fh is None else os.fstat(fh)
                say("truncate", numbers[status.st_ino], length)

        def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> None:
            if mode:
                raise OSError(errno.EOPNOTSUPP, "only room can be taken")
            with order:
                os.posix_fallocate(fh, offset, size)
                say("truncate", number_of(fh), os.fstat(fh).st_size)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            with order:
                say("fsync", number_of(fh))

        def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
            with order:
                say("fsyncdir", path)

        def flush(self, path: str, fh: int) -> None:
            pass

        def release(self, path: str, fh: int) -> None:
            if fh != MARK_HANDLE:
                os.close(fh)

        def mkdir(self, path: str, mode: int) -> None:
            with order:
                os.mkdir(backing + path, mode)
                say("mkdir", path)

        def rmdir(self, path: str) -> None:
            with order:
                os.rmdir(backing + path)
                say("rmdir", path)

        def unlink(self, path: str) -> None:
            with order:
                os.unlink(backing + path)
                say("unlink", path)

        def rename(self, old: str, new: str) -> None:
            with order:
                os.rename(backing + old, backing + new)
                say("rename", old, new)

        def link(self, target: str, source: str) -> None:
            with order:
                os.link(backing + source, backing + target)
                say("link", source, target)

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(backing + path, mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(backing + path, uid, gid)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            if path != MARK:
                os.utime(backing + path, ns=times)

        def statfs(self, path: str) -> dict[str, int]:
            disk = os.statvfs(backing)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            return {name: getattr(disk, name) for name in names} | {"f_namemax": disk.f_namemax}

    mfusepy.FUSE(Recording(), mount, foreground=True, fsname="recorded_disk", allow_other=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
