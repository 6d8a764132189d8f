"""Regular files that standard output and standard error lead to. The agent reads what is appended to them.

This also captures child processes and native code, which write to the file descriptors, at no cost and without a change of
the descriptors.
"""

import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from tensormeter.ring.format import ConsoleKind

__all__ = ["find_output_ends", "find_output_files", "output_leads_to"]

_STREAMS: Final = ((ConsoleKind.STDOUT, 1, "stdout"), (ConsoleKind.STDERR, 2, "stderr"))


def find_output_files(*, shared: bool) -> list[Mapping[str, Any]]:
    """Return the files to which this process's output is appended, with the position from which they are to be read.

    Only Linux is supported. If standard output and standard error lead to one file, it counts as standard output.

    Args:
        shared: Whether other ranks run on this node. Files that the launcher writes to are then left out, because they
            contain the output of all ranks.
    """
    files: list[Mapping[str, Any]] = []
    for kind, descriptor, name in _STREAMS:
        with suppress(OSError, ValueError, AttributeError):
            status = os.fstat(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            identity = [status.st_dev, status.st_ino]
            if not stat.S_ISREG(status.st_mode) or any(file["identity"] == identity for file in files):
                continue
            if not os.path.samestat(status, os.stat(path)) or (shared and _is_of_parent(status)):
                continue
            getattr(sys, name).flush()
            place = {"path": path, "identity": identity, "position": _position(descriptor)}
            files.append({"kind": kind, "time": time.time_ns(), **place})
    return files


def find_output_ends(files: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the sizes of output files after everything that was printed so far, by kind. Files that are gone are left out."""
    ends: dict[str, int] = {}
    for file in files:
        with suppress(Exception):
            getattr(sys, "stdout" if file["kind"] == ConsoleKind.STDOUT else "stderr").flush()
        with suppress(OSError):
            ends[str(int(file["kind"]))] = os.stat(file["path"]).st_size
    return ends


def output_leads_to(kinds: Sequence[Callable[[int], bool]]) -> bool:
    """Return whether this process's output leads to one of some kinds of file.

    Args:
        kinds: Functions of `stat` that recognize the kinds, such as `stat.S_ISFIFO`.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            if any(is_kind(mode) for is_kind in kinds):
                return True
    return False


def _is_of_parent(status: os.stat_result) -> bool:
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.stat(f"/proc/{os.getppid()}/fd/{descriptor}")):
                return True
    return False


def _position(descriptor: int) -> int:
    """Return the position in the file at which the next output appears."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        return os.fstat(descriptor).st_size
    return os.lseek(descriptor, 0, os.SEEK_CUR)
