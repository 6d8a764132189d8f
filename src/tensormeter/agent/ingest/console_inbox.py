"""Inbox for the output of one process and its forked children, which converts it to log records."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.ingest.console_lines import Line, LineAssembler
from tensormeter.agent.ingest.output_tail import CapturedLines, OutputTail
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.conventions.semconv import LOG_STREAM
from tensormeter.errors import RingError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Event, Scope
from tensormeter.redaction import OutputMask, environment_secrets
from tensormeter.ring.console_file import ConsoleFile, child_console_files, console_file, relay_console_file
from tensormeter.ring.format import MAX_LANES, ConsoleKind, ConsoleWord

__all__ = ["ConsoleInbox", "Output"]

logger: Final = get_logger("tensormeter.agent")

_FIRST_CURSOR: Final = MAX_LANES + 1
"""Number of the first cursor for console files, after those of lanes and of media."""

_RELAY: Final = 1 << 41
"""Number of the file of a relay. The numbers of children are smaller."""

_KINDS: Final = 8
"""Number of cursors reserved for a file. There is one for each kind of chunk."""

_TAIL_CURSORS: Final = {ConsoleKind.STDOUT: 0, ConsoleKind.STDERR: 7}
"""Numbers of the cursors for the files that the streams lead to. `ConsoleKind` uses none of these."""

_REPLAYED: Final = 64 << 10
"""Minimum bytes of stored chunks that another agent reads again, to know the lines that are still to come in a file."""

_MOST_CHECKS: Final = 500
"""Maximum number of lines per `take` that are checked for two captured texts without a line feed between them."""

_HEADER: Final = 16
"""Size of a chunk's header in bytes."""

_LINES_PER_SECOND: Final = 1000
_MOST_AT_ONCE: Final = 10_000
"""Number of lines that may arrive faster than that."""

_STORE_DELAY: Final = 0.0 if platform.machine() in ("x86_64", "AMD64", "i686") else 0.002
"""Seconds between reading the position of the last chunk and reading chunks, on processors that reorder stores."""

_STDOUT: Final = (9, "INFO")
_STDERR: Final = (13, "WARN")
"""Severities. A progress bar on standard error is INFO."""

_STREAMS: Final = {ConsoleKind.STDOUT: "stdout", ConsoleKind.STDERR: "stderr"}


@dataclass
class Output:
    """Log records to store, and the positions to store with them.

    Attributes:
        events: Log records in time order.
        cursors: Position after the records, by number.
        release: Function to call once the records are stored. It frees the space in the process's files.
    """

    events: Sequence[Event]
    cursors: Mapping[int, Cursor]
    release: Callable[[], None]


class ConsoleInbox:
    """The console files of one process. Only the agent's main thread may use it."""

    def __init__(
        self,
        ring_path: Path,
        metadata: Callable[[], Mapping[str, Any]],
        is_alive: Callable[[], bool],
        cursor: Callable[[int], Cursor],
        max_bytes: int,
    ) -> None:
        """
        Args:
            ring_path: Path of the process's ring.
            metadata: Function that returns the metadata of the process.
            is_alive: Function that returns whether the process is running.
            cursor: Function that returns the stored position with a number.
            max_bytes: Maximum bytes of output that are recorded of a file. Later lines are counted.
        """
        self._metadata = metadata
        self._is_alive = is_alive
        self._captured = CapturedLines(environment_secrets(os.environ))
        self._tails: list[OutputTail] | None = None
        self._ring_path = ring_path
        self._cursor = cursor
        self._max_bytes = max_bytes
        self._files: dict[int, _Reader] = {}
        self._unreadable: set[int] = set()
        self._stamp = 0
        self._taken_at = -float("inf")
        self._tail_positions: dict[int, int] = {}
        self._output: Output | None = None
        """Output that was taken and is not stored yet."""

    def has_news(self) -> bool:
        """Return whether there is unread output. This only compares words in memory once the files are open."""
        self._open_files()
        try:
            return any(reader.has_news() for reader in self._files.values()) or any(
                tail.has_news() for tail in self._tails or ()
            )
        except OSError:
            return True

    def due(self, delay: float) -> bool:
        """Return whether `delay` seconds have passed since the last `take`, and there may be something to take."""
        return self._output is not None or (
            time.monotonic() - self._taken_at >= delay
            and (self.has_news() or any(reader.waits for reader in self._files.values()) or bool(self._tails))
        )

    def take(self, *, final: bool) -> Output | None:
        """Read the available output; return None if nothing has changed. Until it is released, return it again.

        Args:
            final: Whether the process is gone or has finished, so that incomplete lines are complete.
        """
        if self._output is not None:
            return self._output
        self._taken_at = time.monotonic()
        self._open_files()
        self._captured.checks = _MOST_CHECKS
        tails = self._fetch_tails()
        relay = self._files.get(_RELAY)
        relay_end = relay.file.words[ConsoleWord.HEAD] if relay is not None else 0
        events: list[Event] = []
        cursors: dict[int, Cursor] = {}
        # The captured lines come first, because they are needed to recognize lines that a relay has passed on.
        for number, reader in sorted(self._files.items()):
            if number == _RELAY:
                reader.captured_partial = self._partial()
            try:
                is_over = final or (0 < number < _RELAY and not reader.is_written())
                events += reader.read(final=is_over, end=relay_end if number == _RELAY else None)
            except RingError as error:
                logger.error("%s; its output is lost", error)
                reader.skip()
            cursors |= reader.changed_cursors()
        if tails:
            partial = self._partial()
            main = self._files[0]
            for tail in tails:
                events += main.of_tail(tail, tail.lines(partial, final=final))
                number = _FIRST_CURSOR + _TAIL_CURSORS[tail.kind]
                if self._tail_positions.get(number) != tail.assembler.safe:
                    self._tail_positions[number] = tail.assembler.safe
                    cursors[number] = Cursor(tail.assembler.safe)
        if not events and not cursors:
            self._remove_ended_children()
            return None
        events.sort(key=lambda event: event.time)
        self._output = Output(events, cursors, self._release)
        return self._output

    def _fetch_tails(self) -> list[OutputTail]:
        """Read the files that output leads to. A file that cannot be read is given up."""
        ends = self._metadata().get("output_ends")
        for tail in list(self._tails or ()):
            try:
                if isinstance(ends, dict):
                    tail.end = ends.get(str(int(tail.kind)))
                tail.fetch()
            except OSError as error:
                logger.warning("the output of child processes and native code is no longer recorded: %s", error)
                self._tails = []
        return self._tails or []

    def _partial(self) -> tuple[str, ...]:
        """Return the captured lines that have no end yet."""
        return tuple(text for number, reader in self._files.items() if number != _RELAY for text in reader.partial())

    def drops(self) -> dict[str, int]:
        """Return the number of lines that cannot be delivered, by reason."""
        self._open_files()
        counts: dict[str, int] = {}
        relayed: dict[str, int] = {}
        for number, reader in self._files.items():
            into = relayed if number == _RELAY else counts
            for reason, count in reader.file.drops().items():
                into[reason] = into.get(reason, 0) + count
        # Most lines that a relay drops are the process's own, which are counted already.
        return {reason: max(counts.get(reason, 0), relayed.get(reason, 0)) for reason in {**counts, **relayed}}

    def _release(self) -> None:
        self._output = None
        for reader in self._files.values():
            reader.release()
        self._remove_ended_children()

    def _remove_ended_children(self) -> None:
        """Delete the files of children that have ended, and add their counts to the process's own."""
        for number, reader in list(self._files.items()):
            if 0 < number < _RELAY and not reader.is_written() and not reader.has_news() and reader.is_released():
                for word in (ConsoleWord.FULL, ConsoleWord.TOO_FAST, ConsoleWord.OVER_LIMIT):
                    self._files[0].file.words[ConsoleWord.TOO_FAST if word == ConsoleWord.FULL else word] += (
                        reader.file.words[word]
                    )
                reader.file.path.unlink(missing_ok=True)
                del self._files[number]

    def _open_files(self) -> None:
        if 0 not in self._files:
            if not self._open(0, console_file(self._ring_path)) or 0 not in self._files:
                return
            self._stamp = -1
        if self._tails is None and (outputs := self._metadata().get("outputs")) is not None:
            # Other programs may write to the files after the end of a process that was killed.
            is_known = self._is_alive() or "output_ends" in self._metadata()
            self._tails = list(self._open_tails(outputs)) if is_known else []
            if self._tails:
                self._files[0].replay()
        if _RELAY not in self._files and self._metadata().get("relay"):
            self._open(_RELAY, relay_console_file(self._ring_path))
            if _RELAY in self._files:
                self._files[0].replay()
        stamp = self._files[0].file.words[ConsoleWord.CHILD_STAMP]
        if stamp != self._stamp:
            self._stamp = stamp
            for number, path in child_console_files(self._ring_path).items():
                if not self._open(number, path):
                    self._stamp = -1  # look again

    def _open_tails(self, outputs: Any) -> Iterator[OutputTail]:
        for file in outputs:
            try:
                number = _FIRST_CURSOR + _TAIL_CURSORS[ConsoleKind(file["kind"])]
                yield OutputTail(file, self._cursor(number).position, self._captured)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("the output of child processes and native code is not recorded: %s", error)

    def _open(self, number: int, path: Path) -> bool:
        if number in self._files or number in self._unreadable:
            return number in self._files
        try:
            file = ConsoleFile.open(path)
        except FileNotFoundError:
            return False
        except (OSError, RingError, ValueError) as error:
            self._unreadable.add(number)
            logger.error("cannot read the output of a process: %s", error)
            return True
        if file is None:
            return False
        first = _FIRST_CURSOR + number * _KINDS
        positions = {kind: self._cursor(first + kind).position for kind in ConsoleKind}
        self._files[number] = _Reader(
            file,
            first,
            positions,
            self._max_bytes,
            is_child=0 < number < _RELAY,
            is_relay=number == _RELAY,
            captured=self._captured,
        )
        return True


@dataclass
class _Reader:
    """Reader of one console file."""

    file: ConsoleFile
    first_cursor: int
    positions: dict[ConsoleKind, int]
    """Position up to which the chunks of each kind are stored."""

    max_bytes: int
    is_child: bool
    is_relay: bool
    captured: CapturedLines
    captured_partial: tuple[str, ...] = ()
    """Captured lines that have no end yet."""
    waits: bool = False
    """Whether output was read that is not complete, such as a line without its end."""

    _assemblers: dict[ConsoleKind, LineAssembler] = field(default_factory=dict)
    _masks: dict[ConsoleKind, OutputMask] = field(default_factory=dict)
    _changed: dict[ConsoleKind, int] = field(default_factory=dict)
    _notices: list[Event] = field(default_factory=list)
    _position: int = 0
    _tokens: float = _MOST_AT_ONCE
    _tailed: int = 0
    _fed: set[int] = field(default_factory=set)
    """Kinds of the chunks that were read. The others need no position."""
    _filled_at: int = 0
    _free_up_to: int = 0
    _boundaries: list[int] = field(default_factory=list)
    """Starts of earlier chunks."""

    def __post_init__(self) -> None:
        words = self.file.words
        tail, head = words[ConsoleWord.TAIL], words[ConsoleWord.HEAD]
        self._position = self._free_up_to = tail if 0 <= tail <= head else head
        replay = words[ConsoleWord.REPLAY]
        self._boundaries = [replay if 0 <= replay <= self._position else self._position]
        secrets = environment_secrets(os.environ)
        self._assemblers = self._new_assemblers()
        self._masks = {kind: OutputMask(secrets) for kind in ConsoleKind}

    def has_news(self) -> bool:
        return bool(self.file.words[ConsoleWord.HEAD] != self._position)

    def is_written(self) -> bool:
        """Return whether the process that writes the file may be running."""
        try:
            os.kill(self.file.words[ConsoleWord.WRITER_PID], 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True

    def is_released(self) -> bool:
        return bool(self.file.words[ConsoleWord.TAIL] == self.file.words[ConsoleWord.HEAD])

    def skip(self) -> None:
        """Give up the unread chunks."""
        head = self.file.words[ConsoleWord.HEAD]
        self.file.count(ConsoleWord.TOO_FAST, 1)
        self._position = self._free_up_to = head
        self._assemblers = self._new_assemblers()

    def read(self, *, final: bool, end: int | None = None) -> list[Event]:
        """Return the new log records.

        Args:
            final: Whether incomplete lines are complete.
            end: Position up to which to read. Default: the end.
        """
        head = self.file.words[ConsoleWord.HEAD] if end is None else end
        if head <= self._position and not self.waits and not final:
            return []
        if _STORE_DELAY:
            threading.Event().wait(_STORE_DELAY)
        events: list[Event] = []
        free = self._position
        for chunk in self.file.chunks(self._position, head):
            kind = chunk.kind
            self._fed.add(kind)
            if kind == ConsoleKind.LOG_RECORD:
                if chunk.start >= self.positions[ConsoleKind.LOG_RECORD] and self._admits(chunk.time, chunk.end):
                    events += self._record(chunk.time, chunk.data)
            elif kind in self._assemblers:
                stream = ConsoleKind(kind)
                stored = max(0, self.positions[stream] - chunk.start - _HEADER)
                if stored < len(chunk.data) or not chunk.data:
                    start = chunk.start + _HEADER + stored
                    lines = self._assemblers[stream].feed(chunk.data[stored:], start, chunk.time)
                    events += self._events(stream, lines, chunk.end)
            self._position = free = chunk.end
        is_late = head - self._safe() > self.file.size // 4
        for kind, assembler in self._assemblers.items():
            lines = assembler.flush() if final or is_late else assembler.expire(time.time_ns())
            events += self._events(kind, lines, head)
        self.waits = self._safe() < head
        self._note_positions(free)
        notices, self._notices = self._notices, []
        return events + notices

    def of_tail(self, tail: OutputTail, lines: Sequence[Line]) -> list[Event]:
        """Return the log records for lines of a file."""
        if tail.skipped:
            self.file.count(ConsoleWord.TOO_FAST, tail.skipped)
            tail.skipped = 0
        return [self._line(tail.kind, line) for line in lines if self._admits(line.time, self._tail_bytes(line))]

    def _tail_bytes(self, line: Line) -> int:
        self._tailed += len(line.text)
        return self._tailed

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

    def _new_assemblers(self) -> dict[ConsoleKind, LineAssembler]:
        def is_new(line: Line) -> bool:
            return not self.captured.take(line, self.captured_partial)

        if self.is_relay:
            return {kind: LineAssembler(self._position, is_new) for kind in _STREAMS}

        def add(line: Line) -> bool:
            self.captured.add(line)
            return True

        def add_logged(line: Line) -> bool:
            self.captured.add(line)
            return False

        return {kind: LineAssembler(self._position, add) for kind in _STREAMS} | {
            kind: LineAssembler(self._position, add_logged)
            for kind in (ConsoleKind.LOGGED_STDOUT, ConsoleKind.LOGGED_STDERR)
        }

    def changed_cursors(self) -> dict[int, Cursor]:
        return {self.first_cursor + kind: Cursor(position) for kind, position in self._changed.items()}

    def release(self) -> None:
        """Free the space of everything that is stored."""
        self.positions |= self._changed
        self._changed = {}
        self.file.words[ConsoleWord.TAIL] = self._free_up_to
        self._boundaries.append(self._free_up_to)
        while len(self._boundaries) > 1 and self._boundaries[1] < self._free_up_to - _REPLAYED:
            del self._boundaries[0]
        self.file.words[ConsoleWord.REPLAY] = self._boundaries[0]

    def _safe(self) -> int:
        return min((assembler.safe for assembler in self._assemblers.values()), default=self._position)

    def _note_positions(self, read_up_to: int) -> None:
        """Note what can be stored and freed: everything up to the first incomplete line of a stream."""
        waiting = []
        for kind in (*self._assemblers, ConsoleKind.LOG_RECORD):
            assembler = self._assemblers.get(kind)
            is_whole = assembler is None or assembler.safe >= assembler.position
            position = read_up_to if assembler is None or is_whole else assembler.safe
            if not is_whole:
                waiting.append(position)
            if position > self.positions[kind] and kind in self._fed:
                self._changed[kind] = position
        # Space is freed by chunks, so start over from the chunk that contains the first incomplete line.
        if not waiting:
            self._free_up_to = read_up_to
            return
        for chunk in self.file.chunks(self._free_up_to, read_up_to):
            if chunk.end > min(waiting):
                self._free_up_to = chunk.start
                return

    def _admits(self, at: int, position: int) -> bool:
        """Return whether neither the rate nor the amount of output exceeds its limit. Count the line otherwise."""
        words = self.file.words
        if position > self.max_bytes:
            if words[ConsoleWord.OVER_LIMIT] == 0:
                text = (
                    "tensormeter: further output is not recorded, because the process has written more than "
                    f"{self.max_bytes:,} bytes; raise TENSORMETER_CONSOLE_MAX_BYTES to record more"
                )
                self._notices.append(Event("", at, text, severity_number=_STDERR[0], severity_text=_STDERR[1]))
            self.file.count(ConsoleWord.OVER_LIMIT, 1)
            return False
        self._tokens = min(_MOST_AT_ONCE, self._tokens + max(0, at - self._filled_at) * _LINES_PER_SECOND / 1e9)
        self._filled_at = max(at, self._filled_at)
        if self._tokens < 1:
            self.file.count(ConsoleWord.TOO_FAST, 1)
            return False
        self._tokens -= 1
        return True

    def _events(self, kind: ConsoleKind, lines: Iterator[Line], position: int) -> Iterator[Event]:
        for line in lines:
            if self._admits(line.time, position):
                yield self._line(kind, line)

    def _line(self, kind: ConsoleKind, line: Line) -> Event:
        number, text = _STDERR if kind == ConsoleKind.STDERR and not line.redrawn else _STDOUT
        return Event(
            "",
            line.time,
            self._masks[kind].line(line.text),
            {LOG_STREAM: _STREAMS[kind], **self._origin()},
            severity_number=number,
            severity_text=text,
        )

    def _origin(self) -> dict[str, int]:
        return {"process.pid": self.file.words[ConsoleWord.WRITER_PID]} if self.is_child else {}

    def _record(self, at: int, data: bytes) -> list[Event]:
        mask = self._masks[ConsoleKind.LOG_RECORD].text
        try:
            fields = json.loads(data)
            attributes: dict[str, Any] = {
                "code.file.path": str(fields["path"]),
                "code.function.name": str(fields["function"]),
                "code.line.number": int(fields["line"]),
                **self._origin(),
            }
            for name, text in fields.get("exception", {}).items():
                attributes[f"exception.{name}"] = mask(str(text))
            return [
                Event(
                    "",
                    at,
                    mask(fields["message"]),
                    attributes,
                    severity_number=int(fields["severity"]),
                    severity_text=str(fields["level"]),
                    scope=Scope(str(fields["name"])),
                )
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.error("a log record could not be read: %s", error)
            self.file.count(ConsoleWord.TOO_FAST, 1)
            return []
