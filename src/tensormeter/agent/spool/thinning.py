"""Thinning of the scalars in a full spool, so that the points that remain are spread evenly over the run.

Two consecutive requests of a process are joined into one with every second point of each series. The new request is as
large as one of the two, so it does not matter how many rows a request has. The column `thinned` contains a request's
level, the number of times that its history has been halved. The oldest two requests at the lowest level come first.
The levels of neighbours therefore differ little: while one level is being thinned from the oldest to the newest request,
the older part of the history has half as many points as the newer part, and then all of it has equally many.

A request that is large for the spool and has no neighbour at its level yet is thinned alone, as the newest part of the
history would otherwise take most of a small spool.

Each step reads at most three requests and writes one. A process's newest request shows which of its series go on, so
that the last values of the others are kept. It is thinned only once it has a successor. A destination's oldest request
is not joined with another, because it may be being sent. If there are no other requests, these two are thinned as well.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from tensormeter.agent.spool.request import Priority
from tensormeter.agent.spool.request_editing import Reduced, SeriesKey, last_times, thinned

__all__ = ["AT_THE_FLOOR", "MOST_JOINED", "UNREADABLE", "Thinned", "Thinning"]

AT_THE_FLOOR: Final = 1000
"""Level of a request that cannot be thinned any further."""

MOST_JOINED: Final = 32 << 20
"""Maximum total size in bytes of the bodies to join. Without a limit, requests whose points are all kept would grow."""

UNREADABLE: Final = (OSError, EOFError, zlib.error, DecodeError)
"""Errors that reading a damaged body causes."""

_WINDOW: Final = 128
"""Maximum number of requests to search at a time. Processes on a node write in turn, so neighbours may be apart."""

_START: Final = 64 << 10
"""Bytes of a decompressed body that contain its resource, or enough of it to distinguish it from others."""

_LARGE: Final = 64
"""Part of the spool that a large request exceeds, as a divisor."""

_MOST_SOURCES: Final = 4096
_MOST_PROCESSES: Final = 16


class Thinned(NamedTuple):
    """Result of a step.

    Attributes:
        sequences: Sequence numbers of the requests to replace. The new request takes the place of the last one.
        level: Level of the new request.
        reduced: The new request; None if one of the requests is damaged.
    """

    sequences: tuple[int, ...]
    level: int
    reduced: Reduced | None


class _Choice(NamedTuple):
    """Requests to thin.

    Attributes:
        sequences: Sequence numbers of one or two requests.
        level: Their level.
        waits: Whether a single request keeps its level if it cannot be thinned alone.
    """

    sequences: tuple[int, ...]
    level: int
    waits: bool = False


class Thinning:
    """The choice of requests to thin, and what is known about them. Call its methods in a transaction."""

    def __init__(self, max_bytes: int) -> None:
        """
        Args:
            max_bytes: Maximum size of the spool's contents in bytes.
        """
        self._large = max_bytes // _LARGE
        self._indivisible: set[int] = set()
        """Sequence numbers of requests that cannot be thinned alone, because they have only one row."""
        self._sources: dict[int, int] = {}
        """Hashes of requests' resources, by sequence number."""
        self._latest: dict[int, tuple[int, dict[SeriesKey, int]]] = {}
        """By resource: sequence number of its newest request at some time, and the last times in that request."""

    def step(self, database: sqlite3.Connection) -> Thinned | None:
        """Thin the next requests without writing them; return None if no requests can be thinned."""
        if len(self._sources) > _MOST_SOURCES:
            self._sources.clear()
            self._indivisible.clear()
        while True:
            choice = self._find(database, spare=True) or self._find(database, spare=False) or _lowest(database)
            if choice is None:
                return None
            sequences, level, waits = choice
            try:
                bodies = [_body(database, sequence) for sequence in sequences]
                reduced = thinned(bodies, self._later(database, sequences[-1]))
            except UNREADABLE:
                return Thinned(sequences, level, None)
            if waits and not reduced.lost:
                self._indivisible.update(sequences)
                continue
            self._indivisible.difference_update(sequences)
            if len(sequences) == 1 and not reduced.lost:
                # A single row. At the next higher level, it may be joined with a neighbour.
                return Thinned(sequences, _next_level(database, level) or AT_THE_FLOOR, reduced)
            return Thinned(sequences, level + 1, reduced)

    def _find(self, database: sqlite3.Connection, *, spare: bool) -> _Choice | None:
        """Return requests to thin; None if every request lacks a neighbour that it can be joined with.

        `spare` excludes joining the oldest request of a destination and the newest of a process.
        """
        level = _next_level(database, -1)
        while level is not None:
            next_level = _next_level(database, level)
            rows = database.execute(
                "SELECT sequence FROM request WHERE priority = ? AND thinned = ? ORDER BY sequence LIMIT ?",
                (Priority.SCALARS, level, _WINDOW),
            ).fetchall()
            for (first,) in rows:
                second, level_of_second = self._next(database, first) or (0, AT_THE_FLOOR)
                if level_of_second == AT_THE_FLOOR:
                    continue
                if level_of_second > level:
                    # It fell behind, because its neighbour was not joined with it.
                    return _Choice((first,), level)
                if level_of_second == level and _waits_for(database, first) == _waits_for(database, second):
                    spared = _is_oldest(database, first) or self._next(database, second) is None
                    if not (spare and spared) and _size(database, first) + _size(database, second) <= MOST_JOINED:
                        return _Choice((first, second), level)
                if next_level is not None and self._is_large(database, first):
                    return _Choice((first,), level, waits=True)
            level = next_level
        return None

    def _is_large(self, database: sqlite3.Connection, sequence: int) -> bool:
        return sequence not in self._indivisible and _size(database, sequence) > self._large

    def _next(self, database: sqlite3.Connection, sequence: int) -> tuple[int, int] | None:
        """Return the sequence number and level of the next request with the same resource; None if there is none."""
        source = self._source(database, sequence)
        for other, level in _after(database, sequence):
            if self._source(database, other) == source:
                return other, level
        return None

    def _later(self, database: sqlite3.Connection, sequence: int) -> dict[SeriesKey, int]:
        """Return times of points after a request with the same resource, by series."""
        source = self._source(database, sequence)
        if source in self._latest and self._latest[source][0] > sequence:
            return self._latest[source][1]
        rows = database.execute(
            "SELECT sequence FROM request NOT INDEXED WHERE sequence > ? AND priority = ? ORDER BY sequence DESC LIMIT ?",
            (sequence, Priority.SCALARS, _WINDOW),
        )
        for (newest,) in rows:
            if self._source(database, newest) == source:
                break
        else:
            return {}
        try:
            times = last_times(_body(database, newest))
        except UNREADABLE:
            return {}
        if len(self._latest) >= _MOST_PROCESSES:
            self._latest.clear()
        self._latest[source] = newest, times
        return times

    def _source(self, database: sqlite3.Connection, sequence: int) -> int:
        if sequence not in self._sources:
            self._sources[sequence] = _resource(_body(database, sequence))
        return self._sources[sequence]


def _lowest(database: sqlite3.Connection) -> _Choice | None:
    """Return the oldest request at the lowest level."""
    row = database.execute(
        "SELECT sequence, thinned FROM request WHERE priority = ? AND thinned < ? ORDER BY thinned, sequence LIMIT 1",
        (Priority.SCALARS, AT_THE_FLOOR),
    ).fetchone()
    return None if row is None else _Choice((row[0],), row[1])


def _next_level(database: sqlite3.Connection, level: int) -> int | None:
    """Return the lowest level of any request above a level and below the floor."""
    row = database.execute(
        "SELECT min(thinned) FROM request WHERE priority = ? AND thinned > ? AND thinned < ?",
        (Priority.SCALARS, level, AT_THE_FLOOR),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def _after(database: sqlite3.Connection, sequence: int) -> Iterator[tuple[int, int]]:
    # Without an index on the priority, SQLite reads the requests in their order instead of sorting all of them.
    return iter(
        database.execute(
            "SELECT sequence, thinned FROM request NOT INDEXED WHERE sequence > ? AND priority = ? ORDER BY sequence LIMIT ?",
            (sequence, Priority.SCALARS, _WINDOW),
        )
    )


def _size(database: sqlite3.Connection, sequence: int) -> int:
    """Return the size of a request's body in bytes."""
    return int(database.execute("SELECT length(body) FROM request WHERE sequence = ?", (sequence,)).fetchone()[0])


def _body(database: sqlite3.Connection, sequence: int) -> bytes:
    body = database.execute("SELECT body FROM request WHERE sequence = ?", (sequence,)).fetchone()[0]
    return body if isinstance(body, bytes) else b""


def _waits_for(database: sqlite3.Connection, sequence: int) -> list[tuple[str, int]]:
    """Return the destinations of a waiting request."""
    return database.execute(
        "SELECT destination, retried FROM pending WHERE sequence = ? ORDER BY destination", (sequence,)
    ).fetchall()


def _is_oldest(database: sqlite3.Connection, sequence: int) -> bool:
    """Return whether a request is the oldest metrics request that is waiting for one of its destinations."""
    return (
        database.execute(
            "SELECT 1 FROM pending AS this WHERE sequence = ? AND NOT EXISTS (SELECT 1 FROM pending AS other "
            "JOIN request USING (sequence) WHERE other.destination = this.destination "
            "AND other.sequence < this.sequence AND signal = 'metrics')",
            (sequence,),
        ).fetchone()
        is not None
    )


def _resource(body: bytes) -> int:
    """Return a hash of the first resource in a metrics request; 0 if the body is damaged."""
    try:
        start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, _START)
        _, at = _field(start, 0)  # ResourceMetrics
        size, at = _field(start, at)  # Resource
    except (zlib.error, ValueError, IndexError):
        return 0
    return hash(start[at : at + size])


def _field(body: bytes, at: int) -> tuple[int, int]:
    """Return the size and the start of field 1, a message at a position in another.

    Raises:
        ValueError, IndexError: There is no such field.
    """
    if body[at] != 1 << 3 | 2:
        raise ValueError("it does not start with field 1")
    size = shift = 0
    while True:
        at += 1
        size |= (body[at] & 0x7F) << shift
        shift += 7
        if not body[at] & 0x80:
            return size, at + 1
