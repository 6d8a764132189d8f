"""The journal: requests that were accepted, and the ids by which a sender names them.

A request with points stays here, compressed, until its points are in chunks. Its id stays for good.
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterator

import zstandard

from tensormeter.errors import StoreError
from tensormeter.server.store import BatchConflictError, Receipt

__all__ = [
    "append",
    "compress",
    "digest",
    "find_batch",
    "folded",
    "is_folded",
    "record_batch",
    "replay",
    "retire",
]


def digest(signal: str, payload: bytes) -> bytes:
    """Names the content of a request, however it was compressed on the way."""
    hashed = hashlib.sha256(signal.encode() + b"\0")
    hashed.update(payload)
    return hashed.digest()


def compress(payload: bytes) -> bytes:
    """A payload as the journal keeps it."""
    return zstandard.compress(payload, 1)


def find_batch(connection: sqlite3.Connection, batch_id: str, content: bytes) -> Receipt | None:
    """What was answered to the batch of this id, or None if it is new.

    Raises:
        BatchConflictError: It had another content.
    """
    row = connection.execute("SELECT digest, rejected, message FROM batch WHERE id = ?", (batch_id,)).fetchone()
    if row is None:
        return None
    if row[0] != content:
        raise BatchConflictError(batch_id)
    return Receipt(rejected=row[1], message=row[2], duplicate=True)


def record_batch(connection: sqlite3.Connection, batch_id: str, content: bytes, receipt: Receipt) -> None:
    """Remember a batch for good."""
    connection.execute(
        "INSERT INTO batch (id, digest, received, rejected, message) VALUES (?, ?, ?, ?, ?)",
        (batch_id, content, time.time_ns(), receipt.rejected, receipt.message),
    )


def append(connection: sqlite3.Connection, compressed: bytes) -> int:
    """Add a compressed payload; returns its number, which is greater than all before."""
    seq = connection.execute("INSERT INTO journal (payload) VALUES (?)", (compressed,)).lastrowid
    assert seq is not None
    return seq


def retire(connection: sqlite3.Connection, upto: int) -> None:
    """Drop the payloads up to this number: their points are in chunks."""
    connection.execute("DELETE FROM journal WHERE seq <= ?", (upto,))


def is_folded(connection: sqlite3.Connection, upto: int) -> bool:
    """Whether every payload up to this number has been retired."""
    row = connection.execute("SELECT EXISTS (SELECT 1 FROM journal WHERE seq <= ?)", (upto,)).fetchone()
    return not row[0]


def folded(connection: sqlite3.Connection) -> int:
    """The last number of a payload before the first that is in no chunk yet."""
    first = connection.execute("SELECT min(seq) FROM journal").fetchone()[0]
    if first is not None:
        return int(first) - 1
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return 0 if last is None else int(last[0])


def replay(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    """Every payload that is in no chunk yet, in order: (number, payload).

    Raises:
        StoreError: A payload is damaged.
    """
    for seq, compressed in connection.execute("SELECT seq, payload FROM journal ORDER BY seq"):
        try:
            yield seq, zstandard.decompress(compressed)
        except zstandard.ZstdError as error:
            raise StoreError(
                f"journal row {seq} of the store is damaged: {error}; restore the data folder from a backup",
            ) from None
