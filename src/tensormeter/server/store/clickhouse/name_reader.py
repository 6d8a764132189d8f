"""Queries for the names of metrics and config keys."""

import json
from typing import Final

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.rowbinary import read_string
from tensormeter.server.store.models.field_cache import FieldCache
from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import DISTRIBUTION, NUMBER, FieldKind, NameTable
from tensormeter.server.store.rules.config_keys import MAX_CONFIGS, config_keys

__all__ = ["NameReader"]

_NUMERIC: Final = "(startsWith(kind, 'gauge') OR startsWith(kind, 'sum '))"
_KINDS: Final = f"SELECT metric, groupBitOr(if({_NUMERIC}, {NUMBER}, {DISTRIBUTION})) AS bits FROM catalog WHERE run = "


class NameReader:
    """Reader of names, with a cache. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._names = NameCache()
        self._fields = FieldCache()

    def names(self, run: int) -> NameTable:
        """Return the names of a run's metrics."""
        kinds = f"{_KINDS}{run} GROUP BY metric"
        # ClickHouse computes this fingerprint much faster than it returns the names.
        version = self._connection.rows(f"SELECT count(), groupBitXor(cityHash64(metric, bits)) FROM ({kinds})")[0]
        entry = self._names.get(run)
        if entry is not None and entry[0] == version:
            return entry[1]
        parts = [
            _names(self._connection.raw(f"SELECT metric FROM ({kinds}) WHERE bitAnd(bits, {bit})"))
            for bit in (NUMBER, DISTRIBUTION)
        ]
        return self._names.put(run, version, NameTable.of(*parts))

    def field_names(self, project: str | None, kind: FieldKind, check: Check = no_check) -> NameTable:
        """See `Store.field_names`."""
        return self._fields.get(
            project,
            kind,
            lambda: self._config_keys(project, check) if kind == "config" else self._metrics(project, check),
        )

    def _config_keys(self, project: str | None, check: Check) -> NameTable:
        rows = self._connection.rows(
            "SELECT DISTINCT tupleElement(max(config), 3) FROM process"
            f" WHERE {_of(project)} AND run GLOBAL NOT IN (SELECT run FROM deleted)"
            f" GROUP BY run ORDER BY max(updated) DESC LIMIT {MAX_CONFIGS}",
            project=project or "",
        )
        names: set[bytes] = set()
        for (text,) in rows:
            check()
            keys = config_keys(json.loads(text or "{}"))
            names.update(f"config.{key}".encode(errors="surrogatepass") for key in keys)
        return NameTable.of(names)

    def _metrics(self, project: str | None, check: Check) -> NameTable:
        runs = f"SELECT run FROM process WHERE {_of(project)} AND run GLOBAL NOT IN (SELECT run FROM deleted)"
        rows = self._connection.raw(
            f"SELECT DISTINCT concat('summary.', metric) FROM catalog WHERE {_NUMERIC} AND run GLOBAL IN ({runs})",
            project=project or "",
        )
        names = _names(rows)
        written = self._connection.rows(
            "SELECT DISTINCT tupleElement(max(results), 3) AS text FROM process"
            f" WHERE {_of(project)} AND run GLOBAL NOT IN (SELECT run FROM deleted)"
            f" GROUP BY run, process HAVING text NOT IN ('', '{{}}') ORDER BY max(updated) DESC LIMIT {MAX_CONFIGS}",
            project=project or "",
        )
        for (text,) in written:
            check()
            names += [f"summary.{name}".encode(errors="surrogatepass") for name in json.loads(text)]
        return NameTable.of(names)


def _of(project: str | None) -> str:
    return "1" if project is None else "project = {project:String}"


def _names(rows: bytes) -> list[bytes]:
    """Decode RowBinary rows of one string."""
    names, view = [], memoryview(rows)
    position = 0
    while position < len(rows):
        name, position = read_string(view, position)
        names.append(name)
    return names
