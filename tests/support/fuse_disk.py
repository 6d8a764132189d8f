"""File systems in user space (FUSE) for tests: each passes everything through to a folder, in a separate process."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.processes import module_command

__all__ = ["HIDDEN", "MountedDisk", "Unavailable", "pass_through"]

HIDDEN = ".fuse_hidden"
"""Start of the names that libfuse gives to files that are open and deleted."""


class Unavailable(Exception):
    """The machine cannot mount such a file system."""


class MountedDisk:
    """A mounted file system.

    Attributes:
        path: The folder where it is mounted.
        backing: The folder with its files. Access to it bypasses the file system.
    """

    def __init__(self, folder: Path, module: str, *arguments: str) -> None:
        """Mount it in an empty folder. Blocks until it can be used.

        Args:
            folder: The folder.
            module: Module of this package that is the file system when it is run. Its first arguments are the paths of mount and
                backing. It writes a line when it is mounted, and unmounts when its standard input ends.
            arguments: Further arguments of the program.

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
        self.path, self.backing, log = folder / "mount", folder / "backing", folder / f"{module}.log"
        self.path.mkdir()
        self.backing.mkdir()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                module_command(module, str(self.path), str(self.backing), *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise Unavailable(f"no file system can be mounted: {log.read_text()[-500:]}")

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


def pass_through(backing: str) -> type:
    """Operations that do what they are for in a folder. Syncing does nothing there."""
    import mfusepy

    class PassThrough(mfusepy.Operations):
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            status = os.lstat(backing + path) if fh is None else os.fstat(fh)
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks")
            times = {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> Sequence[str]:
            return [".", "..", *os.listdir(backing + path)]

        def open(self, path: str, flags: int) -> int:
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
            return {name: getattr(disk, name) for name in names} | {"f_namemax": disk.f_namemax}

    return PassThrough
