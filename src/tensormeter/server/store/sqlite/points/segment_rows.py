"""Rows of chunks: written with their seal, checked when they are read, and the list of those that a series has."""

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
    "parse_segment",
    "spans",
    "update_directory",
]

SEGMENT_COLUMNS: Final = "series, seq, n, t_min, t_max, kind, times, words, integers, seal"
"""Columns that `parse_segment` takes."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which points a chunk has: `n` of them between two times, ends included."""

    seq: int
    n: int
    t_min: int
    t_max: int


def parse_segment(row: Sequence[object]) -> Segment:
    """A chunk from the columns `SEGMENT_COLUMNS`.

    Raises:
        DamagedError: It is not as it was written.
    """
    series, seq, *columns, seal = row
    number = series if isinstance(series, int) else None
    verify(f"chunk {seq} of series {series}", seal, series, seq, *columns, series=number)  # type: ignore[arg-type]
    n, t_min, t_max, kind, times, words, integers = columns
    return Segment(n, t_min, t_max, kind, times, words, integers, number)  # type: ignore[arg-type]


def find_segment(connection: sqlite3.Connection, series: int, seq: int) -> Segment | None:
    """One chunk, if it is there. Raises DamagedError."""
    row = connection.execute(
        f"SELECT {SEGMENT_COLUMNS} FROM chunk WHERE series = ? AND seq = ?", (series, seq)
    ).fetchone()
    return None if row is None else parse_segment(row)


def find_segments(connection: sqlite3.Connection, series: int, wanted: Sequence[Span]) -> Iterator[Segment]:
    """Some of `spans`, in their order.

    Raises:
        DamagedError: One is not as it was written, or is not there.
    """
    if not wanted:
        return
    first, last = wanted[0].seq, wanted[-1].seq
    run: Iterator[Segment | None] = (find_segment(connection, series, span.seq) for span in wanted)
    if last - first + 1 == len(wanted):
        rows = connection.execute(
            f"SELECT {SEGMENT_COLUMNS} FROM chunk WHERE series = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (series, first, last),
        )
        run = map(parse_segment, rows)
    for span in wanted:
        segment = next(run, None)
        if segment is None or (segment.n, segment.t_min, segment.t_max) != (span.n, span.t_min, span.t_max):
            raise DamagedError(f"chunk {span.seq} of series {series}: it is not where the index has it", series=series)
        yield segment


def insert_segments(connection: sqlite3.Connection, rows: Iterable[tuple[int, int, Segment]]) -> None:
    """Write chunks, each with its series and its order number in it; inside the caller's transaction."""
    columns = [(series, seq, c.n, c.t_min, c.t_max, c.kind, c.times, c.words, c.integers) for series, seq, c in rows]
    connection.executemany(
        f"INSERT INTO chunk ({SEGMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row, checksum(*row)) for row in columns],
    )


def spans(connection: sqlite3.Connection, series: int, *, strict: bool = True) -> list[Span]:
    """The chunks of a series, in order of arrival, off the index.

    Args:
        connection: To read with.
        series: Whose.
        strict: Whether they must be those that were written; else they are what is there.

    Raises:
        DamagedError: They are not.
    """
    rows = connection.execute(
        "SELECT seq, n, t_min, t_max FROM chunk WHERE series = ? ORDER BY seq", (series,)
    ).fetchall()
    if strict:
        known = connection.execute("SELECT directory FROM series WHERE id = ?", (series,)).fetchone()
        if known is not None and known[0] is not None and known[0] != directory_of(rows):
            raise DamagedError(f"series {series}: its list of chunks does not match their checksum", series=series)
    return [Span(*row) for row in rows]


def update_directory(connection: sqlite3.Connection, series: int) -> None:
    """Write down which chunks a series has now; inside the caller's transaction."""
    rows = connection.execute("SELECT seq, n, t_min, t_max FROM chunk WHERE series = ? ORDER BY seq", (series,))
    connection.execute("UPDATE series SET directory = ? WHERE id = ?", (directory_of(rows), series))
