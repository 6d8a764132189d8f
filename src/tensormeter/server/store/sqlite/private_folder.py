"""Permissions of the server's files: mode 0700 for folders and 0600 for files, regardless of the umask."""

import logging
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["protect_folder", "tighten_files"]

_OURS: Final = ("tensormeter.db*", "tokens.*", ".tokens.*", "lock", "reserve", "probe")
"""Name patterns of the server's files in its data folder."""

_log: Final = logging.getLogger(__name__)


def tighten_files(folder: Path) -> None:
    """Remove other users' access to the server's files, and log a warning if they had access."""
    changed: list[str] = []
    try:
        ours = sorted({path for pattern in _OURS for path in folder.glob(pattern)})
    except OSError as error:
        _log.warning("tensormeter: cannot check the file modes in %s: %s", folder, error.strerror)
        return
    for path in ours:
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o077:
                continue
            # Use a descriptor, because the name may by now refer to a different file.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            changed.append(f"{path.name} (was {stat.S_IMODE(status.st_mode):04o})")
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning(
                "tensormeter: %s can be read or changed by other users, and its mode cannot be changed (%s); "
                "its owner must run chmod 600",
                path,
                error.strerror,
            )
    if changed:
        _log.warning(
            "tensormeter: files in %s were accessible to other users; changed their modes to 0600: %s",
            folder,
            ", ".join(changed),
        )


def protect_folder(folder: Path) -> None:
    """Make the server's files private, and warn if other users can write to the folder."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError:  # missing or unreadable; opening it will report the error
        return
    if mode & 0o022:
        others = " and ".join(word for bit, word in ((0o020, "its group"), (0o002, "all users")) if mode & bit)
        _log.warning(
            "tensormeter: the data folder %s is writable by %s (mode %04o), who can replace the store and its "
            "tokens; run chmod go-w on it, or choose another folder",
            folder,
            others,
            mode,
        )
    tighten_files(folder)
