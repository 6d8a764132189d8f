"""Capture of one process's output for a run."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tensormeter.logger import get_logger
from tensormeter.record.logs.logging_tap import LoggingTap
from tensormeter.record.logs.output_relay import OutputRelay
from tensormeter.record.logs.output_sink import OutputSink
from tensormeter.record.logs.stream_tap import StreamTap, console_streams
from tensormeter.redaction import environment_secrets
from tensormeter.ring.console_file import ConsoleFile, console_file
from tensormeter.ring.format import ConsoleKind

__all__ = ["OutputCapture"]

logger: Final = get_logger()

_BYTES: Final = 1 << 20
"""Size of the console file. The agent reads it every two seconds, or when an eighth of it has been written."""


class OutputCapture:
    """Copies standard output, standard error and log records to the agent, from construction until `stop`.

    A process captures for one run at a time: the first one. Its forked children are captured, too.
    """

    def __init__(self, sink: OutputSink, *, level: int | None) -> None:
        """Start capturing. Use `start` instead, which checks whether another run is capturing.

        Args:
            sink: Sink for the output.
            level: Lowest level of log records to capture; None to capture none.
        """
        self._sink = sink
        self.relay: OutputRelay | None = None
        """Relay to stop when the capture stops."""
        self.files: list[Mapping[str, Any]] = []
        """Files to which output is appended."""
        self._logging_in: set[int] = set()
        self._taps: list[StreamTap | LoggingTap] = []
        for kind, stream in console_streams():
            with suppress(AttributeError, TypeError):  # a stream that cannot be tapped
                self._taps.append(StreamTap(stream, kind, sink.put, self._logging_in))
        if level is not None:
            self._taps.append(LoggingTap(level, self._put_record, self._logging_in))

    @classmethod
    def start(cls, ring_path: Path, wake: Callable[[], None], *, level: int | None) -> "OutputCapture | None":
        """Start capturing for the process with this ring.

        Args:
            ring_path: Path of the process's ring.
            wake: Function that wakes the agent without waiting.
            level: See the constructor.

        Returns:
            None if another run captures this process's output, or if there is no space for the console file. The latter
            causes a warning.
        """
        if _active:
            return None
        try:
            file = ConsoleFile.create(console_file(ring_path), _BYTES)
        except OSError as error:
            logger.warning(
                "the console output is not recorded, because %s cannot be created: %s",
                console_file(ring_path),
                error.strerror,
            )
            return None
        capture = cls(OutputSink(file, environment_secrets(os.environ), wake), level=level)
        _active.append(capture)
        return capture

    def stop(self) -> None:
        """Stop capturing, and restore the streams and `logging`."""
        for tap in reversed(self._taps):
            tap.remove()
        if self.relay is not None:
            self.relay.stop()
        self._sink.flush()
        if self in _active:
            _active.remove(self)

    def drops(self) -> dict[str, int]:
        """Return the number of lines that cannot be delivered, by reason."""
        return self._sink.drops()

    def _put_record(self, record: str, at: int) -> None:
        self._sink.put(ConsoleKind.LOG_RECORD, record, at)

    def _after_fork(self) -> None:
        self._logging_in.clear()
        self._sink.after_fork()


_active: Final[list[OutputCapture]] = []
"""The capture in progress, if there is one."""


def _after_fork() -> None:
    for capture in _active:
        capture._after_fork()


os.register_at_fork(after_in_child=_after_fork)
