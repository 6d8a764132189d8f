"""Detection of a database that is missing although other files of its store exist.

Without this check, SQLite would create a new database and delete the old database's log.
"""

from pathlib import Path

__all__ = ["missing_store"]


def missing_store(file: Path) -> str | None:
    """Return a message if a new database must not replace a missing or empty one; otherwise None.

    Call this function before SQLite opens the file, even for reading, because SQLite deletes the log of an empty
    database.

    If the store's first start is killed, the folder never contains an empty database together with a log or a reserve.
    SQLite writes the database's first page before the log, and the store creates its tables before the reserve.

    Args:
        file: Path of the database.
    """
    size = _size(file)
    if size is not None and size > 1:  # SQLite treats a file of one byte as empty
        return None
    remains = [path for path in (file.with_name(f"{file.name}-wal"), file.with_name("reserve")) if _size(path)]
    if not remains:
        return None
    state = "is missing" if size is None else "is empty"
    names = " and ".join(path.name for path in remains)
    return (
        f"{file} {state}, but {names} next to it {'shows' if len(remains) == 1 else 'show'} that there was a store; "
        f"restore {file.name} from a backup, or move {names} away to start with an empty store"
    )


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist or its size is unknown."""
    try:
        return path.stat().st_size
    except OSError:
        return None
