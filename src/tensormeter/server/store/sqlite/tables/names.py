"""Names of metrics and config keys in the SQLite file."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from tensormeter.otlp.check import Check
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import DISTRIBUTION, NUMBER, NameTable
from tensormeter.server.store.rules.config_keys import MAX_CONFIGS, config_keys
from tensormeter.server.store.sqlite.points.bundle_snapshot import WIDE
from tensormeter.server.store.sqlite.tables.results import read_result_names

__all__ = ["read_config_keys", "read_names", "read_summary_names"]

_NUMERIC: Final = "(kind = 'gauge' OR kind LIKE 'sum %')"

_RUNS: Final = 500
"""Number of runs whose series are read by one statement."""

_MANY: Final = 2_000_000
"""Number of series in a project from which names are not read from each run."""

_SHORT: Final = 4096
"""Length of a config, in characters, up to which it is compared with other configs."""


def read_names(connection: sqlite3.Connection, run: int, cache: NameCache) -> NameTable:
    """Return the names of a run's metrics. Reads only names that have arrived since the table in the cache.

    Raises:
        DamagedError: Series are missing.
    """
    row = connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
    series = 0 if row is None else row[0]
    last = connection.execute("SELECT ifnull(max(id), 0) FROM series").fetchone()[0]
    entry = cache.get(run)
    if entry is not None and entry[0][0] == series:
        return entry[1]
    if entry is None:
        table, count = _all_names(connection, run)
    else:
        (known, since), earlier = entry
        rows = connection.execute(
            "SELECT metric, kind FROM series WHERE id > ? AND process IN (SELECT id FROM process WHERE run = ?)",
            (since, run),
        ).fetchall()
        kinds: dict[bytes, int] = {}
        for metric, kind in rows:
            name = _encode(metric)
            kinds[name] = kinds.get(name, 0) | (NUMBER if parse_kind(kind).numeric else DISTRIBUTION)
        table, count = earlier.add(kinds), known + len(rows)
    if count != series:
        raise DamagedError(f"run {run} has {series} series, but only {count} were found", named=True)
    return cache.put(run, (series, last), table)


def _all_names(connection: sqlite3.Connection, run: int) -> tuple[NameTable, int]:
    """Return the names of a run's metrics, and the number of its series."""
    texts: dict[tuple[str, int], None] = {}
    count = 0
    for (process,) in connection.execute("SELECT id FROM process WHERE run = ?", (run,)).fetchall():
        found, distributions = connection.execute(
            f"SELECT count(*), CAST(total(NOT {_NUMERIC}) AS INTEGER) FROM series WHERE process = ?", (process,)
        ).fetchone()
        count += found
        conditions = [(_NUMERIC if distributions else "true", NUMBER), (f"NOT {_NUMERIC}", DISTRIBUTION)]
        for condition, kind in conditions if distributions else conditions[:1]:
            source = f"FROM series WHERE process = ? AND {condition}"
            # SQLite joins the names much faster than Python reads rows. They are in the order of their bytes.
            distinct, text = connection.execute(
                "SELECT count(*), group_concat(metric, char(10))"
                f" FROM (SELECT DISTINCT metric {source} ORDER BY metric)",
                (process,),
            ).fetchone()
            if not distinct:
                continue
            if text.count("\n") != distinct - 1:  # a name contains a line feed
                return _odd_names(connection, run)
            texts[text, kind] = None  # processes usually have the same names
    if not texts:
        return NameTable.of(()), count
    return NameTable.union([NameTable.of_lines(_encode(text), kind) for text, kind in texts]), count


def _odd_names(connection: sqlite3.Connection, run: int) -> tuple[NameTable, int]:
    rows = connection.execute(
        f"SELECT metric, {_NUMERIC} FROM process CROSS JOIN series ON series.process = process.id WHERE run = ?", (run,)
    ).fetchall()
    numbers, distributions = ([_encode(name) for name, numeric in rows if numeric == kind] for kind in (1, 0))
    return NameTable.of(numbers, distributions), len(rows)


def read_config_keys(connection: sqlite3.Connection, project: str | None, check: Check) -> NameTable:
    """Return the config keys of the newest runs in a project, as names of fields."""
    runs = connection.execute(
        "SELECT id FROM run WHERE project = ifnull(?, project) AND NOT deleted ORDER BY id DESC LIMIT ?",
        (project, MAX_CONFIGS),
    ).fetchall()
    configs: set[str] = set()
    names: set[bytes] = set()
    for run in runs:
        check()
        row = connection.execute("SELECT config FROM run WHERE id = ?", run).fetchone()
        if row is not None and row[0] not in configs:
            if len(row[0]) < _SHORT:  # sweeps repeat configs
                configs.add(row[0])
            names.update(_encode(f"config.{key}") for key in config_keys(json.loads(row[0])))
    return NameTable.of(names)


def read_summary_names(
    connection: sqlite3.Connection, project: str | None, unflushed: Sequence[int], cache: NameCache, check: Check
) -> NameTable:
    """Return the gauges and sums in a project, and what scripts wrote to summaries, as names of fields.

    Args:
        connection: Connection to read from.
        project: Project; None for all.
        unflushed: Row IDs of the runs with points that are not in the file yet.
        cache: Tables of runs' names; see `read_names`.
        check: Called between statements. Raises an error to end the read.
    """
    of_project = "project = ifnull(:project, project) AND NOT deleted"
    parameters = {"project": project}
    summaries = connection.execute(f"SELECT total(series) FROM run WHERE {of_project}", parameters).fetchone()[0]
    check()
    if summaries < _MANY:
        names = (
            f"SELECT DISTINCT metric FROM summary WHERE run IN (SELECT id FROM run WHERE {of_project}) ORDER BY metric"
        )
    else:
        # Jump from name to name, because many runs have the same names.
        names = (
            "WITH RECURSIVE known (metric) AS (SELECT min(metric) FROM summary UNION ALL SELECT (SELECT min(summary.metric)"
            " FROM summary WHERE summary.metric > known.metric) FROM known WHERE known.metric IS NOT NULL)"
            " SELECT metric FROM known WHERE metric IS NOT NULL AND EXISTS (SELECT 1 FROM summary CROSS JOIN run"
            f" ON run.id = summary.run WHERE summary.metric = known.metric AND {of_project})"
        )
    count, text = connection.execute(
        f"SELECT count(*), group_concat('summary.' || metric, char(10)) FROM ({names})", parameters
    ).fetchone()
    check()
    if not count:
        table = NameTable.of(())
    elif text.count("\n") == count - 1:
        table = NameTable.of_lines(_encode(text), NUMBER)
    else:  # a name contains a line feed
        table = NameTable.of(_encode(f"summary.{row[0]}") for row in connection.execute(names, parameters))
    # Series without points in the file have no summary yet.
    kinds: dict[bytes, int] = {}
    for first in range(0, len(unflushed), _RUNS):
        check()
        recent = connection.execute(
            "SELECT DISTINCT metric FROM json_each(:runs) CROSS JOIN run ON run.id = json_each.value"
            " CROSS JOIN process ON process.run = run.id CROSS JOIN series ON series.process = process.id"
            f" WHERE run.series < {WIDE} AND {_NUMERIC} AND {of_project}",
            {**parameters, "runs": json.dumps(unflushed[first : first + _RUNS])},
        )
        kinds.update((_encode(f"summary.{row[0]}"), NUMBER) for row in recent)
    for written in read_result_names(connection, project, MAX_CONFIGS):
        check()
        kinds.update((_encode(f"summary.{name}"), NUMBER) for name in written)
    table = table.add(kinds)
    # Series in bundles have no summary either.
    wide = connection.execute(f"SELECT id FROM run WHERE {of_project} AND series >= {WIDE}", parameters).fetchall()
    tables = []
    for (run,) in wide:
        check()
        tables.append(read_names(connection, run, cache).prefixed(b"summary.", NUMBER))
    return NameTable.union([*tables, table]) if tables else table


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
