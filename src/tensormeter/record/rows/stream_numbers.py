"""The numbers of the streams that a process has logged. Each stream is published once, in the ring's dictionary."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.ring.file import RingFile
from tensormeter.ring.layout import Stream, StreamEntry

__all__ = ["StreamNumbers"]

_MOST_AT_ONCE: Final = 10_000
"""Maximum number of streams in one entry of the dictionary."""

_UNNAMED: Final = object()


class StreamNumbers:
    """Numbers of streams, from 0. Any thread and any signal handler may call the methods.

    Attributes:
        of_names: Numbers of plain gauges without a reduction rule, by metric name. Read-only for callers.
        names: Names of these gauges by number. At the numbers of other streams, it has an object that is not a key of any
            row; None would be one. Read-only for callers.
        changed: Replacements for names and attributes that are not valid Unicode text. Callers remove the entries that they
            have handled.
    """

    def __init__(self, ring: RingFile, most: int, is_reduced: Callable[[str], bool]) -> None:
        """
        Args:
            ring: Ring that this process has created.
            most: Maximum number of streams.
            is_reduced: Function that returns whether a plain gauge with the given name has a reduction rule.
        """
        self._ring = ring
        self._most = most
        self._is_reduced = is_reduced
        self._next = 0
        self.of_names: dict[str, int] = {}
        self.names: list[object] = []
        self._reduced: dict[str, int] = {}
        self._of_streams: dict[Hashable, int] = {}
        self.changed: dict[str, str] = {}
        self._claims = threading.RLock()  # reentrant, because a signal handler may log

    def __len__(self) -> int:
        """Number of streams."""
        return self._next

    @property
    def is_full(self) -> bool:
        """Whether there are as many streams as allowed."""
        return self._next >= self._most

    @property
    def left(self) -> float:
        """Share of the allowed streams that are left, from 0 to 1."""
        return 1 - self._next / self._most

    def logged(self) -> Iterator[str]:
        """Iterate over the names of the plain gauges that have a number."""
        yield from list(self.of_names)
        yield from list(self._reduced)

    def of_name(self, name: str) -> int | None:
        """Return the number of a plain gauge; None if `add_names` could not number it."""
        number = self.of_names.get(name)
        return self._reduced.get(name) if number is None else number

    def add_names(self, names: Iterable[str]) -> None:
        """Number the plain gauges that have no number yet.

        If there are too many streams, or if the dictionary cannot grow, some gauges stay without a number.
        """
        known, reduced = self.of_names, self._reduced
        with self._claims:
            left = iter([name for name in dict.fromkeys(names) if name not in known and name not in reduced])
            while part := [*islice(left, _MOST_AT_ONCE)]:
                part = part[: self._most - self._next]
                first = self._publish([name if name.isascii() else self._written(name) for name in part])
                if first is None:
                    return
                self.names += [_UNNAMED] * (first + len(part) - len(self.names))
                for number, name in enumerate(part, first):
                    if self._is_reduced(name):
                        reduced[name] = number
                    else:
                        self.names[number] = name
                        known[name] = number

    def of(self, stream: Stream, key: Hashable = None) -> int | None:
        """Return the number of a stream.

        Args:
            stream: Stream.
            key: Identification of the stream. Default: its contents. (1, 1.0 and True are different attribute values, but
                compare equal.)

        Returns:
            Number; None if there are too many streams, or if the dictionary cannot grow.
        """
        if key is None:
            if stream == Stream(stream.name):
                self.add_names([stream.name])
                return self.of_name(stream.name)
            key = repr(stream)
        number = self._of_streams.get(key)
        if number is None:
            with self._claims:
                number = self._publish([self._as_unicode(stream).to_entry()])
                if number is not None:
                    self._of_streams[key] = number
        return number

    def _publish(self, entries: Sequence[StreamEntry]) -> int | None:
        """Publish streams unless there are too many, and return the number of the first one."""
        first = self._next
        if not entries or first + len(entries) > self._most:
            return None
        self._next = first + len(entries)
        if self._ring.add_streams(first, entries):
            return first
        if self._next == first + len(entries):  # otherwise a signal handler has published further streams
            self._next = first
        return None

    def _as_unicode(self, stream: Stream) -> Stream:
        """Return the stream to publish, in which all texts are valid Unicode. Writers keep the caller's original names."""
        if stream.name.isascii() and not stream.attributes and not stream.scope:
            return stream
        return replace(
            stream,
            name=self._written(stream.name),
            attributes=self._written(stream.attributes),
            scope=self._written(stream.scope),
        )

    def _written(self, given: Any) -> Any:
        """Convert a stream's name, attributes or scope to valid Unicode text."""
        if isinstance(given, tuple):
            return tuple(map(self._written, given))
        if not isinstance(given, str):
            return given
        written = as_unicode(given)
        if written != given:
            self.changed[given] = written
        return written
