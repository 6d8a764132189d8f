"""Eviction from a full spool.

Requests are evicted in this order, and within each group from the oldest to the newest:

- requests that receivers have accepted but that are not yet durable there (nothing is lost);
- rejected requests, which are kept for users;
- system metrics;
- media.

Then scalars are thinned: every second row is dropped from the history, repeatedly and evenly. When each request holds
only the last value of each series, old requests are joined into one with the latest values. The run's configuration,
its start and end, and the last value of every series are kept, even if they exceed the limit.
"""

import gzip
import sqlite3
import uuid
import zlib
from typing import Final

from google.protobuf.message import DecodeError

from tensormeter.agent.spool.request import Priority, checksum, seal
from tensormeter.agent.spool.request_editing import condensed, thinned
from tensormeter.agent.spool.retained import give_up_kept

__all__ = ["sacrifice"]

_AT_THE_FLOOR: Final = 1000
"""Value of `thinned` for a request that cannot be thinned any further."""

_JOINED: Final = 64
"""Maximum number of requests that are joined into one at a time."""

_UNREADABLE: Final = (OSError, EOFError, zlib.error, DecodeError, gzip.BadGzipFile)


def sacrifice(database: sqlite3.Connection) -> tuple[str, int] | None:
    """Take the next step of the order above: evict, thin or join some requests. Call this in a transaction.

    Returns:
        Reason and number of lost items; None if nothing is left to evict.
    """
    if give_up_kept(database):
        return "accepted", 0  # nothing is lost, unless the receiver loses power soon
    if database.execute(
        "UPDATE quarantine SET body = x'' WHERE number = (SELECT min(number) FROM quarantine WHERE length(body) > 0)"
    ).rowcount:
        return "rejected", 0  # already counted
    for priority, reason in ((Priority.SYSTEM, "spool_full_system"), (Priority.MEDIA, "spool_full_media")):
        row = database.execute(
            "DELETE FROM request WHERE sequence = (SELECT min(sequence) FROM request WHERE priority = ?) RETURNING items",
            (priority,),
        ).fetchone()
        if row is not None:
            return reason, row[0]
    return _thin(database) or _join(database)


def _thin(database: sqlite3.Connection) -> tuple[str, int] | None:
    row = database.execute(
        "SELECT sequence, thinned, body FROM request WHERE priority = ? AND thinned < ? ORDER BY thinned, sequence LIMIT 1",
        (Priority.SCALARS, _AT_THE_FLOOR),
    ).fetchone()
    if row is None:
        return None
    sequence, times, body = row
    try:
        smaller, items, lost = thinned(body)
    except _UNREADABLE:
        lost = _items(database, sequence)
        database.execute("DELETE FROM request WHERE sequence = ?", (sequence,))
        return "damaged", lost
    _replace(database, sequence, smaller, items, times + 1 if lost else _AT_THE_FLOOR)
    return "spool_full_scalars", lost


def _join(database: sqlite3.Connection) -> tuple[str, int] | None:
    """Join the oldest requests that wait for the same destinations."""
    rows = database.execute(
        "SELECT sequence, body, (SELECT group_concat(destination) FROM pending WHERE pending.sequence = request.sequence) "
        "FROM request WHERE priority = ? ORDER BY sequence LIMIT ?",
        (Priority.SCALARS, 4 * _JOINED),
    ).fetchall()
    groups: dict[str, list[tuple[int, bytes]]] = {}
    for sequence, body, destinations in rows:
        groups.setdefault(destinations, []).append((sequence, body))
    group = max(groups.values(), key=len, default=[])[:_JOINED]
    if len(group) < 2:
        return None
    try:
        smaller, items, lost = condensed([body for _, body in group])
    except _UNREADABLE:
        lost = sum(_items(database, sequence) for sequence, _ in group)
        database.executemany("DELETE FROM request WHERE sequence = ?", [(sequence,) for sequence, _ in group])
        return "damaged", lost
    database.executemany("DELETE FROM request WHERE sequence = ?", [(sequence,) for sequence, _ in group[:-1]])
    _replace(database, group[-1][0], smaller, items, _AT_THE_FLOOR)
    return "spool_full_scalars", lost


def _replace(database: sqlite3.Connection, sequence: int, body: bytes, items: int, times: int) -> None:
    # Use a new ID. If a receiver accepted the original but its response was lost, it must not take the two for the same
    # request.
    batch = uuid.uuid4().hex
    database.execute(
        "UPDATE request SET id = ?, items = ?, thinned = ?, checksum = ?, body = ? WHERE sequence = ?",
        (batch, items, times, checksum(batch, "metrics", items, body), body, sequence),
    )
    rows = database.execute("SELECT destination, retried FROM pending WHERE sequence = ?", (sequence,)).fetchall()
    database.executemany(
        "UPDATE pending SET items = ?, checksum = ? WHERE destination = ? AND sequence = ?",
        [(items, seal(to, sequence, items, retried), to, sequence) for to, retried in rows],
    )


def _items(database: sqlite3.Connection, sequence: int) -> int:
    """Return the number of items in a damaged request; 1 if it is unknown."""
    items = database.execute("SELECT max(items) FROM pending WHERE sequence = ?", (sequence,)).fetchone()[0]
    return items if isinstance(items, int) and items > 0 else 1
