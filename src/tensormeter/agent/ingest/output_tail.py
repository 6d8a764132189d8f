"""Reader of the files that a process's standard output and standard error lead to.

The files contain the output of child processes and native code. They also contain the text that the process itself has
captured, which is left out (`CapturedLines`).
"""

import os
import stat
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tensormeter.agent.ingest.console_lines import Line, LineAssembler, bar_name
from tensormeter.disk.private import open_file
from tensormeter.redaction import mask_values
from tensormeter.ring.format import ConsoleKind

__all__ = ["CapturedLines", "OutputTail"]

_MOST_LINES: Final = 50_000
"""Maximum number of captured lines to remember until they are found in a file."""

_MOST_BARS: Final = 64
_LONGEST_JOINED: Final = 512
"""Maximum length of a line that is checked for two captured texts without a line feed between them."""

_PIECE: Final = 1 << 20
"""Maximum bytes that are read at once."""

_MOST_BEHIND: Final = 8 << 20
"""Maximum unread bytes of a file. If there are more, only the last ones are read."""


class CapturedLines:
    """Lines that a process has captured itself, with their times. Each of them accounts for one line in a file.

    The process masks the secrets of its environment before it passes on a line, so lines are compared in masked form.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """
        Args:
            secrets: Secrets of the process's environment.
        """
        self._secrets = tuple(secrets)
        self._lines: dict[int, tuple[int, int]] = {}
        """Number of lines and time of the last one, by hash."""
        self._bars: dict[str, None] = {}
        self.checks = 0
        """Number of lines that may still be checked for two captured texts, because that takes long."""

    def add(self, line: Line) -> None:
        """Remember a captured line."""
        if line.redrawn:
            self._bars[bar_name(line.text)] = None
            if len(self._bars) > _MOST_BARS:
                del self._bars[next(iter(self._bars))]
        key = hash(mask_values(line.text, self._secrets))
        number, _ = self._lines.get(key, (0, 0))
        self._lines[key] = number + 1, line.time
        if len(self._lines) > _MOST_LINES:
            del self._lines[next(iter(self._lines))]

    def take(self, line: Line, partial: tuple[str, ...]) -> int:
        """Return the time of a captured line with this text, and forget that line; return 0 if there is none.

        Args:
            line: Line of a file.
            partial: Captured lines that have no end yet.
        """
        text = mask_values(line.text, self._secrets)
        if at := self._take(text):
            return at
        if line.redrawn and bar_name(text) in self._bars:
            return line.time
        if len(text) <= _LONGEST_JOINED and self._lines and self.checks > 0:
            self.checks -= 1
            for cut in range(1, len(text)):
                first, second = text[:cut], text[cut:]
                if (hash(first) in self._lines or first in partial) and (
                    hash(second) in self._lines or second in partial
                ):
                    self._take(first)
                    return self._take(second) or line.time
        return line.time if text in partial else 0

    def _take(self, text: str) -> int:
        key = hash(text)
        number, at = self._lines.get(key, (0, 0))
        if number > 1:
            self._lines[key] = number - 1, at
        elif number:
            del self._lines[key]
        return at


class OutputTail:
    """Reader of one file. It blocks only on the disk."""

    def __init__(self, file: Mapping[str, Any], position: int, captured: CapturedLines) -> None:
        """
        Args:
            file: Description of the file (see `record.logs.output_files`).
            position: Position up to which the file is stored; 0 to start at the position in the description.
            captured: Lines to leave out.

        Raises:
            OSError, ValueError, KeyError, TypeError: The file cannot be opened, or has been replaced by another one.
        """
        self.kind = ConsoleKind(file["kind"])
        self._descriptor = open_file(file["path"], os.O_RDONLY)
        status = os.fstat(self._descriptor)
        if [status.st_dev, status.st_ino] != file["identity"] or not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise ValueError(f"{file['path']} was replaced")
        weakref.finalize(self, os.close, self._descriptor).atexit = False  # an agent on a thread may still be reading
        self._captured = captured
        self._partial: tuple[str, ...] = ()
        self._after = int(file["time"]) if not position else time.time_ns()
        """Time before which the next line was not written."""
        self._fetched_at = self._after
        self._data: tuple[bytes, int, int] = (b"", 0, 0)
        self.end: int | None = None
        """Position after the output of the run, once the process has finished."""
        self.skipped = 0
        """Number of times that output was skipped, because there was too much."""
        self.assembler = LineAssembler(position or int(file["position"]), self._admit)

    def has_news(self) -> bool:
        """Return whether the file has changed in size."""
        return self._size() != self.assembler.position

    def fetch(self) -> None:
        """Read new output, without using it. Call this before the captured lines are read, because these are written first."""
        size, position = self._size(), self.assembler.position
        if size < position:  # the file was truncated
            position = 0 if self.end is None else size
        if size - position > _MOST_BEHIND:
            self.skipped += 1
            position = size - _PIECE
        data = os.pread(self._descriptor, min(_PIECE, size - position), position)
        self._data = data, position, time.time_ns()

    def _size(self) -> int:
        size = os.fstat(self._descriptor).st_size
        return size if self.end is None else min(size, self.end)

    def lines(self, partial: tuple[str, ...], *, final: bool) -> list[Line]:
        """Return the lines of the fetched output that have not been captured.

        Args:
            partial: Captured lines that have no end yet.
            final: Whether nothing is appended to the file any more, so that its last line is complete.
        """
        self._partial = partial
        data, position, fetched_at = self._data
        if position != self.assembler.position:
            self.assembler = LineAssembler(position, self._admit)
        # A line was written after the last `fetch`, and after the captured lines before it.
        self._after, self._fetched_at = max(self._after, self._fetched_at), fetched_at
        lines = [line._replace(time=self._after) for line in self.assembler.feed(data, position, fetched_at)]
        is_whole = final and self.assembler.position >= self._size()
        rest = self.assembler.flush() if is_whole else self.assembler.expire(fetched_at)
        lines += [line._replace(time=self._after) for line in rest]
        self._data = b"", self.assembler.position, fetched_at
        return lines

    def _admit(self, line: Line) -> bool:
        captured_at = self._captured.take(line, self._partial)
        if captured_at:
            self._after = min(max(self._after, captured_at), self._fetched_at)
        return not captured_at
