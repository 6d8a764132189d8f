"""Read-only access to the SQLite databases of other trackers, whose contents are not trusted."""

import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tensormeter.importers.registry import SourceError

__all__ = ["columns_of", "has_tables", "open_read_only"]

_MAGIC: Final = b"SQLite format 3\0"
_VERSIONS: Final = slice(18, 20)
"""Place of the two format versions in the header. They are 2 if the database has a write-ahead log."""

_LONGEST_VALUE: Final = 64 << 20
_LONGEST_STATEMENT: Final = 1 << 20


def has_tables(path: Path, tables: Mapping[str, Collection[str]]) -> bool:
    """Return whether a file is a readable SQLite database with some tables.

    Args:
        path: Path of the file.
        tables: Names of columns by table. A table may have further columns.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait
            return False
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return False
        with closing(open_read_only(path)) as connection:
            found = {table: columns_of(connection, table) for table in tables}
        return all(found[table] and found[table].issuperset(columns) for table, columns in tables.items())
    except (OSError, SourceError, sqlite3.Error):
        return False


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a database without writing to its folder. Text that is not UTF-8 is read with replacement characters.

    A database with a write-ahead log would need a file for locks. If nothing is left in the log, no process writes to the
    database, and it is opened as immutable. Otherwise, the locks that writers expect are used.

    Raises:
        SourceError: The file is not a database, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
        log = path.with_name(f"{path.name}-wal")
        immutable = header[_VERSIONS] == b"\2\2" and not (log.exists() and log.stat().st_size)
        if not header.startswith(_MAGIC):
            raise SourceError(f"{path} is not an SQLite database")
        options = "mode=ro&immutable=1" if immutable else "mode=ro"
        address = f"file:{quote(str(path.resolve()))}?{options}"
        connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise SourceError(f"{path}: cannot open the database: {error}") from None
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LONGEST_STATEMENT)
    for pragma in ("query_only=ON", "trusted_schema=OFF", "cell_size_check=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none if there is no such table, or if it computes its contents.

    Views, virtual tables and tables with generated columns are not read. They can take any time, and make any amount of data.

    Raises:
        sqlite3.Error: The database is damaged.
    """
    try:
        with closing(connection.cursor()) as cursor:
            entry = cursor.execute("SELECT type, rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            if entry is None or entry[0] != "table" or not entry[1]:  # a virtual table has no page
                return set()
            quoted = table.replace('"', '""')
            columns = cursor.execute(f'PRAGMA table_xinfo("{quoted}")').fetchall()
    except UnicodeDecodeError:  # the text of the error contains parts of the file
        raise sqlite3.DatabaseError("the schema is damaged") from None
    return set() if any(hidden for *_, hidden in columns) else {str(name) for _, name, *_ in columns}
