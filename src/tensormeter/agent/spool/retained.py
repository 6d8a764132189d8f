"""Requests that a receiver has accepted but that are not yet durable there.

Each row of the table `kept` describes one request and one destination. It contains the epoch and number that the
receiver reported (`Durability`), how the request was divided, and how many of its items were refused. Once the request
is durable, the row is deleted, and so is the request if no other destination needs it. If the receiver's epoch changes,
the request waits again. Its row is kept without an epoch, so that the request is resent in the same pieces, whose IDs
the receiver may know. A partly sent request has a row without an epoch for the same reason.

Call all functions in a transaction.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from tensormeter.agent.spool.request import seal
from tensormeter.exporter import Durability

__all__ = ["FORGET", "forget_kept", "give_up_kept", "keep", "remember", "settle"]

_GIVEN_UP_AT_ONCE: Final = 16

FORGET: Final = (
    "DELETE FROM request WHERE sequence = ? AND NOT EXISTS (SELECT 1 FROM pending WHERE sequence = request.sequence) "
    "AND NOT EXISTS (SELECT 1 FROM kept WHERE sequence = request.sequence)"
)
"""Statement that deletes a request if no destination needs it any longer."""


def keep(database: sqlite3.Connection, destination: str, sequence: int, durability: Durability, sent: str) -> None:
    """Keep a request that a destination has accepted, until it is durable there.

    Args:
        database: Connection to the spool.
        destination: Name of the destination.
        sequence: Sequence number of the request, which is waiting for the destination.
        durability: State of the receiver's disk.
        sent: Description of how the request was sent, in case it is resent; empty if it was not divided.
    """
    _write(database, [(destination, sequence, durability.epoch, durability.number, sent)])
    database.execute("DELETE FROM pending WHERE destination = ? AND sequence = ?", (destination, sequence))


def remember(database: sqlite3.Connection, destination: str, sequence: int, sent: str) -> None:
    """Store how much of a waiting request has been sent, and in which pieces."""
    _write(database, [(destination, sequence, "", 0, sent)])


def settle(database: sqlite3.Connection, destination: str, condition: str, durability: Durability | None) -> bool:
    """Process the state of a receiver's disk: delete durable requests and requeue those that it may have lost.

    Args:
        database: Connection to the spool.
        destination: Name of the destination.
        condition: SQL condition on the column `signal` that selects requests.
        durability: State of the disk; None if the receiver no longer reports it, so that everything is resent a last
            time.

    Returns:
        Whether requests are waiting again.
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
    """Forget accepted requests that match an SQL condition on `destination` and `signal`, unless they wait again."""
    rows = database.execute(
        f"SELECT destination, sequence FROM kept JOIN request USING (sequence) WHERE epoch != '' AND {condition}",
        arguments,
    ).fetchall()
    _drop(database, rows)


def give_up_kept(database: sqlite3.Connection) -> bool:
    """Evict the oldest accepted requests that are not yet durable, and return whether there were any."""
    rows = database.execute(
        "SELECT destination, sequence FROM kept WHERE epoch != '' ORDER BY sequence LIMIT ?", (_GIVEN_UP_AT_ONCE,)
    ).fetchall()
    _drop(database, rows)
    return bool(rows)


def _write(database: sqlite3.Connection, rows: Iterable[tuple[str, int, str, int, str]]) -> None:
    """Write rows for waiting requests. Skip requests that have been evicted from a full spool meanwhile."""
    database.executemany(
        "INSERT OR REPLACE INTO kept SELECT ?, ?, ?, ?, ?, ? "
        "WHERE EXISTS (SELECT 1 FROM pending WHERE destination = ? AND sequence = ?)",
        [(*row, seal(*row), *row[:2]) for row in rows],
    )


def _drop(database: sqlite3.Connection, rows: Sequence[tuple[str, int]]) -> None:
    database.executemany("DELETE FROM kept WHERE destination = ? AND sequence = ?", rows)
    database.executemany(FORGET, [(sequence,) for _, sequence in rows])
