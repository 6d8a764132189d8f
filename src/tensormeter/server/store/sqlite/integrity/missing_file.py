"""A store whose file is gone: the files beside it say that there was one, and SQLite would begin anew and delete its log."""

from pathlib import Path

__all__ = ["missing_store"]


def missing_store(file: Path) -> str | None:
    """Why no new store may be made in place of a database that is missing or empty, for people; None if one may, or if it is there.

    To be asked before SQLite opens the file, also for reading: SQLite deletes the log of an empty database. The log is written after the
    first page of the file, and the reserve is made after the tables, so a first start that was killed leaves neither beside an empty file.

    Args:
        file: The database.
    """
    size = _size(file)
    if size is not None and size > 1:  # SQLite takes one byte for none
        return None
    signs = [one for one in (file.with_name(f"{file.name}-wal"), file.with_name("reserve")) if _size(one)]
    if not signs:
        return None
    state = "is missing" if size is None else "is empty"
    names = " and ".join(one.name for one in signs)
    return (
        f"{file} {state}, but {names} beside it {'shows' if len(signs) == 1 else 'show'} that there was a store; "
        f"restore {file.name} from a backup, or move {names} away to begin a new store"
    )


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there is none or that cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return None
