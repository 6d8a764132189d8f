"""The sink for captured output, which copies it to a file in shared memory.

Threads: any thread may write, also while a signal handler interrupts a write. Forks: a forked child creates a
separate file with its first output.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time_ns
from typing import Final

from tensormeter.redaction import mask_values
from tensormeter.ring.console_file import ConsoleFile, child_console_file
from tensormeter.ring.format import ConsoleWord

__all__ = ["OutputSink"]

_CHILD_BYTES: Final = 64 << 10
"""Size of a forked child's file. A process may have many children."""

_REDRAW_INTERVAL: Final = 200_000_000
"""Minimum nanoseconds between two copies of a line that a progress bar redraws."""

_MOST_PENDING: Final = 64
"""Maximum number of texts that wait for the end of their line."""

_LONGEST_PARTIAL: Final = 8_192
"""Maximum length of a line's start that is not stored until the line ends, in characters."""

_WAKES: Final = 8
"""Number of times that the agent is woken while as much is written as the file has space for."""


class OutputSink:
    """Copies output to a console file. It never waits or raises. If there is no space, lines are dropped and counted."""

    def __init__(self, file: ConsoleFile, secrets: Sequence[str], wake: Callable[[], None]) -> None:
        """
        Args:
            file: File of this process.
            secrets: Texts to mask, such as secrets in the environment.
            wake: Function that wakes the agent.
        """
        self._file: ConsoleFile | None = file
        self._parent = file
        self._secrets = tuple(secrets)
        self._wake = wake
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pending: deque[tuple[int, str, int]] = deque()
        self._partial: dict[int, str] = {}
        """Start of the current line, by kind."""
        self._held: dict[int, str] = {}
        """State of a redrawn line that was not stored, by kind."""
        self._redrawn_at: dict[int, int] = {}
        self._cut: set[int] = set()
        """Kinds whose last text was dropped."""
        self._wakes_at = self._parent.size // _WAKES
        """Position from which the next write wakes the agent."""

    def put(self, kind: int, text: str, at: int = 0) -> None:
        """Copy some output. A line without its end is stored when the line ends.

        Args:
            kind: Value of `ConsoleKind`.
            text: Text, which may be part of a line or several lines.
            at: Time in nanoseconds since the Unix epoch, or 0 for now.
        """
        pending = self._pending
        pending.append((kind, text, at))
        if "\n" in text or "\r" in text or at or len(pending) > _MOST_PENDING:
            # Another thread, or the frame that a signal handler has interrupted, may hold the lock. It then takes this text.
            while pending and self._lock.acquire(False):
                try:
                    self._take_pending()
                finally:
                    self._lock.release()

    def flush(self) -> None:
        """Store incomplete lines and the last state of progress bars."""
        if self._lock.acquire(blocking=False):
            try:
                self._take_pending()
                for kind in {**self._partial, **self._held}:
                    self._store(kind, self._held.pop(kind, "") + self._partial.pop(kind, ""))
            finally:
                self._lock.release()

    def after_fork(self) -> None:
        """Use another file from now on. Call this in a forked child, where locks may be held by threads that are gone."""
        self._file = None
        self._reset()

    def drops(self) -> dict[str, int]:
        """Return the number of lines of this process that cannot be delivered, by reason."""
        return self._parent.drops()

    def _take_pending(self) -> None:
        pending, partial = self._pending, self._partial
        while pending:
            kind, text, at = pending.popleft()  # only the holder of the lock takes texts
            if pending and pending[0] == (kind, "\n", 0) and not (at or self._held or "\n" in text or "\r" in text):
                pending.popleft()  # `print` writes a line and its end separately
                self._store(kind, f"{partial.pop(kind)}{text}\n" if kind in partial else f"{text}\n")
            else:
                self._take(kind, text, at)

    def _take(self, kind: int, text: str, at: int) -> None:
        if text[-1:] == "\n" and not self._held:
            if kind in self._partial:
                text = self._partial.pop(kind) + text
            self._store(kind, text, at)
        elif at:  # a log record
            self._store(kind, text, at)
        elif text[:1] == "\r" and "\n" not in text:
            self._redraw(kind, self._partial.pop(kind, "") + text)
        elif not ("\n" in text or "\r" in text or kind in self._held):
            self._partial[kind] = text = self._partial.get(kind, "") + text
            if len(text) > _LONGEST_PARTIAL:
                self._store(kind, self._partial.pop(kind))
        else:
            self._store(kind, self._held.pop(kind, "") + self._partial.pop(kind, "") + text)

    def _redraw(self, kind: int, text: str) -> None:
        """Store a state of a redrawn line, or hold it if another state has just been stored."""
        now = time_ns()
        if text[:1] == "\r" and now - self._redrawn_at.get(kind, 0) < _REDRAW_INTERVAL:
            self._held[kind] = text  # replaces an earlier state
        else:
            self._redrawn_at[kind] = now
            self._store(kind, self._held.pop(kind, "") + text if text[:1] != "\r" else text)
            self._held.pop(kind, None)

    def _store(self, kind: int, text: str, at: int = 0) -> None:
        if self._secrets:
            text = mask_values(text, self._secrets)
        file = self._file
        if file is None and (file := self._create_child_file()) is None:
            self._parent.count(ConsoleWord.FULL, text.count("\n"))
            return
        whole = f"\n{text}" if self._cut and kind in self._cut and not at else text
        written = file.put(kind, at or time_ns(), whole.encode("utf-8", "replace"))
        if not written:
            self._cut.add(kind)
            file.count(ConsoleWord.FULL, 1 if at else text.count("\n"))
            return
        if self._cut:
            self._cut.discard(kind)
        if written > self._wakes_at:
            self._wakes_at = written + file.size // _WAKES
            self._wake()

    def _create_child_file(self) -> ConsoleFile | None:
        try:
            path = Path(child_console_file(self._parent.path))
            self._file = ConsoleFile.create(path, _CHILD_BYTES)
            self._wakes_at = _CHILD_BYTES // _WAKES
            self._parent.words[ConsoleWord.CHILD_STAMP] = time_ns() ^ os.getpid()
        except OSError:  # no space, or the run has ended
            return None
        return self._file
