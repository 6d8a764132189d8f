"""What users say about a run: name, tags, notes, group, archived."""

import sqlite3

from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.runs import RunChanges

__all__ = ["update_run"]


def update_run(connection: sqlite3.Connection, run: int, changes: RunChanges) -> None:
    """Write changes; inside the caller's transaction."""
    columns = {
        "title": changes.name,
        "tags": None if changes.tags is None else canonical_json(list(changes.tags)),
        "notes": changes.notes,
        "grp": changes.group,
        "archived": changes.archived,
    }
    for column, value in columns.items():
        if value is not None:
            connection.execute(f"UPDATE run SET {column} = ? WHERE id = ?", (value, run))
