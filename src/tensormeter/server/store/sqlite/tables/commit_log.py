"""The commit log of accepted requests with points (table `journal`), and the batch IDs of requests (table `batch`).

A request's compressed payload stays in the log until its points are in segments. The batch ID is kept permanently.
"""

import sqlite3
import time
from collections.abc import Iterator

import zstandard

from tensormeter.server.store.models.errors import BatchConflictError, DamagedError
from tensormeter.server.store.models.runs import Receipt
from tensormeter.server.store.sqlite.integrity.seals import checksum, is_sound

__all__ = [
    "append",
    "compress",
    "find_batch",
    "flushed",
    "is_flushed",
    "quarantine",
    "record_batch",
    "replay",
    "retire",
]


def compress(payload: bytes) -> bytes:
    """Compress a payload for the commit log."""
    return zstandard.compress(payload, 1)


def find_batch(connection: sqlite3.Connection, batch_id: str, content: bytes) -> Receipt | None:
    """Return the receipt for a batch ID; None if the batch ID is new or its row is damaged.

    If the row is damaged, the caller stores the request again. This is safe, because duplicates are skipped.

    Raises:
        BatchConflictError: The digest of the stored request is not `content`.
    """
    row = connection.execute("SELECT digest, rejected, message, seal FROM batch WHERE id = ?", (batch_id,)).fetchone()
    if row is None or not is_sound(row[3], batch_id, *row[:3]):
        return None
    if row[0] != content:
        raise BatchConflictError(batch_id)
    return Receipt(rejected=row[1], message=row[2], duplicate=True)


def record_batch(connection: sqlite3.Connection, batch_id: str, content: bytes, receipt: Receipt) -> None:
    """Store a batch ID permanently, with the request's digest and receipt."""
    connection.execute(
        "INSERT OR REPLACE INTO batch (id, digest, received, rejected, message, seal) VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(batch_id, content, time.time_ns(), receipt.rejected, receipt.message),
            checksum(batch_id, content, receipt.rejected, receipt.message),
        ),
    )


def append(connection: sqlite3.Connection, compressed: bytes) -> int:
    """Append a compressed payload. Return its number, which is greater than all earlier numbers."""
    seq = connection.execute(
        "INSERT INTO journal (payload, seal) VALUES (?, ?)", (compressed, checksum(compressed))
    ).lastrowid
    assert seq is not None
    return seq


def retire(connection: sqlite3.Connection, upto: int) -> None:
    """Delete the payloads up to the given number, whose points have been written to segments."""
    connection.execute("DELETE FROM journal WHERE seq <= ?", (upto,))


def is_flushed(connection: sqlite3.Connection, upto: int) -> bool:
    """Return whether all payloads up to the given number have been flushed and deleted."""
    row = connection.execute("SELECT EXISTS (SELECT 1 FROM journal WHERE seq <= ?)", (upto,)).fetchone()
    return not row[0]


def flushed(connection: sqlite3.Connection) -> int:
    """Return the number up to which all payloads have been flushed and deleted."""
    first = connection.execute("SELECT min(seq) FROM journal").fetchone()[0]
    if first is not None:
        return int(first) - 1
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return 0 if last is None else int(last[0])


def replay(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes | DamagedError]]:
    """Yield (number, payload or error) for every payload whose points are not yet in segments, in order."""
    expected = None
    for (seq,) in connection.execute("SELECT seq FROM journal ORDER BY seq").fetchall():
        if expected is not None and seq != expected:
            lost = f"journal rows {expected} to {seq - 1} are missing"
            yield expected, DamagedError(f"{lost}: {seq - expected} requests with points are lost", named=True)
        expected = seq + 1
        try:
            yield seq, _payload(connection, seq)
        except DamagedError as error:
            yield seq, error
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            damaged = DamagedError(_damaged(seq, error), named=True)
            damaged.__cause__ = error
            yield seq, damaged


def find_payload(connection: sqlite3.Connection, seq: int) -> bytes | None:
    """Return the payload with this number, or None if there is none.

    Raises:
        DamagedError: The payload has changed since it was written.
        sqlite3.DatabaseError: The payload cannot be read.
    """
    return _payload(connection, seq) if _exists(connection, seq) else None


def quarantine(connection: sqlite3.Connection, seq: int, *, remove: bool) -> None:
    """Move or copy an unreadable payload to the table `damaged`, inside the caller's transaction.

    Args:
        connection: Connection to write with.
        seq: Number of the payload.
        remove: Whether to remove the payload from the journal, because no part of it can be replayed. Other payloads
            can then be flushed.
    """
    connection.execute(
        "INSERT OR REPLACE INTO damaged (seq, time, payload, seal) SELECT seq, ?, payload, seal FROM journal WHERE seq = ?",
        (time.time_ns(), seq),
    )
    if remove:
        connection.execute("DELETE FROM journal WHERE seq = ?", (seq,))


def _exists(connection: sqlite3.Connection, seq: int) -> bool:
    return connection.execute("SELECT 1 FROM journal WHERE seq = ?", (seq,)).fetchone() is not None


def _payload(connection: sqlite3.Connection, seq: int) -> bytes:
    compressed, seal = connection.execute("SELECT payload, seal FROM journal WHERE seq = ?", (seq,)).fetchone()
    if not is_sound(seal, compressed):
        raise DamagedError(_damaged(seq, "the checksum does not match"), named=True)
    try:
        return zstandard.decompress(compressed)
    except zstandard.ZstdError as error:
        raise DamagedError(_damaged(seq, error), named=True) from None


def _damaged(seq: int, why: object) -> str:
    return (
        f"journal row {seq} is damaged: {why}; the points of one request are lost. Its bytes are kept in the table "
        "`damaged`; a backup may contain the points"
    )
