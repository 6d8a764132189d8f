"""Inbox for the output of one process and its forked children, which converts it to log records."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.ingest.console_reader import ConsoleReader
from tensormeter.agent.ingest.output_tail import CapturedLines, OutputTail
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.errors import RingError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Event
from tensormeter.redaction import environment_secrets
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

_MOST_CHECKS: Final = 500
"""Maximum number of lines per `take` that are checked for two captured texts without a line feed between them."""


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
        self._files: dict[int, ConsoleReader] = {}
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
            first = _first_cursor(number)
            cursors |= {first + kind: Cursor(position) for kind, position in reader.changed_positions().items()}
        if tails:
            partial = self._partial()
            main = self._files[0]
            for tail in tails:
                events += main.read_tail(tail, tail.lines(partial, final=final))
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
        first = _first_cursor(number)
        self._files[number] = ConsoleReader(
            file,
            {kind: self._cursor(first + kind).position for kind in ConsoleKind},
            self._max_bytes,
            self._captured,
            is_child=0 < number < _RELAY,
            is_relay=number == _RELAY,
        )
        return True


def _first_cursor(number: int) -> int:
    """Return the number of the first cursor of a file."""
    return _FIRST_CURSOR + number * _KINDS
