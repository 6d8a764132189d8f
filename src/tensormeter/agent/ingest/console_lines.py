"""Assembly of console output into lines, as a terminal would show them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["LONGEST_LINE", "Line", "LineAssembler", "bar_name", "clean"]

LONGEST_LINE: Final = 16_384
"""Maximum size of a line in bytes. The rest of a longer line is left out."""

_SECOND: Final = 1_000_000_000
_MOST_BARS: Final = 16
_MOVED: Final = 2 * _SECOND
"""Nanoseconds for which the ends of redrawn lines are part of the redrawing, after the cursor was moved up."""

_END: Final = re.compile(rb"\r\n|\n|\r")
_ESCAPE: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colors, cursor movements
    r"|\x1b[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f]"
)
_CURSOR_UP: Final = re.compile(rb"\x1b\[\d*[AF]")
_BAR_NAME: Final = re.compile(r"[^\d%]*")
"""Start of a progress bar's line, which stays the same when the line is redrawn."""


class Line(NamedTuple):
    """A line of output.

    Attributes:
        time: Time of the call that wrote the line's first character, in nanoseconds since the Unix epoch.
        text: Text of the line without its end, colors and other control characters.
        redrawn: Whether the line was redrawn, as by a progress bar.
    """

    time: int
    text: str
    redrawn: bool = False


def clean(data: bytes) -> str:
    """Return the text of a line without escape sequences, control characters and trailing spaces."""
    return _ESCAPE.sub("", data.decode("utf-8", "replace")).rstrip()


@dataclass
class _State:
    """A state of a redrawn line that has not been emitted."""

    line: Line
    start: int


@dataclass
class LineAssembler:
    """Assembler for one stream. Blank lines are left out.

    A line that is redrawn with a carriage return yields at most one state per second, and its last state. If several
    progress bars move the cursor, this applies to each of them.
    """

    position: int = 0
    """Position up to which the stream has been read."""

    admit: Callable[[Line], bool] = lambda line: True
    """Function that receives each line and each state of a redrawn line, and returns whether to use it."""

    _partial: bytearray = field(default_factory=bytearray)
    _start: int = 0
    _time: int = 0
    _is_redrawn: bool = False
    _is_cut: bool = False
    _moved_at: int = -_MOVED
    _last: Line | None = None
    """Last state of the current redrawn line, if it may still be its final one."""

    _is_shown: bool = False
    """Whether `_last` has been emitted."""

    _waiting: dict[str, _State] = field(default_factory=dict)
    _emitted_at: dict[str, int] = field(default_factory=dict)

    @property
    def safe(self) -> int:
        """Position up to which everything has been emitted."""
        starts = [state.start for state in self._waiting.values()]
        return min([self._start if self._partial else self.position, *starts])

    def feed(self, data: bytes, start: int, time: int) -> Iterator[Line]:
        """Yield the lines that some output completes.

        Args:
            data: Bytes of the stream.
            start: Position of the first byte.
            time: Time of the output in nanoseconds since the Unix epoch.
        """
        begin = 0
        for match in _END.finditer(data):
            self._extend(data[begin : match.start()], start + begin, time)
            begin = match.end()
            content = bytes(self._partial)
            line_start = self._start
            self._partial.clear()
            self._is_cut = False
            self.position = start + begin
            yield from self._end_of(content, line_start, time, is_redraw=match[0] == b"\r")
        self._extend(data[begin:], start + begin, time)
        self.position = start + len(data)

    @property
    def partial(self) -> str:
        """Incomplete line."""
        return clean(bytes(self._partial))

    def expire(self, now: int) -> Iterator[Line]:
        """Yield the states of redrawn lines that have been waiting for a second.

        Args:
            now: Time in nanoseconds since the Unix epoch.
        """
        if self._is_redrawn and self._partial and now - self._time >= _SECOND:
            content = bytes(self._partial)
            self._partial.clear()
            yield from self._redraw(content, self._start, self._time)
        for name in [name for name, state in self._waiting.items() if now - state.line.time >= _SECOND]:
            yield self._emit(name, self._waiting.pop(name).line)

    def flush(self) -> Iterator[Line]:
        """Yield everything that has been read, including an incomplete line."""
        content, start = bytes(self._partial), self._start
        self._partial.clear()
        self._is_cut = False
        if content or self._is_redrawn:
            self._moved_at = -_MOVED
            yield from self._end_of(content, start, self._time, is_redraw=False)
        for name in list(self._waiting):
            yield self._emit(name, self._waiting.pop(name).line)

    def _extend(self, data: bytes, start: int, time: int) -> None:
        if not data:
            return
        if not self._partial:
            self._start, self._time = start, time
        elif self._is_redrawn:
            self._time = time
        room = LONGEST_LINE - len(self._partial)
        self._partial += data[:room]
        self._is_cut = self._is_cut or len(data) > room

    def _end_of(self, content: bytes, start: int, time: int, *, is_redraw: bool) -> Iterator[Line]:
        if _CURSOR_UP.search(content):
            self._moved_at = time
        if is_redraw or (self._is_redrawn and time - self._moved_at < _MOVED):
            yield from self._redraw(content, start, self._time)
            self._is_redrawn = is_redraw
            return
        text = clean(content)
        is_redrawn, last, is_shown = self._is_redrawn, self._last, self._is_shown
        self._is_redrawn, self._last = False, None
        if text and not self.admit(Line(self._time, text, is_redrawn)):
            return
        if not text and last is not None:  # the terminal keeps the last state
            self._waiting.pop(bar_name(last.text), None)
            if not is_shown:
                yield self._emit(bar_name(last.text), last)
        elif text:
            if is_redrawn:
                if last is not None:
                    self._waiting.pop(bar_name(last.text), None)
                self._waiting.pop(bar_name(text), None)
            if not (is_redrawn and is_shown and last is not None and last.text == text):
                yield Line(self._time, text, is_redrawn)

    def _redraw(self, content: bytes, start: int, time: int) -> Iterator[Line]:
        """Note a state of a redrawn line, and yield it unless another one was yielded less than a second before."""
        text = clean(content)
        if not text or (self._last is not None and self._last.text == text):
            return
        if not self.admit(Line(time, text, redrawn=True)):
            return
        name = bar_name(text)
        self._last, self._is_shown = Line(time, text, redrawn=True), False
        if time - self._emitted_at.get(name, -_SECOND) >= _SECOND:
            self._waiting.pop(name, None)
            yield self._emit(name, self._last)
            return
        earlier = self._waiting.pop(name, None)
        if len(self._waiting) < _MOST_BARS:
            self._waiting[name] = _State(self._last, start if earlier is None else max(start, earlier.start))

    def _emit(self, name: str, line: Line) -> Line:
        if len(self._emitted_at) >= _MOST_BARS:
            self._emitted_at = {}
        self._emitted_at[name] = line.time
        if self._last is not None and self._last.text == line.text:
            self._is_shown = True
        return line


def bar_name(text: str) -> str:
    """Return the start of a progress bar's line, which does not change when the bar is redrawn."""
    match = _BAR_NAME.match(text)
    return match[0].strip()[:64] if match else ""
