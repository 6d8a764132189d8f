"""A file system with the manners of network and cloud file systems, which a test changes while something uses it.

It passes everything through to a folder of its own, in a process of its own (FUSE). A test uses the fixture `odd_disk`:

    disk = odd_disk(maps=False)         # for its whole life: no shared memory maps (direct I/O), no locks (ENOLCK)
    disk.behave(fail_writes="EDQUOT")   # from now on; returns when it is so
    disk.behave(hang=True)              # operations wait until the next call
    disk.behave()                       # everything works

What `behave` takes:

    fail            Name of an errno. Every operation fails with it.
    fail_writes     Name of an errno. Operations that change something fail with it; the other ones work.
    rate            Share of the operations to which `fail` and `fail_writes` apply, from 0 to 1.
    latency         Seconds that each operation takes.
    hang            Each operation waits until the manners change.
    refuse          Names of operations that the file system does not have: "fsync", "rename", "link", "fallocate".
"""

import errno
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WRITES = frozenset(
    {"chmod", "chown", "create", "fallocate", "fsync", "fsyncdir", "link", "mkdir", "rename", "rmdir", "truncate"}
    | {"unlink", "utimens", "write"}
)
READS = frozenset({"flock", "flush", "getattr", "lock", "open", "read", "readdir", "statfs"})
REFUSALS = {
    "fallocate": errno.EOPNOTSUPP,
    "fsync": errno.EINVAL,
    "fsyncdir": errno.EINVAL,
    "link": errno.EPERM,
    "rename": errno.ENOSYS,
}
HIDDEN = ".fuse_hidden"
"""Start of the names that libfuse gives to files that are open and deleted."""


class OddDisk:
    """A mounted file system.

    Attributes:
        path: Where it is mounted.
        backing: The folder where its files are. What happens there happens without its manners.
    """

    def __init__(self, folder: Path, *, maps: bool = True, locks: bool = True, kind: str = "") -> None:
        """Mount it. Blocks until it can be used.

        Args:
            folder: An empty folder.
            maps: Whether files can be mapped as shared memory.
            locks: Whether files can be locked. If not, locks fail with ENOLCK.
            kind: Name of the file system in the table of mounts, after `fuse.`; without one, it is `fuse`.

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
        self.path, self.backing, log = folder / "mount", folder / "backing", folder / "odd_disk.log"
        self.path.mkdir()
        self.backing.mkdir()
        options = {"maps": maps, "locks": locks, "kind": kind}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self.path), str(self.backing), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise Unavailable(f"no file system can be mounted: {log.read_text()[-500:]}")

    def behave(self, **manners: Any) -> None:
        """Replace its manners; see the module. Returns when every operation that begins follows them."""
        unknown = set(manners) - {"fail", "fail_writes", "rate", "latency", "hang", "refuse"}
        assert not unknown, unknown
        self._ask(manners)

    @property
    def hanging(self) -> int:
        """Number of operations that wait for the manners to change."""
        return self._ask(None)["hanging"]

    @property
    def failed(self) -> int:
        """Number of operations that have failed because of manners since these were last replaced."""
        return self._ask(None)["failed"]

    def close(self) -> None:
        """Unmount it, also while files are open in it: these fail from then on."""
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

    def _ask(self, manners: dict[str, Any] | None) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(manners) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the process of the file system has ended; see odd_disk.log"
        counts: dict[str, int] = json.loads(answer)
        return counts


class Unavailable(Exception):
    """This machine cannot mount such a file system."""


class Manners:
    """The manners in force, in the process of the file system."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._manners: dict[str, Any] = {}
        self._random = random.Random(1)
        self._hanging = self._failed = 0

    def replace(self, manners: dict[str, Any]) -> None:
        with self._changed:
            self._manners = manners
            self._failed = 0
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        with self._changed:
            return {"hanging": self._hanging, "failed": self._failed}

    def before(self, operation: str, *, writes: bool) -> None:
        """Do to an operation what the manners say.

        Raises:
            OSError: It fails.
        """
        with self._changed:
            if self._manners.get("hang"):
                self._hanging += 1
                self._changed.wait_for(lambda: not self._manners.get("hang"))
                self._hanging -= 1
            if latency := self._manners.get("latency"):
                manners = self._manners
                self._changed.wait_for(lambda: self._manners is not manners, latency)
            manners = self._manners
            name = manners.get("fail") or (manners.get("fail_writes") if writes else None)
            refused = operation.removesuffix("dir") if operation == "fsyncdir" else operation
            if name and self._random.random() < manners.get("rate", 1):
                self._failed += 1
                raise OSError(getattr(errno, name), name)
            if refused in manners.get("refuse", ()):
                self._failed += 1
                raise OSError(REFUSALS[operation], "refused")

    @property
    def full(self) -> bool:
        return "ENOSPC" in (self._manners.get("fail"), self._manners.get("fail_writes"))

    @property
    def read_only(self) -> bool:
        return "EROFS" in (self._manners.get("fail"), self._manners.get("fail_writes"))

    def serve(self, unmount: Callable[[], None]) -> None:
        """Take manners from the standard input, and acknowledge them, until it ends."""
        for line in sys.stdin:
            manners = json.loads(line)
            if manners is not None:
                self.replace(manners)
            print(json.dumps(self.counts()), flush=True)
        unmount()
        os._exit(0)  # closes /dev/fuse: whoever still waits for an operation gets an error


def serve(mount: str, backing: str, options: dict[str, Any]) -> None:
    """Be the file system until the standard input ends."""
    import mfusepy

    manners = Manners()

    def unmount() -> None:
        subprocess.run(["umount", "-l", mount], check=False)

    class PassThrough(mfusepy.Operations):
        use_ns = True

        def init(self, path: str) -> None:
            threading.Thread(target=manners.serve, args=(unmount,), daemon=True).start()
            print("{}", flush=True)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            status = os.lstat(backing + path) if fh is None else os.fstat(fh)
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks")
            times = {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> Sequence[str]:
            return [".", "..", *os.listdir(backing + path)]

        def open(self, path: str, flags: int) -> int:
            if manners.read_only and flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, "read-only")
            return os.open(backing + path, flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL))

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(backing + path, os.O_RDWR | os.O_CREAT, mode & 0o7777)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(backing + path if fh is None else fh, length)

        def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> None:
            if mode:
                raise OSError(errno.EOPNOTSUPP, "only room can be taken")
            os.posix_fallocate(fh, offset, size)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            pass  # no test pulls a plug

        def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
            pass

        def flush(self, path: str, fh: int) -> None:
            pass

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(backing + path, mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(backing + path)

        def unlink(self, path: str) -> None:
            os.unlink(backing + path)

        def rename(self, old: str, new: str) -> None:
            os.rename(backing + old, backing + new)

        def link(self, target: str, source: str) -> None:
            os.link(backing + source, backing + target)

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(backing + path, mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(backing + path, uid, gid)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            os.utime(backing + path, ns=times)

        def statfs(self, path: str) -> dict[str, int]:
            disk = os.statvfs(backing)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            room = {name: getattr(disk, name) for name in names}
            return room | {"f_namemax": disk.f_namemax} | ({"f_bavail": 0, "f_bfree": 0} if manners.full else {})

    class WithoutLocks(PassThrough):
        def lock(self, path: str, fh: int, cmd: int, lock: Any) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        def flock(self, path: str, fh: int, op: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

    def mannered(operation: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """An operation that follows the manners before it does what it is for."""

        def operate(*arguments: Any) -> Any:
            if not (operation == "rename" and os.path.basename(arguments[2]).startswith(HIDDEN)):
                manners.before(operation, writes=operation in WRITES)
            return plain(*arguments)

        return operate

    operations = PassThrough if options["locks"] else WithoutLocks
    for operation in WRITES | READS:
        plain = operations.__dict__.get(operation) or PassThrough.__dict__.get(operation)
        if plain is not None:
            mannered_operation = mannered(operation, plain)
            if operation == "create":  # its parameters are counted
                mannered_operation = lambda self, path, mode, fi=None, create=mannered_operation: create(  # noqa: E731
                    self, path, mode, fi
                )
            setattr(operations, operation, mannered_operation)
    mount_options: dict[str, Any] = {"fsname": "odd_disk", "allow_other": True}
    if options["kind"]:
        mount_options["subtype"] = options["kind"]
    if not options["maps"]:
        mount_options["direct_io"] = True
    mfusepy.FUSE(operations(), mount, foreground=True, **mount_options)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
