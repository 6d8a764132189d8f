"""Seals: checksums of rows. They reveal flipped bits on disk, so that the store does not return wrong values.

A seal is a CRC-32 of a row's columns. Except in the table `journal`, it includes the columns that identify the row, so
that a row in the wrong place is also detected. If a version without seals wrote the row, the seal is NULL until the
next write.

Rows that never change are sealed when they are inserted. Rows that change are sealed by temporary triggers, which
belong to a connection rather than the file. If a row does not match its seal before a change, a trigger computes a new
seal that does not match either, so that the damage stays detectable. The new seal differs from the correct one in the
same bits as the old seal.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final
from zlib import crc32

from tensormeter.server.store.models.errors import DamagedError

__all__ = [
    "FIRST_STEP",
    "KEYS",
    "PROCESS",
    "RESOURCE",
    "RESULT",
    "ROW_SEALS",
    "RUN_JOB",
    "RUN_TALLY",
    "RUN_TEXTS",
    "SERIES",
    "SUMMARY",
    "RowSeal",
    "checksum",
    "directory_of",
    "is_sound",
    "seal_changes",
    "verify",
]

Value = int | float | str | bytes | None


def checksum(*values: Value) -> int:
    """Return the 32-bit checksum of values in the given order. Strings are encoded as UTF-8."""
    crc = 0
    plain: list[int | float | None] = []
    append = plain.append  # this function runs for each row that is read or written
    for value in values:
        if type(value) is str:
            content = value.encode("utf-8", "surrogatepass")
        elif type(value) is bytes:
            content = value
        else:
            append(value)  # type: ignore[arg-type]
            continue
        if content:
            crc = crc32(content, crc)
        append(len(content))
    return crc32(repr(plain).encode(), crc)


def is_sound(seal: object, *values: Value) -> bool:
    """Return whether a row matches its seal or has no seal."""
    return seal is None or seal == checksum(*values)


def verify(what: str, seal: object, *values: Value, series: int | None = None) -> None:
    """Verify a row after reading it.

    Args:
        what: Name of the row for the error message.
        seal: Stored seal.
        values: Values covered by the seal.
        series: Row ID of the series that the row belongs to, or None.

    Raises:
        DamagedError: The row does not match its seal.
    """
    if not is_sound(seal, *values):
        raise DamagedError(f"{what}: the checksum does not match", series=series)


class RowSeal:
    """The seal of a table whose rows may change.

    Attributes:
        table: Table that contains the rows.
        seal: Column that contains the seal.
        columns: Columns covered by the seal, in order, starting with the identifying columns.
    """

    def __init__(self, table: str, seal: str, columns: str, texts: str = "") -> None:
        """Create a seal.

        Args:
            table: Table that contains the rows.
            seal: Column that contains the seal.
            columns: Names of the covered columns, separated by spaces.
            texts: Names of the covered text columns, separated by spaces. Triggers read their bytes, because damaged
                text may not be UTF-8.
        """
        self.table, self.seal, self.columns = table, seal, tuple(columns.split())
        self._texts = frozenset(texts.split())

    @property
    def selection(self) -> str:
        """The columns and the seal, for use in a SELECT."""
        return ", ".join(f"{self.table}.{column}" for column in (*self.columns, self.seal))

    def verify(self, row: Sequence[Value], what: str, series: int | None = None) -> None:
        """Verify the values of `selection`. Raises DamagedError."""
        verify(what, row[-1], *row[:-1], series=series)

    def triggers(self) -> Iterable[str]:
        """Yield statements that create this seal's triggers on a connection."""
        keys = " AND ".join(f"{key} = new.{key}" for key in KEYS.get(self.table, ("id",)))
        name = f"{self.table}_{self.seal}"
        new, old = (", ".join(self._bytes(side, column) for column in self.columns) for side in ("new", "old"))
        yield (
            f"CREATE TEMP TRIGGER {name}_inserted AFTER INSERT ON main.{self.table} WHEN new.{self.seal} IS NULL BEGIN"
            f" UPDATE {self.table} SET {self.seal} = seal_of({new}) WHERE {keys}; END"
        )
        yield (
            f"CREATE TEMP TRIGGER {name}_updated AFTER UPDATE OF {', '.join(self.columns)} ON main.{self.table} BEGIN"
            f" UPDATE {self.table} SET {self.seal} = seal_again(old.{self.seal}, {old}, {new}) WHERE {keys}; END"
        )

    def _bytes(self, side: str, column: str) -> str:
        return f"CAST({side}.{column} AS BLOB)" if column in self._texts else f"{side}.{column}"


KEYS: Final = {"summary": ("run", "metric"), "first_step": ("process", "metric"), "result": ("run",)}
"""Columns that identify the rows of a table. The default is the column `id`."""

RUN_TEXTS: Final = RowSeal(
    "run", "seal", "id name title config config_time tags notes grp", "name title config tags notes grp"
)
RUN_JOB: Final = RowSeal("run", "job_type_seal", "id job_type", "job_type")
RUN_TALLY: Final = RowSeal(
    "run",
    "tally",
    "id project run_id state attempt created started ended updated newest stalled archived deleted series points",
    "project run_id state",
)
PROCESS: Final = RowSeal(
    "process",
    "seal",
    "id run process attempt started ended end_state losses first_step began began_seq",
    "process end_state losses",
)
RESOURCE: Final = RowSeal("process", "resource_seal", "id resource", "resource")
SERIES: Final = RowSeal(
    "series",
    "seal",
    "id process metric kind scope attributes unit description points last_time last_word last_integer last_step directory",
    "metric kind scope attributes unit description",
)
SUMMARY: Final = RowSeal(
    "summary",
    "seal",
    "run metric count numbers total minimum maximum last_time last_word last_integer last_step",
    "metric",
)
FIRST_STEP: Final = RowSeal("first_step", "seal", "process metric step seq", "metric")
RESULT: Final = RowSeal(
    "result", "seal", "run summary summary_time definitions definitions_time parent", "summary definitions parent"
)
ROW_SEALS: Final = (RUN_TEXTS, RUN_JOB, RUN_TALLY, PROCESS, RESOURCE, SERIES, SUMMARY, FIRST_STEP, RESULT)


def seal_changes(connection: sqlite3.Connection) -> None:
    """Make a connection seal changeable rows whenever it writes them."""
    connection.create_function("seal_of", -1, checksum, deterministic=True)
    connection.create_function("seal_again", -1, _reseal, deterministic=True)
    for seal in ROW_SEALS:
        for statement in seal.triggers():
            connection.execute(statement)


def _reseal(seal: int | None, *values: Value) -> int:
    half = len(values) // 2
    fresh = checksum(*values[half:])
    if not isinstance(seal, int):
        return fresh
    return fresh ^ seal ^ checksum(*values[:half])


def directory_of(rows: Iterable[Sequence[int]]) -> int:
    """Return the checksum of a series' segment list, which reveals missing segments and flipped bits in the index.

    Args:
        rows: (seq, n, t_min, t_max) of each segment, in ascending order of seq.
    """
    return crc32(repr([tuple(row) for row in rows]).encode())
