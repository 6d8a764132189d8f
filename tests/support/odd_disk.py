"""A file system with the manners of network and cloud file systems, which a test changes while something uses it.

It passes everything through to a separate folder, in a separate process (FUSE). A test uses the fixture `odd_disk`:

    disk = odd_disk(maps=False)         # for its whole life: no shared memory maps (direct I/O), no locks (ENOLCK)
    disk.behave(fail_writes="EDQUOT")   # from now on; returns when it is so
    disk.behave(hang=True)              # operations wait until the next call
    disk.behave()                       # everything works

The arguments of `behave`:

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.fuse_disk import HIDDEN, MountedDisk, pass_through

__all__ = ["OddDisk"]

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


class OddDisk(MountedDisk):
    """A mounted file system with manners."""

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
        self._lock = threading.Lock()
        super().__init__(folder, "odd_disk", json.dumps({"maps": maps, "locks": locks, "kind": kind}))

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
        os._exit(0)  # closes /dev/fuse: processes that still wait for an operation get an error


def serve(mount: str, backing: str, options: dict[str, Any]) -> None:
    """Be the file system until the standard input ends."""
    import mfusepy

    manners = Manners()

    def unmount() -> None:
        subprocess.run(["umount", "-l", mount], check=False)

    plain_operations: Any = pass_through(backing)

    class Mannered(plain_operations):
        def init(self, path: str) -> None:
            threading.Thread(target=manners.serve, args=(unmount,), daemon=True).start()
            print("{}", flush=True)

        def open(self, path: str, flags: int) -> int:
            if manners.read_only and flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, "read-only")
            return super().open(path, flags)

        def statfs(self, path: str) -> dict[str, int]:
            return super().statfs(path) | ({"f_bavail": 0, "f_bfree": 0} if manners.full else {})

    class WithoutLocks(Mannered):
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

    operations = Mannered if options["locks"] else WithoutLocks
    ours = operations.__mro__[: operations.__mro__.index(mfusepy.Operations)]
    for operation in WRITES | READS:
        plain = next((each.__dict__[operation] for each in ours if operation in each.__dict__), None)
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
