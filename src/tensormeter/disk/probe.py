"""A check of whether a disk responds, which waits only for a limited time.

A process that waits for a hanging file system cannot be killed, even by SIGKILL. A separate process therefore accesses
the disk first. If the disk hangs, only that process is stuck, and not a thread of the training process.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

__all__ = ["PATIENCE", "answers"]

PATIENCE: Final = 5.0
"""Seconds without a response after which commands treat a disk as hanging."""

_SHELL: Final = "/bin/sh"
_LOOK: Final = 'd=$1; while [ ! -d "$d" ] && [ -n "$d" ]; do d=${d%/*}; done; for entry in "$d"/*; do break; done'
"""Shell script that lists a folder, or its nearest existing parent. The path must be absolute, or it would never end."""

_FIRST_WAIT: Final = 0.0005
_LONGEST_WAIT: Final = 0.01


def answers(path: Path, seconds: float) -> bool:
    """Return whether a folder's file system responds in time. The folder need not exist.

    The check takes about 2 ms if the file system responds. It returns True if no process can be started. While an
    earlier process for this folder is stuck, it returns False immediately.
    """
    _reap()
    if path in _stuck.values():
        return False
    try:
        pid = os.posix_spawn(
            _SHELL,
            ["sh", "-c", _LOOK, "sh", os.fspath(path.absolute())],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)
            ],  # otherwise, a reader of this process's output would wait for the new process, too
        )
    except OSError:
        return True
    deadline = time.monotonic() + seconds
    pause = _FIRST_WAIT
    wait = threading.Event().wait
    try:
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                _stuck[pid] = path
                return False
            wait(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
    except ChildProcessError:  # other code has collected the child process
        pass
    except BaseException:
        _stuck[pid] = path
        raise
    return True


def _reap() -> None:
    """Collect the exit statuses of stuck processes that have ended since."""
    for pid in list(_stuck):
        with contextlib.suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        del _stuck[pid]


_stuck: dict[int, Path] = {}
os.register_at_fork(after_in_child=_stuck.clear)
