"""The relay for output that leads to pipes, seen from the program (see `relay`)."""

import contextlib
import fcntl
import os
import stat
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any, Final

from tensormeter.record.logs.relay import BUSY, FIRST_DESCRIPTOR, READY, relay_command
from tensormeter.ring.console_file import ConsoleFile, relay_console_file
from tensormeter.ring.format import ConsoleKind

__all__ = ["OutputRelay"]

_BYTES: Final = 1 << 20
_START_TIMEOUT: Final = 1.0
_DRAIN_TIMEOUT: Final = 2.0
_POLL: Final = 0.001
_ABOVE: Final = 64
"""Lower bound of descriptors that are kept or handed to the relay."""


class OutputRelay:
    """Standard output and standard error lead to the relay from construction until `stop`."""

    def __init__(self, file: ConsoleFile, streams: dict[int, int], ends: dict[int, int]) -> None:
        """Redirect the descriptors. Use `start` instead.

        Args:
            file: Console file of the relay.
            streams: Descriptors of the relay's pipes by the descriptor of a stream, 1 or 2.
            ends: See `streams`. This process keeps none of them open, except as descriptor 1 or 2.
        """
        self._file = file
        self._pid = os.getpid()
        self._saved: dict[int, int] = {}
        self._pipes: dict[int, os.stat_result] = {}
        for descriptor, end in streams.items():
            self._saved[descriptor] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
            self._pipes[descriptor] = os.fstat(end)
            os.dup2(end, descriptor)
        for end in set(ends.values()):
            os.close(end)

    @classmethod
    def start(cls, ring_path: Path) -> "OutputRelay | None":
        """Start a relay if output leads to pipes. This waits until the relay is ready, for some 20 ms.

        Returns:
            None if no stream leads to a pipe, or if there is no relay for other reasons. Output is then unchanged.
        """
        targets = _pipe_targets()
        # All processes of a container end with its first process, so a relay could not pass on the last bytes.
        if not targets or os.getpid() == 1 or not _can_start_python():
            return None
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):
                getattr(sys, name).flush()
        opened: list[int] = []
        try:
            file = ConsoleFile.create(relay_console_file(ring_path), _BYTES)
            ring = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
            opened.append(ring)
            handed, ends = [_above(ring, opened)], {}
            for descriptor in targets:
                read, write = os.pipe()
                opened += [read, write]
                ends[descriptor] = _above(write, opened)
                handed += [_above(read, opened), _above(descriptor, opened)]
            kinds = [ConsoleKind.STDOUT if descriptor == 1 else ConsoleKind.STDERR for descriptor in targets]
            if not _spawn(kinds, handed, file):
                file.path.unlink(missing_ok=True)
                return None
            streams = {
                descriptor: ends[target] for target, descriptors in targets.items() for descriptor in descriptors
            }
            for end in ends.values():
                opened.remove(end)
            return cls(file, streams, ends)
        except OSError:
            with contextlib.suppress(OSError):
                relay_console_file(ring_path).unlink(missing_ok=True)
            return None
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def stop(self) -> None:
        """Restore the descriptors, once the relay has passed on all bytes. If that takes too long, leave them as they are."""
        if self._pid != os.getpid():
            return
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):
                getattr(sys, name).flush()
        own = [
            descriptor
            for descriptor, pipe in self._pipes.items()
            if (status := _status(descriptor)) is not None and os.path.samestat(status, pipe)
        ]
        if self._wait_until_passed_on(own):
            for descriptor in own:
                os.dup2(self._saved[descriptor], descriptor)
        for saved in self._saved.values():
            os.close(saved)
        self._saved, self._pipes = {}, {}

    def _wait_until_passed_on(self, descriptors: list[int]) -> bool:
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        wait = threading.Event().wait
        while any(_unread(descriptor) for descriptor in descriptors) or self._file.words[BUSY]:
            if time.monotonic() > deadline:
                return False
            wait(_POLL)
        return True


def _can_start_python() -> bool:
    return not getattr(sys, "frozen", False) and os.access(sys.executable or "", os.X_OK)


def _pipe_targets() -> dict[int, list[int]]:
    """Return the streams that lead to pipes: the descriptors 1 and 2, grouped by pipe under the first one."""
    targets: dict[int, list[int]] = {}
    if sys.platform != "linux":
        return {}
    for descriptor in (1, 2):
        status = _status(descriptor)
        if status is None or not stat.S_ISFIFO(status.st_mode):
            continue
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if flags & os.O_NONBLOCK or flags & os.O_ACCMODE == os.O_RDONLY:
            continue
        same = next((other for other in targets if os.path.samestat(os.fstat(other), status)), descriptor)
        targets.setdefault(same, []).append(descriptor)
    return targets


def _status(descriptor: int) -> os.stat_result | None:
    try:
        return os.fstat(descriptor)
    except OSError:
        return None


def _unread(descriptor: int) -> bool:
    """Return whether a pipe contains bytes that have not been read."""
    try:
        return any(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    except OSError:
        return False


def _above(descriptor: int, opened: list[int]) -> int:
    """Return a copy of a descriptor whose number is none of those that the relay uses."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    opened.append(copy)
    return copy


def _spawn(kinds: list[ConsoleKind], handed: list[int], file: ConsoleFile) -> bool:
    """Start the relay, and return whether it is ready."""
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    actions += [(os.POSIX_SPAWN_DUP2, number, FIRST_DESCRIPTOR + index) for index, number in enumerate(handed)]
    command = relay_command([int(kind) for kind in kinds])
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    with contextlib.suppress(ChildProcessError):  # other code has waited for it
        os.waitpid(process, 0)
    deadline = time.monotonic() + _START_TIMEOUT
    wait = threading.Event().wait
    while not file.words[READY]:
        if time.monotonic() > deadline:
            return False
        wait(_POLL)
    return True
