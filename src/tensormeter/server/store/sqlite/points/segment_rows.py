"""Segment rows, which are sealed on writing and verified on reading, and the segment lists of series."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.sqlite.integrity.seals import checksum, directory_of, verify
from tensormeter.server.store.sqlite.points.segments import Segment

__all__ = [
    "SEGMENT_COLUMNS",
    "Span",
    "find_segment",
    "find_segments",
    "insert_segments",
    "list_spans",
    "parse_segment",
    "read_segments",
    "sound_list",
    "spans",
    "update_directory",
]

SEGMENT_COLUMNS: Final = "series, seq, n, t_min, t_max, kind, times, words, integers, seal"
"""Columns that `parse_segment` expects."""

# CROSS JOIN makes SQLite look up each series, instead of reading the table.
_OF_SERIES: Final = (
    f"SELECT {SEGMENT_COLUMNS} FROM json_each(?) AS wanted"
    " CROSS JOIN chunk ON series = json_extract(wanted.value, '$[0]')"
    " AND seq BETWEEN json_extract(wanted.value, '$[1]') AND json_extract(wanted.value, '$[2]')"
)
_LISTS: Final = (
    "SELECT wanted.value, directory, seq, n, t_min, t_max FROM json_each(?) AS wanted"
    " LEFT JOIN series ON series.id = wanted.value LEFT JOIN chunk ON chunk.series = wanted.value"
)


@dataclass(frozen=True, slots=True)
class Span:
    """The range of a segment, which has `n` points between two times, inclusive."""

    seq: int
    n: int
    t_min: int
    t_max: int


def parse_segment(row: Sequence[object]) -> Segment:
    """Create a segment from the columns `SEGMENT_COLUMNS`.

    Raises:
        DamagedError: The row has changed since it was written.
    """
    series, seq, *columns, seal = row
    number = series if isinstance(series, int) else None
    verify(f"segment {seq} of series {series}", seal, series, seq, *columns, series=number)  # type: ignore[arg-type]
    n, t_min, t_max, kind, times, words, integers = columns
    return Segment(n, t_min, t_max, kind, times, words, integers, number)  # type: ignore[arg-type]


def find_segment(connection: sqlite3.Connection, series: int, seq: int) -> Segment | None:
    """Read a segment; return None if it does not exist. Raises DamagedError."""
    row = connection.execute(
        f"SELECT {SEGMENT_COLUMNS} FROM chunk WHERE series = ? AND seq = ?", (series, seq)
    ).fetchone()
    return None if row is None else parse_segment(row)


def find_segments(connection: sqlite3.Connection, series: int, selected: Sequence[Span]) -> Iterator[Segment]:
    """Read the segments with the given spans, in order.

    Raises:
        DamagedError: A segment is missing or has changed since it was written.
    """
    if not selected:
        return
    first, last = selected[0].seq, selected[-1].seq
    segments: Iterator[Segment | None] = (find_segment(connection, series, span.seq) for span in selected)
    if last - first + 1 == len(selected):
        rows = connection.execute(
            f"SELECT {SEGMENT_COLUMNS} FROM chunk WHERE series = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (series, first, last),
        )
        segments = map(parse_segment, rows)
    for span in selected:
        segment = next(segments, None)
        if segment is None or (segment.n, segment.t_min, segment.t_max) != (span.n, span.t_min, span.t_max):
            raise _missing(series, span)
        yield segment


def read_segments(
    connection: sqlite3.Connection, selected: Sequence[tuple[int, Sequence[Span]]]
) -> Iterator[list[Segment] | DamagedError]:
    """Read the segments with the given spans of several series, with one statement.

    Args:
        connection: Connection to read with.
        selected: Row IDs of series, each with spans in ascending order of number.

    Returns:
        The segments of each series in the given order, or the damage as `find_segments` raises it.
    """
    ranges = json.dumps([(series, chosen[0].seq, chosen[-1].seq) for series, chosen in selected if chosen])
    rows: dict[int, dict[int, tuple[object, ...]]] = {series: {} for series, _ in selected}
    for row in connection.execute(_OF_SERIES, (ranges,)):
        rows[row[0]][row[1]] = row
    for series, chosen in selected:
        try:
            yield [_parse_expected(rows[series].pop(span.seq, None), series, span) for span in chosen]
        except DamagedError as error:
            yield error


def _parse_expected(row: Sequence[object] | None, series: int, span: Span) -> Segment:
    segment = None if row is None else parse_segment(row)
    if segment is None or (segment.n, segment.t_min, segment.t_max) != (span.n, span.t_min, span.t_max):
        raise _missing(series, span)
    return segment


def _missing(series: int, span: Span) -> DamagedError:
    text = f"segment {span.seq} of series {series} is missing, or its count and times do not match the index"
    return DamagedError(text, series=series)


def insert_segments(connection: sqlite3.Connection, rows: Iterable[tuple[int, int, Segment]]) -> None:
    """Write segments, given as (series, sequence number, segment), inside the caller's transaction."""
    columns = ((series, seq, c.n, c.t_min, c.t_max, c.kind, c.times, c.words, c.integers) for series, seq, c in rows)
    connection.executemany(
        f"INSERT INTO chunk ({SEGMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((*row, checksum(*row)) for row in columns),
    )


def spans(connection: sqlite3.Connection, series: int, *, strict: bool = True) -> list[Span]:
    """Read a series' segment list from the index, in order of arrival.

    Args:
        connection: Connection to read with.
        series: Row ID of the series.
        strict: Whether to verify that the list has not changed since it was written.

    Raises:
        DamagedError: The list has changed since it was written.
    """
    rows = connection.execute(
        "SELECT seq, n, t_min, t_max FROM chunk WHERE series = ? ORDER BY seq", (series,)
    ).fetchall()
    if strict:
        directory = connection.execute("SELECT directory FROM series WHERE id = ?", (series,)).fetchone()
        if directory is not None and directory[0] is not None and directory[0] != directory_of(rows):
            raise _damaged_list(series)
    return [Span(*row) for row in rows]


def list_spans(connection: sqlite3.Connection, series: Sequence[int]) -> dict[int, list[Span] | DamagedError]:
    """Read the segment lists of several series as `spans` does, with one statement.

    Returns:
        The list of each series, or the damage as `spans` raises it.
    """
    directories: dict[int, int | None] = {}
    rows: dict[int, list[tuple[int, int, int, int]]] = {number: [] for number in series}
    for number, directory, *row in connection.execute(_LISTS, (json.dumps([*series]),)):
        directories[number] = directory
        if row[0] is not None:
            rows[number].append(tuple(row))
    lists: dict[int, list[Span] | DamagedError] = {}
    for number, listed in rows.items():
        directory = directories.get(number)
        if directory is not None and directory != directory_of(listed):
            lists[number] = _damaged_list(number)
        else:
            lists[number] = [Span(*row) for row in listed]
    return lists


def sound_list(listed: list[Span] | DamagedError) -> list[Span]:
    """Return a list from `list_spans`, or raise its damage."""
    if isinstance(listed, DamagedError):
        raise listed
    return listed


def _damaged_list(series: int) -> DamagedError:
    return DamagedError(f"series {series}: its list of segments does not match the checksum", series=series)


def update_directory(connection: sqlite3.Connection, series: int) -> None:
    """Update the checksum of a series' segment list inside the caller's transaction."""
    rows = connection.execute("SELECT seq, n, t_min, t_max FROM chunk WHERE series = ? ORDER BY seq", (series,))
    connection.execute("UPDATE series SET directory = ? WHERE id = ?", (directory_of(rows), series))
