"""Eviction from a full spool.

Requests are evicted in this order, and within each group from the oldest to the newest:

- requests that receivers have accepted but that are not yet durable there (nothing is lost);
- rejected requests, which are kept for users;
- console output and log records of the program;
- system metrics;
- media.

Then scalars are thinned: every second point of each series is dropped from the history, repeatedly and evenly
(`tensormeter.agent.spool.thinning`). If requests cannot be thinned any further, such as those of many short processes,
the oldest are joined into one with the last value of each series. The run's configuration, its start and end, and the
last value of every series are kept, even if they exceed the limit.
"""

import sqlite3
import uuid
from collections.abc import Sequence
from typing import Final

from tensormeter.agent.spool.request import Priority, checksum, seal
from tensormeter.agent.spool.request_editing import condensed, last_times
from tensormeter.agent.spool.retained import give_up_kept
from tensormeter.agent.spool.thinning import AT_THE_FLOOR, MOST_JOINED, UNREADABLE, Thinning

__all__ = ["sacrifice"]

_EVICTED: Final = (
    (Priority.OUTPUT, "spool_full_logs"),
    (Priority.SYSTEM, "spool_full_system"),
    (Priority.MEDIA, "spool_full_media"),
)
"""Priorities whose requests are deleted whole, in this order, with the reasons for the loss."""

_JOINED: Final = 64
"""Maximum number of requests that are joined into one at a time."""


def sacrifice(database: sqlite3.Connection, thinning: Thinning) -> tuple[str, int] | None:
    """Take the next step of the order above: evict, thin or join some requests. Call this in a transaction.

    Args:
        database: Connection to the spool.
        thinning: Thinning of this spool, the same object in every call.

    Returns:
        Reason and number of lost items, without the steps of rows unless they are damaged; None if nothing is left to evict.
    """
    if give_up_kept(database):
        return "accepted", 0  # nothing is lost, unless the receiver loses power soon
    if database.execute(
        "UPDATE quarantine SET body = x'' WHERE number = (SELECT min(number) FROM quarantine WHERE length(body) > 0)"
    ).rowcount:
        return "rejected", 0  # already counted
    for priority, reason in _EVICTED:
        row = database.execute(
            "DELETE FROM request WHERE sequence = (SELECT min(sequence) FROM request WHERE priority = ?) RETURNING items",
            (priority,),
        ).fetchone()
        if row is not None:
            return reason, row[0]
    return _thin(database, thinning) or _join(database)


def _thin(database: sqlite3.Connection, thinning: Thinning) -> tuple[str, int] | None:
    result = thinning.step(database)
    if result is None:
        return None
    if result.reduced is None:
        return "damaged", _delete_damaged(database, result.sequences)
    if len(result.sequences) == 1 and not result.reduced.lost:
        row = (result.level, *result.sequences)
        database.execute("UPDATE request SET thinned = ? WHERE sequence = ?", row)
    else:
        _replace(database, result.sequences, result.reduced.body, result.reduced.items, result.level)
    return "spool_full_scalars", result.reduced.lost


def _join(database: sqlite3.Connection) -> tuple[str, int] | None:
    """Join the oldest requests that wait for the same destinations."""
    rows = database.execute(
        "SELECT sequence, body, (SELECT group_concat(destination) FROM pending WHERE pending.sequence = request.sequence) "
        "FROM request WHERE priority = ? ORDER BY sequence LIMIT ?",
        (Priority.SCALARS, 4 * _JOINED),
    ).fetchall()
    groups: list[list[tuple[int, bytes]]] = []
    latest: dict[str, tuple[list[tuple[int, bytes]], int]] = {}
    """The last group of each set of destinations, and its size in bytes."""
    for sequence, body, destinations in rows:
        group, size = latest.get(destinations, ([], MOST_JOINED + 1))
        if size + len(body) > MOST_JOINED:
            group, size = [], 0
            groups.append(group)
        group.append((sequence, body))
        latest[destinations] = group, size + len(body)
    group = max(groups, key=len, default=[])[:_JOINED]
    if len(group) < 2:
        return None
    sequences = [sequence for sequence, _ in group]
    try:
        smaller, items, lost = condensed([body for _, body in group])
    except UNREADABLE:
        return "damaged", _delete_damaged(database, sequences)
    _replace(database, sequences, smaller, items, AT_THE_FLOOR)
    return "spool_full_scalars", lost


def _replace(database: sqlite3.Connection, sequences: Sequence[int], body: bytes, items: int, level: int) -> None:
    """Replace requests with one in the place of the last of them."""
    database.executemany("DELETE FROM request WHERE sequence = ?", [(sequence,) for sequence in sequences[:-1]])
    sequence = sequences[-1]
    # Use a new ID. If a receiver accepted the original but its response was lost, it must not take the two for the same
    # request.
    batch = uuid.uuid4().hex
    database.execute(
        "UPDATE request SET id = ?, items = ?, thinned = ?, checksum = ?, body = ? WHERE sequence = ?",
        (batch, items, level, checksum(batch, "metrics", items, body), body, sequence),
    )
    rows = database.execute("SELECT destination, retried FROM pending WHERE sequence = ?", (sequence,)).fetchall()
    database.executemany(
        "UPDATE pending SET items = ?, checksum = ? WHERE destination = ? AND sequence = ?",
        [(items, seal(to, sequence, items, retried), to, sequence) for to, retried in rows],
    )


def _delete_damaged(database: sqlite3.Connection, sequences: Sequence[int]) -> int:
    """Delete the damaged ones among some requests, and return the number of their items."""
    lost = 0
    for sequence in sequences:
        body = database.execute("SELECT body FROM request WHERE sequence = ?", (sequence,)).fetchone()[0]
        try:
            last_times(body)
        except (*UNREADABLE, TypeError):
            lost += _items(database, sequence)
            database.execute("DELETE FROM request WHERE sequence = ?", (sequence,))
    return lost


def _items(database: sqlite3.Connection, sequence: int) -> int:
    """Return the number of items in a damaged request; 1 if it is unknown."""
    items = database.execute("SELECT max(items) FROM pending WHERE sequence = ?", (sequence,)).fetchone()[0]
    return items if isinstance(items, int) and items > 0 else 1
