"""The relay's processes, seen from the program, which starts them and replaces them if all of them are killed or stopped.

The program keeps the read ends of the relay's pipes open, so writers never receive an error because the relay is gone: they wait
until another relay reads on. A thread waits on the relay's lifeline meanwhile (see `relay`).
"""

import contextlib
import fcntl
import mmap
import os
import select
import signal
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from tensormeter.logger import get_logger
from tensormeter.record.logs.kept_descriptor import KeptDescriptor
from tensormeter.record.logs.relay import (
    BUSY,
    ENDED,
    FIRST_DESCRIPTOR,
    READY,
    RELEASED,
    SUPERVISOR,
    WORKER,
    pass_on,
    relay_command,
)
from tensormeter.ring.console_file import ConsoleFile
from tensormeter.ring.format import ConsoleKind

__all__ = ["RelayStream", "RelayWatch", "is_unread"]

logger: Final = get_logger()

_START_TIMEOUT: Final = 1.0
_POLL: Final = 0.001
_STOPPED_INTERVAL_MS: Final = 1_000
"""Interval, in milliseconds, between checks for a relay that has been stopped while bytes wait."""
_MOST_RESTARTS: Final = 10


class RelayStream(NamedTuple):
    """A stream that the relay passes on.

    Attributes:
        kind: Kind of the output.
        source: Read end of the relay's pipe.
        target: Copy of the stream's original descriptor.
    """

    kind: ConsoleKind
    source: KeptDescriptor
    target: KeptDescriptor


class RelayWatch:
    """Keeps a relay running until all writers of its pipes are gone."""

    def __init__(self, file: ConsoleFile, descriptor: KeptDescriptor) -> None:
        """Take ownership of a descriptor.

        Args:
            file: Console file of the relay.
            descriptor: Descriptor of this file.
        """
        self._file = file
        self._descriptor = descriptor
        self._streams: dict[ConsoleKind, RelayStream] = {}
        self._lifeline: KeptDescriptor | None = None

    def add(self, stream: RelayStream) -> None:
        """Add a stream to pass on, and take ownership of its descriptors. Call this before `start`."""
        self._streams[stream.kind] = stream

    def start(self) -> bool:
        """Start the relay, and return whether it is ready. This takes some 20 ms, and at most a second.

        Raises:
            OSError: No process or pipe can be created.
        """
        if not self._spawn(_START_TIMEOUT):
            return False
        _watches.append(self)
        threading.Thread(target=self._watch, name="tensormeter-relay", daemon=True).start()
        return True

    def close(self) -> None:
        """Close all descriptors of this process. A forked child has copies of them."""
        if self in _watches:
            _watches.remove(self)
        self._descriptor.close()
        if self._lifeline is not None:
            self._lifeline.close()
        for stream in self._streams.values():
            stream.source.close()
            stream.target.close()
        self._streams = {}

    def _watch(self) -> None:
        try:
            restarts = 0
            while self._wait_for_end():
                restarts += 1
                if restarts > _MOST_RESTARTS or not self._restart():
                    self._pass_on_here()
                    return
        finally:
            self.close()

    def _wait_for_end(self) -> bool:
        """Wait until the relay is gone. Return whether it must be replaced."""
        assert self._lifeline is not None
        poll = select.poll()
        poll.register(self._lifeline.number, select.POLLIN)
        while self._streams:
            is_told = poll.poll(_STOPPED_INTERVAL_MS)
            if not self._lifeline.is_open:  # the program has closed all descriptors
                return False
            if not is_told:
                self._kill_if_stopped()
                continue
            data = os.read(self._lifeline.number, 1)
            if not data:
                return True
            if data[0] == ENDED:
                return False
            self._release(ConsoleKind(data[0]))
        return False

    def _release(self, kind: ConsoleKind) -> None:
        """Close a stream, so that its writers receive an error if the relay has closed it, too."""
        stream = self._streams.pop(kind)
        stream.source.close()
        stream.target.close()
        self._file.words[RELEASED] |= 1 << kind

    def _kill_if_stopped(self) -> None:
        if not any(is_unread(stream.source.number) for stream in self._streams.values()):
            return
        for word in (SUPERVISOR, WORKER):
            process = self._file.words[word]
            if _is_stopped_relay(process):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)

    def _restart(self) -> bool:
        try:
            return self._spawn(None)
        except OSError:
            return False

    def _spawn(self, timeout: float | None) -> bool:
        """Start the relay's processes, and wait until they are ready or gone, or the timeout has passed."""
        words = self._file.words
        words[READY] = words[BUSY] = 0
        if self._lifeline is not None:
            self._lifeline.close()
        self._lifeline, end = (KeptDescriptor(descriptor) for descriptor in os.pipe())
        try:
            handed = [self._descriptor.number]
            for stream in self._streams.values():
                handed += [stream.source.number, stream.target.number]
            handed.append(end.number)
            actions: list[Any] = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
            actions += [(os.POSIX_SPAWN_DUP2, number, FIRST_DESCRIPTOR + index) for index, number in enumerate(handed)]
            command = relay_command([int(kind) for kind in self._streams])
            process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        finally:
            end.close()
        with contextlib.suppress(ChildProcessError):  # other code has waited for it
            os.waitpid(process, 0)
        poll = select.poll()
        poll.register(self._lifeline.number, 0)
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = threading.Event().wait
        while not words[READY]:
            if poll.poll(0) or (deadline is not None and time.monotonic() > deadline):
                return False
            wait(_POLL)
        return True

    def _pass_on_here(self) -> None:
        """Do the relay's work in this thread."""
        logger.warning(
            "the processes that pass output on and record it were killed repeatedly, so a thread of the program does their "
            "work now; set console_children='files' to record output without them",
        )
        while self._streams:
            streams = {s.source.number: (s.target.number, int(s.kind)) for s in self._streams.values()}
            with mmap.mmap(self._descriptor.number, 0) as file, memoryview(file) as view, view.cast("q") as words:
                broken = pass_on(streams, file, words)
            if broken not in streams:
                return
            self._release(ConsoleKind(streams[broken][1]))


_watches: Final[list[RelayWatch]] = []


def _after_fork() -> None:
    for watch in tuple(_watches):
        watch.close()


os.register_at_fork(after_in_child=_after_fork)


def is_unread(descriptor: int) -> bool:
    """Return whether a pipe contains bytes that have not been read."""
    try:
        return any(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    except OSError:
        return False


def _is_stopped_relay(process: int) -> bool:
    """Return whether a process is a relay that a signal has stopped."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it is gone
        return False
    is_stopped = status.rpartition(b")")[2].split()[0] in {b"T", b"t"}
    return is_stopped and os.fsencode(relay_command([])[-1]) in command.split(b"\0")
