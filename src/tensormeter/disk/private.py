"""Private folders and files: creating them, and checking existing ones.

Folders have mode 0700 and files have mode 0600, under any umask. Opening a file never follows a symbolic link. Any
thread may call these functions, which block on the disk.
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
    """Return the reason why a folder is not private to this user. Its parents are not checked.

    Other users can neither create a folder without a fault nor write to it, so its files are trustworthy.

    Returns:
        Phrase that contains the folder's name; empty if the folder is private to this user or root, or does not exist.
    """
    try:
        return _fault(path, path.lstat())
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot check {path}: {error.strerror}"


def weakness(path: Path) -> str:
    """Return the reason why other users could have created a folder, or could change its content.

    The folder and its parents must belong to this user or root, and no other user may be able to write to them. Parents
    may also be sticky (like /dev/shm and /tmp), unreachable for others, or writable for a group whose only member is
    this user. Links in the path must belong to this user or root as well.

    Returns:
        Phrase that contains the name of the folder at fault; empty if there is none or `path` does not exist.
    """
    try:
        return next(_faults(path), "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot check {path}: {error.strerror}"


def make_directory(path: Path) -> None:
    """Create a private folder and its missing parents. Existing folders stay unchanged.

    Raises:
        OSError: The folder cannot be created.
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
    """Check that a folder belongs to this user, and remove all other users' permissions.

    Raises:
        PermissionError: The folder belongs to another user. For root, this is only a warning.
        OSError: The path is not a folder.
    """
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and not _is_trusted(link.st_uid):
        raise PermissionError(
            f"the link {path} belongs to {_name(link.st_uid)}; set TENSORMETER_DIR to a folder that you own"
        )
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not _is_own(path, status.st_uid):
            complaint = f"{path} belongs to {_name(status.st_uid)}, who could replace its contents"
            if os.geteuid() != 0:
                raise PermissionError(f"{complaint}; set TENSORMETER_DIR to a folder that you own")
            # As in a container with a folder of the host's user. Delivery does not trust the settings of such runs.
            _warn_once(f"{complaint}; `tensormeter sync` uses its own settings to deliver it")
        if status.st_mode & _OTHERS:
            with contextlib.suppress(OSError):  # some file systems have no modes
                os.fchmod(descriptor, _DIRECTORY)
            if status.st_mode & 0o022 and not os.fstat(descriptor).st_mode & _OTHERS:
                logger.warning(
                    "other users could write to %s (mode %s), which contains runs; changed its mode to 0700",
                    path,
                    _mode(status),
                )
    finally:
        os.close(descriptor)


def tighten_contents(path: Path) -> None:
    """Remove all other users' permissions for this user's files in a folder. Links stay unchanged.

    Call this after `tighten_directory`.

    Raises:
        OSError: The folder cannot be listed.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # removed meanwhile, or the file system has no modes
                entry = Path(folder, name)
                status = entry.lstat()
                kind = stat.S_IFMT(status.st_mode)
                if status.st_mode & _OTHERS and kind in (stat.S_IFREG, stat.S_IFDIR) and status.st_uid == os.geteuid():
                    entry.chmod(_FILE if kind == stat.S_IFREG else _DIRECTORY)


def open_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a private file, and create it if `flags` allow. This follows no links and does not block on a FIFO.

    Returns:
        Descriptor that child processes do not inherit.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
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
    """Describe an unexpected entry in the place of one of our files, and what to do about it.

    Returns:
        Sentence that contains the path; empty if the file is regular or missing, or if the disk fails.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "not a regular file"
    return f"{path} is {kind}, but must be a regular file; remove it"


def make_file(path: Path) -> None:
    """Create an empty private file, or remove other users' permissions for an existing one.

    An existing file is not opened, because closing it would release this process's POSIX locks on it.

    Raises:
        OSError: The file cannot be created.
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
    """Create a folder in an existing one, and give this user all permissions under any umask.

    Raises:
        OSError: The folder cannot be created, or already exists.
    """
    path.mkdir(mode=_DIRECTORY)
    status = path.lstat()
    if status.st_mode & _DIRECTORY != _DIRECTORY and stat.S_ISDIR(status.st_mode):
        path.chmod(_DIRECTORY)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _faults(path: Path) -> Iterator[str]:
    """Yield the faults of a folder and its parents, starting at the root.

    Raises:
        OSError: A folder is missing or cannot be examined.
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
                yield f"too many links: {folder}"
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
            yield f"other users can write to {folder} (mode {_mode(status)})"
        reachable[folder] = reachable[current] and bool(status.st_mode & 0o011)
        current = folder


def _fault(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is {'a link' if stat.S_ISLNK(status.st_mode) else 'not a folder'}"
    if not _is_trusted(status.st_uid):
        return f"{path} belongs to {_name(status.st_uid)}"
    return f"other users can write to {path} (mode {_mode(status)})" if status.st_mode & 0o022 else ""


def _others_write(status: os.stat_result) -> bool:
    """Return whether others who can reach a folder can add, rename and remove its entries."""
    if status.st_mode & 0o003 == 0o003:
        return True
    return status.st_mode & 0o030 == 0o030 and not _is_alone_in(status.st_gid)


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _is_own(path: Path, uid: int) -> bool:
    """Return whether a folder belongs to this user, even if its file system gives all files the same owner."""
    if uid == os.geteuid():
        return True
    try:
        with tempfile.TemporaryFile(dir=path) as made:
            return os.fstat(made.fileno()).st_uid == uid
    except OSError:
        return False


def _is_alone_in(gid: int) -> bool:
    """Return whether a group is this user's own group and has no other members, as on many systems."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@functools.cache
def _unmapped_uid() -> int | None:
    """Return the owner shown for files whose owner has no ID in this user namespace; None if all owners have one.

    In rootless containers, the host's root is such an owner.
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
