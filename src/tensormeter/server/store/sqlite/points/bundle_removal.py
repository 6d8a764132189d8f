"""Removal of points from bundles, because their run was deleted or they are too old."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.sqlite.points.bundles import (
    BUNDLE_COLUMNS,
    GROUP,
    Bundle,
    encode_bundle,
    insert_bundles,
    parse_bundle,
    read_bundles,
    update_bundle_directory,
)

__all__ = ["purge_bundles", "remove_old_bundles"]

_GROUPS: Final = 16
"""Maximum number of groups that one transaction changes. Ingestion waits for the transaction."""

_BUNDLES: Final = 64
"""Maximum number of bundles that one transaction removes."""

_RUNS: Final = (
    "SELECT series.id, process.run FROM series JOIN process ON process.id = series.process"
    " WHERE series.id >= ? AND series.id < ?"
)


def purge_bundles(connection: sqlite3.Connection, run: int) -> bool:
    """Remove some of a run's points from bundles inside the caller's transaction. Return whether there were any."""
    groups = connection.execute(
        "SELECT DISTINCT series.id / ? FROM process JOIN series ON series.process = process.id"
        " WHERE run = ? AND EXISTS (SELECT 1 FROM bundle WHERE grp = series.id / ?)",
        (GROUP, run, GROUP),
    ).fetchall()
    changed = 0
    for (group,) in groups:
        runs = dict(connection.execute(_RUNS, (group * GROUP, (group + 1) * GROUP)))
        if all(owner == run for owner in runs.values()):
            connection.execute("DELETE FROM bundle WHERE grp = ?", (group,))
            connection.execute("DELETE FROM bundle_group WHERE id = ?", (group,))
            changed += 1
        else:
            mine = np.array([series for series, owner in runs.items() if owner == run])
            changed += _remove_series(connection, group, mine)
        if changed == _GROUPS:
            break
    return changed > 0


def remove_old_bundles(
    connection: sqlite3.Connection,
    before: int,
    find_removable: Callable[[set[int]], set[int]],
    report: Callable[[DamagedError], None],
) -> bool:
    """Remove some bundles that contain only old points, inside the caller's transaction. Return whether there were any.

    Args:
        connection: Connection to write with.
        before: Time before which points are old, in nanoseconds since the Unix epoch.
        find_removable: Function that returns those of some runs from which points may be removed.
        report: Function called with the error for each damaged part.
    """
    old = connection.execute("SELECT grp, seq FROM bundle WHERE t_max < ?", (before,)).fetchall()
    removed: Counter[int] = Counter()
    count = 0
    for group, seq in old:
        try:
            bundle = next(bundle for bundle in read_bundles(connection, group) if bundle.seq == seq)
        except DamagedError as error:
            report(error)
            continue
        runs = dict(connection.execute(_RUNS, (group * GROUP, (group + 1) * GROUP)))
        points = Counter[int]()
        for series, n in zip(bundle.heads.series.tolist(), bundle.heads.counts.tolist(), strict=True):
            points[runs.get(series, 0)] += n
        if find_removable({*points}) != {*points}:
            continue
        connection.execute("DELETE FROM bundle WHERE grp = ? AND seq = ?", (group, seq))
        # Reading the next bundle of the group needs a directory that matches.
        update_bundle_directory(connection, [group])
        connection.executemany(
            "DELETE FROM gap WHERE series = ? AND time < ?",
            [(series, before) for series in bundle.heads.series.tolist()],
        )
        removed += points
        count += 1
        if count == _BUNDLES:
            break
    connection.executemany("UPDATE run SET points = points - ? WHERE id = ?", [(n, run) for run, n in removed.items()])
    return count > 0


def _remove_series(connection: sqlite3.Connection, group: int, series: NDArray[np.int64]) -> int:
    """Remove series from a group's undamaged bundles. Return 1 if there were any points, otherwise 0."""
    changed = 0
    rows = connection.execute(f"SELECT {BUNDLE_COLUMNS} FROM bundle WHERE grp = ?", (group,)).fetchall()
    for row in rows:
        try:
            bundle: Bundle = parse_bundle(row)
            if not np.isin(bundle.heads.series, series).any():
                continue
            numbers = bundle.numbers()
        except DamagedError:  # nothing reads the points of this run any more
            continue
        kept = numbers.select(~np.isin(numbers.owners, series))
        connection.execute("DELETE FROM bundle WHERE grp = ? AND seq = ?", (group, bundle.seq))
        if len(kept.all):
            insert_bundles(connection, [encode_bundle(group, bundle.seq, kept)])
        changed = 1
    if changed:
        update_bundle_directory(connection, [group])
    return changed
