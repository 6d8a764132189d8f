"""Reading of trackio's SQLite databases, without trackio."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Final

from tensormeter.importers.read_only import columns_of, has_tables, open_read_only
from tensormeter.importers.registry import SourceError
from tensormeter.importers.tally import Tally
from tensormeter.importers.trackio.store import (
    LoggedRow,
    RecordedAlert,
    RecordedRun,
    StoredArtifact,
    decode_json,
    nanoseconds,
)

__all__ = ["DatabaseStore", "is_trackio_database"]

_COLUMNS: Final = {
    "metrics": {"timestamp", "run_name", "step", "metrics"},
    "configs": {"run_name", "config"},
    "system_metrics": {"timestamp", "run_name", "metrics"},
    "alerts": {"timestamp", "run_name", "title", "text", "level", "step"},
    "traces": {"run_name"},
    "artifacts": {"id", "name", "type"},
    "artifact_versions": {"id", "artifact_id", "version", "manifest", "size_bytes", "producer_run_id", "created_at"},
    "artifact_aliases": {"alias", "artifact_version_id"},
}
"""Columns that are read, by table. Tables of other versions, which lack some, are ignored."""

_ROWS: Final = 1000


def is_trackio_database(path: Path) -> bool:
    """Return whether a file is an SQLite database with trackio's tables."""
    return has_tables(path, {"metrics": _COLUMNS["metrics"]})


class DatabaseStore:
    """A database of trackio, which is one project. It implements `ProjectStore`."""

    def __init__(self, path: Path, tally: Tally) -> None:
        """
        Raises:
            SourceError: The file is not a database of trackio, or cannot be read.
        """
        self._path = path
        self._tally = tally
        self._connection = open_read_only(path)
        try:
            known = {table: columns_of(self._connection, table) for table in _COLUMNS}
        except sqlite3.Error as error:
            raise SourceError(f"{path}: {error}") from None
        self._tables = {table for table, columns in known.items() if columns >= _COLUMNS[table]}
        if "metrics" not in self._tables:
            raise SourceError(f"{path} has no table `metrics`, so trackio did not write it")
        self._keys = {table: "run_id" if "run_id" in columns else "run_name" for table, columns in known.items()}

    def runs(self) -> list[RecordedRun]:
        names: dict[str, str] = {}
        for table in ("configs", "metrics", "system_metrics", "alerts"):
            if table in self._tables:
                query = f"SELECT {self._keys[table]}, MIN(run_name) FROM {table} GROUP BY 1 ORDER BY MIN(id)"
                for run_id, name in self._query(query):
                    names.setdefault(str(run_id), str(name))
        configs: dict[str, Mapping[str, Any]] = {}
        if "configs" in self._tables:
            for run_id, config in self._query(f"SELECT {self._keys['configs']}, config FROM configs"):
                document = decode_json(config)
                if isinstance(document, dict):
                    configs[str(run_id)] = document
                else:
                    self._tally.leave_out("damaged configurations")
        return [RecordedRun(run_id, name, configs.get(run_id, {})) for run_id, name in names.items()]

    def rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        query = f"SELECT step, timestamp, metrics FROM metrics WHERE {self._keys['metrics']} = ? ORDER BY step, id"
        return self._rows(self._query(query, run.run_id), int)

    def system_rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        if "system_metrics" not in self._tables:
            return iter(())
        key = self._keys["system_metrics"]
        query = f"SELECT NULL, timestamp, metrics FROM system_metrics WHERE {key} = ? ORDER BY timestamp, id"
        return self._rows(self._query(query, run.run_id), NoneType)

    def alerts(self, run: RecordedRun) -> Iterator[RecordedAlert]:
        if "alerts" in self._tables:
            query = f"SELECT title, text, level, step, timestamp FROM alerts WHERE {self._keys['alerts']} = ?"
            for title, text, level, step, timestamp in self._query(query, run.run_id):
                time, whole = nanoseconds(timestamp), step if isinstance(step, int) else None
                if time is None:
                    self._tally.leave_out("damaged alerts")
                else:
                    yield RecordedAlert(str(title), str(text or ""), str(level).upper(), whole, time)

    def artifacts(self, run: RecordedRun) -> Iterator[StoredArtifact]:
        if not {"artifacts", "artifact_versions", "artifact_aliases"} <= self._tables:
            return
        query = (
            "SELECT name, type, version, size_bytes, manifest, artifact_versions.created_at,"
            " (SELECT json_group_array(alias) FROM artifact_aliases WHERE artifact_version_id = artifact_versions.id)"
            " FROM artifact_versions JOIN artifacts ON artifacts.id = artifact_id WHERE producer_run_id = ?"
            " ORDER BY artifact_versions.id"
        )
        for name, kind, version, size, manifest, created, aliases in self._query(query, run.run_id):
            files, words, time = decode_json(manifest), decode_json(aliases), nanoseconds(created)
            yield StoredArtifact(
                str(name),
                str(kind),
                version if isinstance(version, int) else 0,
                tuple(map(str, words)) if isinstance(words, list) else (),
                size if isinstance(size, int) else 0,
                len(files) if isinstance(files, list) else 0,
                time or 1,
            )

    def left_out(self) -> Mapping[str, int]:
        if "traces" not in self._tables:
            return {}
        return {"traces": next(self._query("SELECT COUNT(*) FROM traces"))[0]}

    def close(self) -> None:
        self._connection.close()

    def _query(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        try:
            cursor = self._connection.execute(query, values)
            while rows := cursor.fetchmany(_ROWS):
                yield from rows
        except (sqlite3.Error, OverflowError) as error:
            raise SourceError(f"{self._path}: {error}") from None

    def _rows(self, rows: Iterator[Sequence[Any]], step_type: type[int | None]) -> Iterator[LoggedRow]:
        last, time = None, None
        for step, timestamp, data in rows:
            if timestamp != last:
                last, time = timestamp, nanoseconds(timestamp)
            values = decode_json(data)
            if time is None or not isinstance(values, dict) or not isinstance(step, step_type):
                self._tally.leave_out("damaged rows")
                continue
            yield LoggedRow(step, time, values, len(data))
