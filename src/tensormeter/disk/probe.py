"""Checks whether a disk responds, without blocking on it.

A process that waits for a hanging file system cannot be ended, not even by SIGKILL. So a separate process accesses the disk first:
if the disk hangs, that process is stuck, and not a thread of the training process.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

__all__ = ["PATIENCE", "answers"]

PATIENCE: Final = 5.0
"""Seconds after which commands consider a disk as hanging."""

_SHELL: Final = "/bin/sh"
_LOOK: Final = 'd=$1; while [ ! -d "$d" ] && [ -n "$d" ]; do d=${d%/*}; done; for entry in "$d"/*; do break; done'
"""Lists the folder, or its nearest existing parent."""

_FIRST_WAIT: Final = 0.0005
_LONGEST_WAIT: Final = 0.01


def answers(path: Path, seconds: float) -> bool:
    """Whether the file system of a folder responds in time. Takes some 2 ms if it does; the folder need not exist.

    True if no process can be started. False at once while an earlier process for this folder is stuck.
    """
    _reap()
    if path in _stuck.values():
        return False
    try:
        pid = os.posix_spawn(
            _SHELL,
            ["sh", "-c", _LOOK, "sh", os.fspath(path)],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)
            ],  # otherwise a reader of this process's output would wait for that process
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
    except ChildProcessError:  # other code collects the child processes
        pass
    except BaseException:
        _stuck[pid] = path
        raise
    return True


def _reap() -> None:
    """Collect processes that were stuck."""
    for pid in list(_stuck):
        with contextlib.suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        del _stuck[pid]


_stuck: dict[int, Path] = {}
os.register_at_fork(after_in_child=_stuck.clear)
