"""Reader of one console file, which converts the chunks of output in it to log records."""

import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from tensormeter.agent.ingest.console_events import ConsoleEvents
from tensormeter.agent.ingest.console_lines import Line, LineAssembler
from tensormeter.agent.ingest.output_tail import CapturedLines, OutputTail
from tensormeter.errors import EncodingError, RingError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Event
from tensormeter.ring.console_file import ConsoleFile
from tensormeter.ring.format import ConsoleKind, ConsoleWord

__all__ = ["ConsoleReader"]

logger: Final = get_logger("tensormeter.agent")

_REPLAYED: Final = 64 << 10
"""Minimum bytes of stored chunks that another agent reads again, to know the lines that are still to come in a file."""

_HEADER: Final = 16
"""Size of a chunk's header in bytes."""

_LINES_PER_SECOND: Final = 1000
_MOST_AT_ONCE: Final = 10_000
"""Number of lines that may arrive faster than that."""

_STORE_DELAY: Final = 0.0 if platform.machine() in ("x86_64", "AMD64", "i686") else 0.002
"""Seconds between reading the position of the last chunk and reading chunks, on processors that reorder stores."""


class ConsoleReader:
    """Reader of one file. Call `release` once the log records that it returned are stored.

    Attributes:
        file: The file.
        positions: Position up to which the chunks of each kind are stored.
        waits: Whether output was read that is not complete, such as a line without its end.
        captured_partial: For a relay's file, captured lines that have no end yet.
    """

    def __init__(
        self,
        file: ConsoleFile,
        positions: dict[ConsoleKind, int],
        max_bytes: int,
        captured: CapturedLines,
        *,
        is_child: bool,
        is_relay: bool,
    ) -> None:
        """
        Args:
            file: The file.
            positions: Initial value of the attribute `positions`.
            max_bytes: Maximum bytes of output that are recorded. Later lines are counted.
            captured: Lines that the process has captured. A relay's lines are compared with them; other lines are added.
            is_child: Whether a forked child writes the file.
            is_relay: Whether a relay writes the file.
        """
        self.file = file
        self.positions = positions
        self.waits = False
        self.captured_partial: tuple[str, ...] = ()
        self._max_bytes = max_bytes
        self._captured = captured
        self._is_relay = is_relay
        words = file.words
        self._events = ConsoleEvents(words[ConsoleWord.WRITER_PID] if is_child else None)
        tail, head = words[ConsoleWord.TAIL], words[ConsoleWord.HEAD]
        self._position = self._free_up_to = tail if 0 <= tail <= head else head
        replay = words[ConsoleWord.REPLAY]
        self._boundaries = [replay if 0 <= replay <= self._position else self._position]
        """Starts of earlier chunks."""
        self._assemblers = self._new_assemblers()
        self._changed: dict[ConsoleKind, int] = {}
        """Positions to store that are new."""
        self._kinds: set[int] = set()
        """Kinds of the chunks that were read. The others need no position."""
        self._notices: list[Event] = []
        self._tail_bytes = 0
        self._tokens: float = _MOST_AT_ONCE
        self._filled_at = 0

    def has_news(self) -> bool:
        """Return whether there are unread chunks."""
        return bool(self.file.words[ConsoleWord.HEAD] != self._position)

    def is_written(self) -> bool:
        """Return whether the process that writes the file may be running."""
        try:
            os.kill(self.file.words[ConsoleWord.WRITER_PID], 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            return True
        return True

    def is_released(self) -> bool:
        """Return whether everything in the file is stored."""
        return bool(self.file.words[ConsoleWord.TAIL] == self.file.words[ConsoleWord.HEAD])

    def skip(self) -> None:
        """Give up the unread chunks."""
        self.file.count(ConsoleWord.TOO_FAST, 1)
        self._position = self._free_up_to = self.file.words[ConsoleWord.HEAD]
        self._assemblers = self._new_assemblers()

    def read(self, *, final: bool, end: int | None = None) -> list[Event]:
        """Return the new log records.

        Args:
            final: Whether incomplete lines are complete.
            end: Position up to which to read. Default: the end.

        Raises:
            RingError: A chunk is damaged.
        """
        head = self.file.words[ConsoleWord.HEAD] if end is None else end
        if head <= self._position and not self.waits and not final:
            return []
        if _STORE_DELAY:
            threading.Event().wait(_STORE_DELAY)
        events: list[Event] = []
        for chunk in self.file.chunks(self._position, head):
            kind = chunk.kind
            self._kinds.add(kind)
            if kind == ConsoleKind.LOG_RECORD:
                if chunk.start >= self.positions[ConsoleKind.LOG_RECORD] and self._admits(chunk.time, chunk.end):
                    events += self._record(chunk.time, chunk.data)
            elif kind in self._assemblers:
                stream = ConsoleKind(kind)
                stored = max(0, self.positions[stream] - chunk.start - _HEADER)
                if stored < len(chunk.data) or not chunk.data:
                    start = chunk.start + _HEADER + stored
                    lines = self._assemblers[stream].feed(chunk.data[stored:], start, chunk.time)
                    events += self._lines(stream, lines, chunk.end)
            self._position = chunk.end
        is_late = head - self._safe() > self.file.size // 4
        for stream, assembler in self._assemblers.items():
            lines = assembler.flush() if final or is_late else assembler.expire(time.time_ns())
            events += self._lines(stream, lines, head)
        self.waits = self._safe() < head
        self._note_positions()
        notices, self._notices = self._notices, []
        return events + notices

    def read_tail(self, tail: OutputTail, lines: Sequence[Line]) -> list[Event]:
        """Return the log records for lines of an output file. They count like output of this file."""
        if tail.skipped:
            self.file.count(ConsoleWord.TOO_FAST, tail.skipped)
            tail.skipped = 0
        events = []
        for line in lines:
            self._tail_bytes += len(line.text)
            if self._admits(line.time, self._tail_bytes):
                events.append(self._events.line(tail.kind, line))
        return events

    def partial(self) -> list[str]:
        """Return the lines that have no end yet."""
        return [text for assembler in self._assemblers.values() if (text := assembler.partial)]

    def replay(self) -> None:
        """Read stored chunks again to know the lines that are still to come in a file."""
        # An agent that was killed may have stored chunks without freeing their space.
        head = self.file.words[ConsoleWord.HEAD]
        start, end = self.file.words[ConsoleWord.REPLAY], min(head, max(self._position, *self.positions.values()))
        if start >= end or head - start > self.file.size - _REPLAYED:  # overwritten
            return
        assemblers = self._new_assemblers()
        try:
            for chunk in self.file.chunks(start, head):
                if chunk.start >= end:
                    break
                if chunk.kind in assemblers:
                    for _ in assemblers[ConsoleKind(chunk.kind)].feed(chunk.data, chunk.start + _HEADER, chunk.time):
                        pass
        except RingError as error:
            logger.warning("%s; some lines may be recorded twice", error)

    def changed_positions(self) -> dict[ConsoleKind, int]:
        """Return the positions to store with the log records, if they have changed."""
        return self._changed

    def release(self) -> None:
        """Free the space of everything that is stored."""
        self.positions |= self._changed
        self._changed = {}
        self.file.words[ConsoleWord.TAIL] = self._free_up_to
        self._boundaries.append(self._free_up_to)
        while len(self._boundaries) > 1 and self._boundaries[1] < self._free_up_to - _REPLAYED:
            del self._boundaries[0]
        self.file.words[ConsoleWord.REPLAY] = self._boundaries[0]

    def _new_assemblers(self) -> dict[ConsoleKind, LineAssembler]:
        def is_new(line: Line) -> bool:
            return not self._captured.take(line, self.captured_partial)

        def add(line: Line) -> bool:
            self._captured.add(line)
            return True

        def add_logged(line: Line) -> bool:
            self._captured.add(line)
            return False

        streams = (ConsoleKind.STDOUT, ConsoleKind.STDERR)
        if self._is_relay:
            return {kind: LineAssembler(self._position, is_new) for kind in streams}
        logged = (ConsoleKind.LOGGED_STDOUT, ConsoleKind.LOGGED_STDERR)
        return {kind: LineAssembler(self._position, add) for kind in streams} | {
            kind: LineAssembler(self._position, add_logged) for kind in logged
        }

    def _safe(self) -> int:
        return min((assembler.safe for assembler in self._assemblers.values()), default=self._position)

    def _note_positions(self) -> None:
        """Note what can be stored and freed: everything up to the first incomplete line of a stream."""
        waiting = []
        for kind in (*self._assemblers, ConsoleKind.LOG_RECORD):
            assembler = self._assemblers.get(kind)
            is_whole = assembler is None or assembler.safe >= assembler.position
            position = self._position if assembler is None or is_whole else assembler.safe
            if not is_whole:
                waiting.append(position)
            if position > self.positions[kind] and kind in self._kinds:
                self._changed[kind] = position
        # Space is freed by chunks, so start over from the chunk that contains the first incomplete line.
        if not waiting:
            self._free_up_to = self._position
            return
        for chunk in self.file.chunks(self._free_up_to, self._position):
            if chunk.end > min(waiting):
                self._free_up_to = chunk.start
                return

    def _admits(self, at: int, position: int) -> bool:
        """Return whether neither the rate nor the amount of output exceeds its limit. Count the line otherwise."""
        if position > self._max_bytes:
            if self.file.words[ConsoleWord.OVER_LIMIT] == 0:
                text = (
                    "tensormeter: further output is not recorded, because the process has written more than "
                    f"{self._max_bytes:,} bytes; raise TENSORMETER_CONSOLE_MAX_BYTES to record more"
                )
                self._notices.append(self._events.notice(at, text))
            self.file.count(ConsoleWord.OVER_LIMIT, 1)
            return False
        self._tokens = min(_MOST_AT_ONCE, self._tokens + max(0, at - self._filled_at) * _LINES_PER_SECOND / 1e9)
        self._filled_at = max(at, self._filled_at)
        if self._tokens < 1:
            self.file.count(ConsoleWord.TOO_FAST, 1)
            return False
        self._tokens -= 1
        return True

    def _lines(self, kind: ConsoleKind, lines: Iterator[Line], position: int) -> Iterator[Event]:
        return (self._events.line(kind, line) for line in lines if self._admits(line.time, position))

    def _record(self, at: int, data: bytes) -> list[Event]:
        try:
            return [self._events.record(at, data)]
        except EncodingError as error:
            logger.error("%s", error)
            self.file.count(ConsoleWord.TOO_FAST, 1)
            return []
