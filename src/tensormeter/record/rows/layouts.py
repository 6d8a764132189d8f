"""The layouts of the rows that a process has logged. Each layout is published once, in the ring's dictionary."""

import itertools
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import MAX_LAYOUT
from tensormeter.ring.layout import Column, Layout, Stream

__all__ = ["Layouts"]

_MAX_KEY_SETS: Final = 4096
"""Maximum number of key sets. Beyond this limit, a row with a new key set is written as one row per key. Programs may therefore
use any number of key sets."""

_MAX_WIDE_SETS: Final = 64
"""Number of layouts with distributions or attributes beyond which a row with a distribution and other values gets no new layout.
Each distribution of the row is then written as a separate row. A layout takes hundreds of bytes per distribution, and a program may need many
layouts. For example, each row of a mixture-of-experts model may contain the gradients of different experts."""

_NOT_FOR_STREAMS: Final = 1 / 4
"""Fraction of the ring's dictionary that is reserved for the layouts of logged rows. Instruments' streams cannot use it."""


class Layouts:
    """Layouts, indexed by their contents. Any thread and any signal handler may call the methods.

    The `of_*` methods return an existing layout or add a new one. They return None if a limit has been reached or the ring's
    dictionary is full.

    Attributes:
        rows: Layouts of rows of plain gauges, by names and codes. Read-only for callers.
        changed: Replacements for names and attributes that are not valid Unicode text. Callers remove the entries that they
            have handled.
    """

    def __init__(self, ring: RingFile) -> None:
        self._ring = ring
        self._numbers = itertools.count(1)
        self.rows: dict[tuple[tuple[str, ...], str], Layout] = {}
        self._wide: dict[tuple[Column, ...], Layout] = {}
        self._streams: dict[tuple[Hashable, str], Layout] = {}
        self.changed: dict[str, str] = {}
        self._claims = threading.RLock()  # reentrant, because a signal handler may log

    def names(self) -> Iterator[str]:
        """Iterate over the names in the rows of plain gauges that have been logged so far."""
        for names, _ in list(self.rows):
            yield from names

    def of_row(self, names: tuple[str, ...], codes: str) -> Layout | None:
        """Return the layout for a row of plain gauges."""
        layout = self.rows.get((names, codes))
        if layout is None:
            with self._claims:
                if len(names) > 1 and len(self.rows) >= _MAX_KEY_SETS:
                    return None
                columns = tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True))
                layout = self._add(columns, stepped=True)
                if layout is not None:
                    self.rows[names, codes] = layout
        return layout

    def of_distributions(self, columns: Sequence[Column]) -> Layout | None:
        """Return the layout for a row with distributions. Rows that contain more than one distribution have a lower limit."""
        has_other_values = len({column.stream for column in columns}) > 1
        if has_other_values and len(self._wide) >= _MAX_WIDE_SETS and tuple(columns) not in self._wide:
            return None
        return self.of_columns(columns)

    def of_columns(self, columns: Sequence[Column]) -> Layout | None:
        """Return the layout for a row with arbitrary columns."""
        key = tuple(columns)
        layout = self._wide.get(key)
        if layout is None:
            with self._claims:
                if len(self._wide) >= _MAX_KEY_SETS:
                    return None
                layout = self._add(key, stepped=True)
                if layout is not None:
                    self._wide[key] = layout
        return layout

    def of_stream(self, writer: Hashable, stream: Stream, code: str) -> Layout | None:
        """Return the layout for measurements of an instrument. Measurements have no step.

        The argument `writer` identifies the stream. The stream itself cannot, because 1, 1.0 and True are different attribute
        values that compare equal.
        """
        layout = self._streams.get((writer, code))
        if layout is None and self._ring.dictionary_left > _NOT_FOR_STREAMS:
            layout = self._add((Column(stream, code),), stepped=False)
            if layout is not None:
                self._streams[writer, code] = layout
        return layout

    def _add(self, columns: tuple[Column, ...], *, stepped: bool) -> Layout | None:
        with self._claims:
            number = next(self._numbers)
            if number > MAX_LAYOUT:
                return None
            layout = Layout(number, columns, stepped)
            written = self._as_unicode(layout)
            return layout if self._ring.add_layout(written) else None

    def _as_unicode(self, layout: Layout) -> Layout:
        """Return the layout to publish, in which all names are valid Unicode text. Writers keep the caller's original names."""
        if all(column.stream.name.isascii() and _is_plain(column.stream) for column in layout.columns):
            return layout
        written = [replace(column, stream=self._stream_as_unicode(column.stream)) for column in layout.columns]
        return replace(layout, columns=tuple(written))

    def _stream_as_unicode(self, stream: Stream) -> Stream:
        written = replace(
            stream,
            name=self._written(stream.name),
            attributes=self._written(stream.attributes),
            scope=self._written(stream.scope),
        )
        return stream if written == stream else written

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


def _is_plain(stream: Stream) -> bool:
    return not stream.attributes and not stream.scope
