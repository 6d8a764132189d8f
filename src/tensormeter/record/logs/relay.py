"""A process between a program and a pipe that its output leads to. It passes all bytes on, and copies them to a console file.

A second process, the supervisor, replaces the first one if that is killed or stopped, so writers are neither ended nor blocked.
The kernel moves the bytes from pipe to pipe (`tee` and `splice`), so none are lost meanwhile. The relay ends when all writers
have closed their ends, which may be after the end of the script. If the reader of the original pipe goes away, so do the
relay's ends, and writers receive the same error as without a relay.

The program keeps the pipes open, too, and replaces the supervisor (see `relay_watch`). Both processes hold the write end of a
further pipe, the lifeline. The program reads from it which streams have lost their reader, and that the relay has ended. If the
lifeline ends without that, the relay was killed.

This file is run by its path, without `tensormeter` being importable, so it uses only the standard library.
"""

import contextlib
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence

__all__ = [
    "BUSY",
    "ENDED",
    "FIRST_DESCRIPTOR",
    "READY",
    "RELEASED",
    "SUPERVISOR",
    "WORKER",
    "pass_on",
    "relay_command",
]

FIRST_DESCRIPTOR = 3
"""Descriptor of the console file. It is followed by the pipe to read from and the one to write to, for each stream, and by the
lifeline."""

BUSY, READY, SUPERVISOR, WORKER, RELEASED = 8, 9, 10, 11, 12
"""Words in the header of the console file (see `tensormeter.ring.format.ConsoleWord`)."""

ENDED = 255
"""Byte on the lifeline after the end of all streams. Other bytes are kinds of streams that have lost their reader."""

_SIZE, _HEAD, _FULL, _TAIL = 2, 4, 5, 16
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<IIq")
_PIECE = 1 << 16
_RELEASE_TIMEOUT = 1.0
_RELEASE_POLL_MS = 5
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGPIPE", "SIGUSR1", "SIGUSR2")


def relay_command(kinds: Sequence[int]) -> list[str]:
    """Return the command line of a relay for streams of these kinds."""
    return [sys.executable, "-I", "-S", __file__, *map(str, kinds)]


def main(kinds: Sequence[int]) -> None:
    """Pass the output of streams of these kinds on. The parent returns at once."""
    if os.fork():
        os._exit(0)  # so that the program has no further child to wait for
    os.setsid()
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    first = FIRST_DESCRIPTOR + 1
    lifeline = first + 2 * len(kinds)
    os.closerange(lifeline + 1, 1 << 16)
    file = mmap.mmap(FIRST_DESCRIPTOR, 0)
    words = memoryview(file)[:_HEADER_BYTES].cast("q")
    words[SUPERVISOR] = os.getpid()
    streams = {first + 2 * number: (first + 2 * number + 1, kind) for number, kind in enumerate(kinds)}
    while streams:
        worker = os.fork()
        if worker == 0:
            broken = pass_on(streams, file, words)
            os._exit(broken)
        words[WORKER] = worker
        while True:
            _, status = os.waitpid(worker, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            os.kill(worker, signal.SIGKILL)
        if os.WIFEXITED(status):
            broken = os.WEXITSTATUS(status)
            if broken == 0:
                break
            if broken not in streams:  # an unexpected error
                return
            target, kind = streams.pop(broken)
            os.close(target)
            _tell(lifeline, kind)
            _discard(broken, words, kind)
            os.close(broken)
    _tell(lifeline, ENDED)


def _tell(lifeline: int, byte: int) -> None:
    with contextlib.suppress(OSError):  # the program has ended
        os.write(lifeline, bytes([byte]))


def _discard(source: int, words: memoryview, kind: int) -> None:
    """Read what is still written to a stream without a reader, until the program has closed its read end."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    deadline = time.monotonic() + _RELEASE_TIMEOUT
    while not words[RELEASED] >> kind & 1 and time.monotonic() < deadline:
        if poll.poll(_RELEASE_POLL_MS) and not os.read(source, _PIECE):
            return


def pass_on(streams: "dict[int, tuple[int, int]]", file: mmap.mmap, words: memoryview) -> int:
    """Pass bytes on until all writers are gone.

    Args:
        streams: Descriptor to write to and kind of each stream, by the descriptor to read from.
        file: Mapped console file.
        words: Words in its header.

    Returns:
        0, or the descriptor to read from of a stream whose reader is gone.
    """
    import ctypes  # only the relay needs it, not the program

    tee = ctypes.CDLL(None).tee
    copies, copy = os.pipe()
    poll = select.poll()
    for source in streams:
        poll.register(source, select.POLLIN)
    left = len(streams)
    words[BUSY] = 0
    words[READY] = 1
    while left:
        for source, _ in poll.poll():
            words[BUSY] = 1  # before the bytes leave the pipe
            length = tee(source, copy, ctypes.c_size_t(_PIECE), 0)
            at = time.time_ns()
            # Nothing is copied at the end of the pipe, and where the kernel has no `tee`.
            data = os.read(copies if length > 0 else source, _PIECE)
            if not data:
                poll.unregister(source)
                left -= 1
                words[BUSY] = 0
                continue
            target, kind = streams[source]
            try:
                if length > 0:
                    _move(source, target, length)
                else:
                    _write(target, data)
            except OSError:
                words[BUSY] = 0
                return source
            _copy(file, words, kind, at, data)
            words[BUSY] = 0
    return 0


def _move(source: int, target: int, length: int) -> None:
    while length:
        try:
            length -= os.splice(source, target, length)
        except BlockingIOError:  # another process has made the pipe non-blocking
            select.select([], [target], [])
        except BrokenPipeError:
            raise
        except OSError:  # the kernel has no `splice`
            data = os.read(source, length)
            length -= len(data)
            _write(target, data)


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(target, rest) :]
        except BlockingIOError:
            select.select([], [target], [])


def _copy(file: mmap.mmap, words: memoryview, kind: int, at: int, data: bytes) -> None:
    """Append a chunk, as `ConsoleFile.put` does, or count its lines if there is no space."""
    head, size = words[_HEAD], words[_SIZE]
    chunk = _HEADER.pack(len(data), kind, at) + data
    if head + len(chunk) - words[_TAIL] > size:
        words[_FULL] += data.count(b"\n")
        return
    start = head % size
    first = min(len(chunk), size - start)
    file[_HEADER_BYTES + start : _HEADER_BYTES + start + first] = chunk[:first]
    file[_HEADER_BYTES : _HEADER_BYTES + len(chunk) - first] = chunk[first:]
    words[_HEAD] = head + len(chunk)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main([int(argument) for argument in sys.argv[1:]])
    os._exit(0)
