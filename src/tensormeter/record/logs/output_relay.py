"""The redirection of output that leads to pipes to the relay (see `relay` and `relay_watch`)."""

import contextlib
import fcntl
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Final

from tensormeter.record.logs.kept_descriptor import KeptDescriptor
from tensormeter.record.logs.relay import BUSY
from tensormeter.record.logs.relay_watch import RelayStream, RelayWatch, is_unread
from tensormeter.ring.console_file import ConsoleFile, relay_console_file
from tensormeter.ring.format import ConsoleKind

__all__ = ["OutputRelay"]

_BYTES: Final = 1 << 20
_DRAIN_TIMEOUT: Final = 2.0
_POLL: Final = 0.001


class OutputRelay:
    """Standard output and standard error lead to the relay until `stop`."""

    def __init__(self, file: ConsoleFile, saved: dict[int, KeptDescriptor]) -> None:
        """
        Use `start` instead.

        Args:
            file: Console file of the relay.
            saved: Copies of the original descriptors by the descriptor of a stream, 1 or 2.
        """
        self._file = file
        self._pid = os.getpid()
        self._saved = saved
        self._pipes: dict[int, os.stat_result] = {}

    @classmethod
    def start(cls, ring_path: Path) -> "OutputRelay | None":
        """Start a relay if output leads to pipes. This waits until the relay is ready, for some 20 ms.

        Returns:
            None if no stream leads to a pipe, or if there is no relay for other reasons. Output is then unchanged.
        """
        targets = _pipe_targets()
        # All processes of a container end with its first process, so a relay might not pass on the last bytes of a crash. The
        # first process is often a shell that ends as soon as this process does.
        if not targets or 1 in (os.getpid(), os.getppid()) or not _can_start_python():
            return None
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):
                getattr(sys, name).flush()
        path = relay_console_file(ring_path)
        ends: dict[int, KeptDescriptor] = {}
        watch = None
        try:
            file = ConsoleFile.create(path, _BYTES)
            watch = RelayWatch(file, KeptDescriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC)))
            for target, descriptors in targets.items():
                source, end = (KeptDescriptor(descriptor) for descriptor in os.pipe())
                ends |= dict.fromkeys(descriptors, end)
                watch.add(
                    RelayStream(
                        ConsoleKind.STDOUT if target == 1 else ConsoleKind.STDERR,
                        source,
                        KeptDescriptor(os.dup(target)),
                    )
                )
            relay = cls(file, {descriptor: KeptDescriptor(os.dup(descriptor)) for descriptor in ends})
            if watch.start():
                relay._redirect(ends)
                return relay
        except (OSError, RuntimeError):  # RuntimeError: no thread can be started
            pass
        finally:
            for end in ends.values():
                end.close()
        if watch is not None:
            watch.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def _redirect(self, ends: dict[int, KeptDescriptor]) -> None:
        for descriptor, end in ends.items():
            self._pipes[descriptor] = os.fstat(end.number)
            os.dup2(end.number, descriptor)

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
                if self._saved[descriptor].is_open:
                    os.dup2(self._saved[descriptor].number, descriptor)
        for saved in self._saved.values():
            saved.close()
        self._saved, self._pipes = {}, {}

    def _wait_until_passed_on(self, descriptors: list[int]) -> bool:
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        wait = threading.Event().wait
        while any(is_unread(descriptor) for descriptor in descriptors) or self._file.words[BUSY]:
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
