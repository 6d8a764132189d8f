"""Names of metrics and config keys in the SQLite file."""

import json
import sqlite3
from typing import Final

from tensormeter.otlp.check import Check
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import DISTRIBUTION, NUMBER, NameTable
from tensormeter.server.store.rules.config_keys import MAX_CONFIGS, config_keys

__all__ = ["read_config_keys", "read_names", "read_summary_names"]

_NUMERIC: Final = "(kind = 'gauge' OR kind LIKE 'sum %')"

_RECENT: Final = 20_000
"""Number of series, the newest first, whose names are read in addition to those with summaries."""

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
    names: tuple[set[bytes], set[bytes]] = (set(), set())
    texts: set[str] = set()
    count = 0
    for (process,) in connection.execute("SELECT id FROM process WHERE run = ?", (run,)).fetchall():
        for condition, part in zip((_NUMERIC, f"NOT {_NUMERIC}"), names, strict=True):
            source = f"FROM series WHERE process = ? AND {condition}"
            # SQLite joins the names much faster than Python reads rows.
            found, text = connection.execute(
                f"SELECT count(*), group_concat(metric, char(10)) FROM (SELECT metric {source} ORDER BY metric)",
                (process,),
            ).fetchone()
            count += found
            if not found or text in texts:  # processes usually have the same names
                continue
            texts.add(text)
            encoded = _encode(text).split(b"\n")
            if len(encoded) != found:  # a name contains a line feed
                encoded = [_encode(row[0]) for row in connection.execute(f"SELECT metric {source}", (process,))]
            part.update(encoded)
    return NameTable.of(*names), count


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


def read_summary_names(connection: sqlite3.Connection, project: str | None, check: Check) -> NameTable:
    """Return the gauges and sums in a project, as names of fields. Names that have just arrived may be missing."""
    # Series without points in segments have no summary yet. They are among the newest series.
    recent = connection.execute(
        "SELECT DISTINCT metric FROM series JOIN process ON process.id = process JOIN run ON run.id = run"
        f" WHERE series.id > (SELECT max(id) - {_RECENT} FROM series) AND {_NUMERIC}"
        " AND project = ifnull(?, project) AND NOT deleted",
        (project,),
    )
    names = {_encode(f"summary.{row[0]}") for row in recent}
    has_run = "SELECT 1 FROM summary JOIN run ON run.id = run WHERE metric = name AND project = ifnull(?, project) AND NOT deleted"
    rows = connection.execute(
        # Jump from name to name, because many runs have the same names.
        "WITH RECURSIVE names (name) AS (SELECT min(metric) FROM summary UNION ALL"
        " SELECT (SELECT min(metric) FROM summary WHERE metric > name) FROM names WHERE name IS NOT NULL)"
        f" SELECT name FROM names WHERE name IS NOT NULL AND EXISTS ({has_run})",
        (project,),
    )
    for row in rows:
        check()
        names.add(_encode(f"summary.{row[0]}"))
    return NameTable.of(names)


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
