"""Pages of log lines. A read stops after a time limit: the lines are searched in slices, from the given position on."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.errors import MAX_ANSWER_TEXT, DamagedError
from tensormeter.server.store.models.log_lines import (
    FIRST_ID,
    LAST_ID,
    DamagedLine,
    LogLine,
    LogPage,
    LogQuery,
    LogUsage,
    Position,
)

__all__ = ["MAX_PAGE_TEXT", "LineSource", "Range", "read_page", "take_page"]

MAX_PAGE_TEXT: Final = MAX_ANSWER_TEXT // 4
"""Maximum number of characters in the lines of a page, with their attributes, before texts are truncated.

A page has at least one line, if there is one.
"""

_FIRST_SLICE: Final = 4_000
_GROWTH: Final = 4

_Row = LogLine | DamagedLine


@dataclass(frozen=True)
class Range:
    """A part of a run's lines.

    Attributes:
        after: Position before the first line.
        before: Position after the last line.
        descending: Whether to read the newest lines first.
    """

    after: Position
    before: Position
    descending: bool


class LineSource(Protocol):
    """The lines of a run, with the conditions and limits of a query."""

    @property
    def sliced(self) -> bool:
        """Whether to read slices even if every line matches."""
        ...

    @property
    def largest_slice(self) -> int:
        """Maximum number of lines to search between two looks at the clock."""
        ...

    def bound(self, part: Range, n: int) -> int | None:
        """Return the time of the nth line of a range, whether it matches or not; None if the range has fewer lines."""
        ...

    def select(self, part: Range) -> Iterator[LogLine | DamagedLine]:
        """Yield the matching lines of a range, in its order, and at most one line more than the query's limit."""
        ...


def read_page(source: LineSource, query: LogQuery, cursor: str, usage: LogUsage, check: Check = no_check) -> LogPage:
    """Read a page of lines that are ordered by position.

    Args:
        source: Lines of the run.
        query: Query without `since`.
        cursor: Cursor of the page.
        usage: Usage of the page.
        check: Function called for each slice. It can raise an exception to stop the read.
    """
    deadline = time.monotonic() + query.seconds
    descending = query.after is None
    rest = _range(query, descending=descending)
    rows: list[_Row] = []
    size, slice_lines = 0, max(_FIRST_SLICE, 2 * query.limit)
    full = stopped = False
    while not full:
        check()
        time_bound = None
        if source.sliced or query.selective:
            time_bound = source.bound(rest, min(slice_lines, source.largest_slice))
        part = rest
        if time_bound is not None:
            part = (
                Range((time_bound, FIRST_ID), rest.before, True)
                if descending
                else Range(rest.after, (time_bound, LAST_ID), False)
            )
        for row in source.select(part):
            size += row.stored_size
            if len(rows) == query.limit or (rows and size > MAX_PAGE_TEXT):
                full = True
                break
            rows.append(row)
        if full or time_bound is None:
            break
        rest = Range(rest.after, part.after, True) if descending else Range(part.before, rest.before, False)
        slice_lines *= _GROWTH
        if time.monotonic() > deadline:
            stopped = True
            break
    going_on = None
    if full:
        going_on = rows[-1].position
        if going_on == (query.before if descending else query.after):  # a client would read the same page again
            raise DamagedError("the times of log lines are damaged")
    elif stopped:
        going_on = rest.before if descending else rest.after
    return _page(query, rows, going_on, stopped=stopped, cursor=cursor, usage=usage)


def take_page(rows: Iterable[LogLine | DamagedLine], limit: int) -> tuple[Sequence[LogLine | DamagedLine], bool]:
    """Take rows until a page is full. Return them, and whether the page is full, so that there may be more."""
    taken: list[_Row] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += row.stored_size
        if size > MAX_PAGE_TEXT or len(taken) == limit:
            return taken, True
    return taken, False


def _range(query: LogQuery, *, descending: bool) -> Range:
    first, last = (query.start or 0, FIRST_ID), (LAST_ID if query.stop is None else query.stop, FIRST_ID)
    if query.before is not None:
        last = min(last, query.before)
    if query.after is not None:
        first = max(first, query.after)
    return Range(first, last, descending)


def _page(
    query: LogQuery, rows: list[_Row], going_on: Position | None, *, stopped: bool, cursor: str, usage: LogUsage
) -> LogPage:
    older: Position | None
    newer: Position | None
    if query.after is None:
        rows.reverse()
        older, newer = going_on, None
        if query.before is not None:
            newer = rows[-1].position if rows else (query.before[0], query.before[1] - 1)
    else:
        older = rows[0].position if rows else (query.after[0], query.after[1] + 1)
        newer = going_on
    return LogPage(rows, older, newer, cursor, usage, stopped)
