"""Folders and files that belong to one user alone: making them, and checking those that are there.

Nothing here depends on the umask, but on modes: folders are 0700, files 0600. Symbolic links are never followed when a file is
opened. Any thread; blocks for the disk.
"""

import contextlib
import functools
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tensormeter.logger import get_logger

__all__ = [
    "fault",
    "make_directory",
    "make_file",
    "oddity",
    "open_file",
    "tighten_contents",
    "tighten_directory",
    "weakness",
]

logger: Final = get_logger()

_DIRECTORY: Final = 0o700
_FILE: Final = 0o600
_OTHERS: Final = 0o077
_MOST_LINKS: Final = 40


def fault(path: Path) -> str:
    """Why a folder is not this user's alone; what leads to it is not looked at.

    Nobody can make a folder that belongs to this user, so what is in one that has no fault was put there by this user.

    Returns:
        A phrase that names the folder; "" if it is this user's, or root's, or does not exist.
    """
    try:
        return _fault(path, path.lstat())
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be checked: {error.strerror}"


def weakness(path: Path) -> str:
    """Why somebody else could have put this folder there, or could change what is in it.

    The folder and everything that leads to it must belong to this user or root, and nobody else may write to it. On the way there
    may be folders that are sticky (as /dev/shm and /tmp are), that others cannot reach, or whose group has no other members.
    Links on the way must belong to this user or root, too.

    Returns:
        A phrase that names the folder at fault; "" if there is none, also if `path` does not exist.
    """
    try:
        return next(_faults(path), "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be checked: {error.strerror}"


def make_directory(path: Path) -> None:
    """Make a folder, and the missing ones that lead to it, for this user alone. Those that exist stay as they are.

    Raises:
        OSError: It cannot be made.
    """
    try:
        _make_one(path)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            _make_one(path)
    except OSError:
        if not path.is_dir():
            raise


def tighten_directory(path: Path) -> None:
    """Check that a folder belongs to this user, and take the rights of all others away.

    Raises:
        PermissionError: It is someone else's. Root is only warned.
        OSError: It is no folder.
    """
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and not _is_trusted(link.st_uid):
        raise PermissionError(
            f"the link {path} belongs to {_name(link.st_uid)}; set TENSORMETER_DIR to a folder of your own"
        )
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not _is_own(path, status.st_uid):
            complaint = f"{path} belongs to {_name(status.st_uid)}, who could replace what is kept there"
            if os.geteuid() != 0:
                raise PermissionError(f"{complaint}; set TENSORMETER_DIR to a folder of your own")
            # As in a container with a folder of the host's user. Such runs are in doubt: what delivers them does not believe them.
            _warn_once(f"{complaint}; `tensormeter sync` delivers it with its own settings")
        if status.st_mode & _OTHERS:
            with contextlib.suppress(OSError):  # file systems without modes
                os.fchmod(descriptor, _DIRECTORY)
            if status.st_mode & 0o022 and not os.fstat(descriptor).st_mode & _OTHERS:
                logger.warning(
                    "other users could write to %s (mode %s), where runs are kept; its mode is 0700 now",
                    path,
                    _mode(status),
                )
    finally:
        os.close(descriptor)


def tighten_contents(path: Path) -> None:
    """Take the rights of all others from what this user has in a folder; call it after `tighten_directory`. Links stay as they are.

    Raises:
        OSError: The folder cannot be listed.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # gone meanwhile, or a file system without modes
                entry = Path(folder, name)
                status = entry.lstat()
                kind = stat.S_IFMT(status.st_mode)
                if status.st_mode & _OTHERS and kind in (stat.S_IFREG, stat.S_IFDIR) and status.st_uid == os.geteuid():
                    entry.chmod(_FILE if kind == stat.S_IFREG else _DIRECTORY)


def open_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file that nobody else may read, and make it if `flags` say so. No link is followed, and no FIFO waited for.

    Returns:
        A descriptor that child processes do not inherit.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _FILE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        if flags & os.O_CREAT and stat.S_IMODE(status.st_mode) != _FILE and status.st_uid == os.geteuid():
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, _FILE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def oddity(path: Path) -> str:
    """What is in the place of a file that is ours, and what to do.

    Returns:
        A sentence that names the path; "" if it is a regular file, or there is none, or the disk does not say.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "not a regular file"
    return f"{path} is {kind}, where a file belongs; remove it"


def make_file(path: Path) -> None:
    """Make an empty file that nobody else may read, or take the rights of others from the one that is there.

    A file that is there is not opened: closing it would give up this process's POSIX locks on it.

    Raises:
        OSError: It cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE)
        try:
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, _FILE)
        finally:
            os.close(descriptor)
    except FileExistsError:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mode & _OTHERS and status.st_uid == os.geteuid():
            with contextlib.suppress(OSError):
                path.chmod(_FILE)


def _make_one(path: Path) -> None:
    """Make a folder in one that is there. A umask that takes rights of its own user does not count.

    Raises:
        OSError: It cannot be made, or there is something already.
    """
    path.mkdir(mode=_DIRECTORY)
    status = path.lstat()
    if status.st_mode & _DIRECTORY != _DIRECTORY and stat.S_ISDIR(status.st_mode):
        path.chmod(_DIRECTORY)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _faults(path: Path) -> Iterator[str]:
    """What is wrong with the folders that lead to one, and with that one, from the root on.

    Raises:
        OSError: One of them is not there, or cannot be looked at.
    """
    current = Path(os.sep)
    whole = path if path.is_absolute() else Path.cwd() / path
    left = list(reversed(whole.parts[1:]))
    reachable = {current: True}
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            current = current.parent
            continue
        folder = current / part
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                yield f"{folder} is one of too many links"
                return
            if not _is_trusted(status.st_uid):
                yield f"the link {folder} belongs to {_name(status.st_uid)}"
            target = folder.readlink()
            if target.is_absolute():
                current = Path(os.sep)
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            continue
        if not left:
            if reason := _fault(folder, status):
                yield reason
            return
        if not stat.S_ISDIR(status.st_mode):
            yield f"{folder} is not a folder"
            return
        if not _is_trusted(status.st_uid) and not _is_unmapped(status.st_uid):
            yield f"{folder} belongs to {_name(status.st_uid)}"
        if reachable[current] and not status.st_mode & stat.S_ISVTX and _others_write(status):
            yield f"others can write to {folder} (mode {_mode(status)})"
        reachable[folder] = reachable[current] and bool(status.st_mode & 0o011)
        current = folder


def _fault(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is {'a link' if stat.S_ISLNK(status.st_mode) else 'not a folder'}"
    if not _is_trusted(status.st_uid):
        return f"{path} belongs to {_name(status.st_uid)}"
    return f"others can write to {path} (mode {_mode(status)})" if status.st_mode & 0o022 else ""


def _others_write(status: os.stat_result) -> bool:
    """Whether others may add, rename and remove entries of a folder that they reach."""
    if status.st_mode & 0o003 == 0o003:
        return True
    return status.st_mode & 0o030 == 0o030 and not _is_alone_in(status.st_gid)


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _is_own(path: Path, uid: int) -> bool:
    """Whether a folder with this owner is this user's. Some file systems give all files one owner, whoever makes them."""
    if uid == os.geteuid():
        return True
    try:
        with tempfile.TemporaryFile(dir=path) as made:
            return os.fstat(made.fileno()).st_uid == uid
    except OSError:
        return False


def _is_alone_in(gid: int) -> bool:
    """Whether a group is the one that many systems give each user, with nobody else in it."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@functools.cache
def _unmapped_uid() -> int | None:
    """The owner that files seem to have whose owner has no id in this user namespace; None if all have one.

    In rootless containers the host's root is such an owner.
    """
    try:
        whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
        return None if whole else int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


def _is_unmapped(uid: int) -> bool:
    return uid == _unmapped_uid()


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _mode(status: os.stat_result) -> str:
    return f"0{stat.S_IMODE(status.st_mode):03o}"
