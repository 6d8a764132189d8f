"""Asking whether a disk answers, without waiting for it.

A process that waits for some file systems cannot be ended, not even by SIGKILL, until they answer. So a process of its own looks
first: if the disk hangs, it is that one which is stuck, and not a thread of the training process.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

__all__ = ["PATIENCE", "answers"]

PATIENCE: Final = 5.0
"""Seconds after which a command takes it that a disk hangs."""

_SHELL: Final = "/bin/sh"
_LOOK: Final = 'd=$1; while [ ! -d "$d" ] && [ -n "$d" ]; do d=${d%/*}; done; for entry in "$d"/*; do break; done'
"""Lists the folder, or the nearest one above it that is there."""

_FIRST_WAIT: Final = 0.0005
_LONGEST_WAIT: Final = 0.01


def answers(path: Path, seconds: float) -> bool:
    """Whether the file system of a folder answers in time. Takes some 2 ms if it does; the folder need not exist.

    Where no process can look, the answer is that it does. While a process that looked there before is stuck, the answer is no, at once.
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
            ],  # else whoever reads the output of this process would wait for that one
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
    except ChildProcessError:  # somebody else collects the processes of this one
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
