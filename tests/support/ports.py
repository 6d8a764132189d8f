"""Port numbers for programs that cannot report a port that the system chose.

The system gives out "free" ports from one range to everybody, so a number that was free a moment ago can be in use when a
program binds it. These numbers are from below that range. Each process of a test run locks a block of them, so no other
process of this machine's tests uses one, and gives out each number once.
"""

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["reserve_port"]

_FIRST, _BLOCK = 10_240, 128
_LOCKS = Path(tempfile.gettempdir()) / "tensormeter-test-ports"
_locks: list[int] = []
_owner = 0
_numbers: Iterator[int] = iter(())


def reserve_port() -> int:
    """A port of 127.0.0.1 that no other test uses. Nothing listens there until the caller starts something."""
    global _owner, _numbers
    if _owner != os.getpid():  # a forked child has no part in its parent's numbers
        _owner, _numbers = os.getpid(), _reserved()
    return next(_numbers)


def _reserved() -> Iterator[int]:
    """The free ports of each block that this process can lock."""
    for first in range(_FIRST, _end() - _BLOCK, _BLOCK):
        if _lock(first):
            yield from filter(_is_free, range(first, first + _BLOCK))
    raise AssertionError("no port is left for tests")


def _end() -> int:
    """The first port that the system gives out."""
    try:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        end = 49_152  # of IANA and macOS
    return end if end > _FIRST + 16 * _BLOCK else 32_768


def _lock(first: int) -> bool:
    """Lock a block until this process ends."""
    _LOCKS.mkdir(exist_ok=True)
    try:
        lock = os.open(_LOCKS / str(first), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:  # it is another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _locks.append(lock)
    return True


def _is_free(port: int) -> bool:
    """Whether a program that is no test's listens there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True
