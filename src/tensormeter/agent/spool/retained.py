"""Requests in the spool that a receiver has accepted, and whose disk does not have them yet.

A row of the table `kept` is about one request and one destination. It has the epoch and number that the receiver gave, and how the
request was sent: with which others it was joined, how it was divided, and how many of its items were refused. When the receiver's
disk has the request, the row goes, and the request with it. When the receiver's epoch changes, the request waits again: its row
stays, without an epoch, so that it is sent in the same pieces, whose ids the receiver may know.

All functions are called in a transaction.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from tensormeter.agent.spool.request import seal
from tensormeter.exporter import Durability

__all__ = ["FORGET", "forget_kept", "give_up_kept", "keep", "remember", "settle"]

_GIVEN_UP_AT_ONCE: Final = 16

FORGET: Final = (
    "DELETE FROM request WHERE sequence = ?1 AND NOT EXISTS (SELECT 1 FROM pending WHERE sequence = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM kept WHERE sequence = ?1)"
)
"""Deletes a request that concerns nobody any more."""


def keep(
    database: sqlite3.Connection, destination: str, sequences: Sequence[int], durability: Durability, sent: str
) -> None:
    """A destination has accepted requests that waited for it; keep them until they are durable.

    Args:
        database: The spool.
        destination: The destination.
        sequences: The requests, which were sent together.
        durability: What the receiver said.
        sent: How they were sent, for the one who sends them again; "" for each alone and undivided.
    """
    _write(database, [(destination, sequence, durability.epoch, durability.number, sent) for sequence in sequences])
    database.executemany(
        "DELETE FROM pending WHERE destination = ? AND sequence = ?",
        [(destination, sequence) for sequence in sequences],
    )


def remember(database: sqlite3.Connection, destination: str, sequences: Sequence[int], sent: str) -> None:
    """Remember how requests that wait have been sent so far."""
    _write(database, [(destination, sequence, "", 0, sent) for sequence in sequences])


def settle(database: sqlite3.Connection, destination: str, condition: str, durability: Durability | None) -> bool:
    """Act on what a receiver says of what it has accepted.

    Args:
        database: The spool.
        destination: The destination.
        condition: Which signals it is about: an SQL condition on the column `signal`.
        durability: What it said; None if it says nothing any more, so that everything is sent again for the last time.

    Returns:
        Whether something waits again.
    """
    epoch = "" if durability is None else durability.epoch

    def find(which: str, *arguments: str | int) -> list[tuple[int, str, int]]:
        return database.execute(
            "SELECT sequence, sent, request.items FROM kept INDEXED BY kept_number JOIN request USING (sequence) "
            f"WHERE destination = ? AND {which} AND {condition}",
            (destination, *arguments),
        ).fetchall()

    if durability is not None:
        for sequence, _, _ in find("epoch = ? AND number <= ?", epoch, durability.durable):
            database.execute("DELETE FROM kept WHERE destination = ? AND sequence = ?", (destination, sequence))
            database.execute(FORGET, (sequence,))
    lost = [*find("epoch > '' AND epoch < ?", epoch), *find("epoch > ?", epoch)]
    for sequence, _, items in lost:
        waiting = (destination, sequence, items, 0)
        database.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, ?, ?, ?)", (*waiting, seal(*waiting)))
    _write(database, [(destination, sequence, "", 0, sent) for sequence, sent, _ in lost])
    return bool(lost)


def forget_kept(database: sqlite3.Connection, condition: str, *arguments: str) -> None:
    """Forget what is accepted, by an SQL condition on `destination` and `signal`. What waits again is left alone."""
    rows = database.execute(
        f"SELECT destination, sequence FROM kept JOIN request USING (sequence) WHERE epoch != '' AND {condition}",
        arguments,
    ).fetchall()
    _drop(database, rows)


def give_up_kept(database: sqlite3.Connection) -> bool:
    """Make room: forget the oldest requests that are only kept. Returns whether there were any."""
    rows = database.execute(
        "SELECT destination, sequence FROM kept WHERE epoch != '' ORDER BY sequence LIMIT ?", (_GIVEN_UP_AT_ONCE,)
    ).fetchall()
    _drop(database, rows)
    return bool(rows)


def _write(database: sqlite3.Connection, rows: Iterable[tuple[str, int, str, int, str]]) -> None:
    database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?, ?)", [(*row, seal(*row)) for row in rows])


def _drop(database: sqlite3.Connection, rows: Sequence[tuple[str, int]]) -> None:
    database.executemany("DELETE FROM kept WHERE destination = ? AND sequence = ?", rows)
    database.executemany(FORGET, [(sequence,) for _, sequence in rows])
