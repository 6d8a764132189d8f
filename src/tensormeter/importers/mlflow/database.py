"""Reading of MLflow's SQLite databases, without MLflow.

The tables are read directly, because MLflow's own code would change an old database to its newest schema, and needs about
ten times as long for the points.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np

from tensormeter.importers.confined_folder import ConfinedFolder
from tensormeter.importers.mlflow.local_artifacts import LocalArtifacts, are_elsewhere, local_folder
from tensormeter.importers.mlflow.store import PARENT_TAG, MetricBlock, Relation, TrackedRun, restore_infinities
from tensormeter.importers.read_only import columns_of, has_tables, open_read_only
from tensormeter.importers.registry import SourceError
from tensormeter.importers.tally import Tally

__all__ = ["DatabaseStore", "database_path", "is_mlflow_database"]

_ROWS: Final = 50_000
_TABLES: Final = ("experiments", "runs", "metrics", "params", "tags")
_MOST_ROWS: Final = 100_000
"""Maximum number of parameters, or of tags, of a run."""

_COUNTED: Final = {"trace_info": "traces", "logged_models": "logged models", "registered_models": "registered models"}

_Row = tuple[Any, ...]


def is_mlflow_database(path: Path) -> bool:
    """Return whether a file is an SQLite database with MLflow's tables."""
    return has_tables(path, dict.fromkeys(_TABLES, ()))


def database_path(uri: str) -> Path:
    """Return the file of an address such as `sqlite:///mlflow.db`."""
    return Path(unquote(urlsplit(uri.replace("sqlite:///", "file:///", 1)).path.removeprefix("/") or "mlflow.db"))


class DatabaseStore:
    """An SQLite database of MLflow. It implements `TrackingStore`."""

    def __init__(self, path: Path, tally: Tally) -> None:
        """
        Raises:
            SourceError: The file is not a database of MLflow.
        """
        self._path = path
        self._tally = tally
        self._connection = open_read_only(path)
        self._columns: dict[str, set[str]] = {}
        try:
            self._columns = {table: columns_of(self._connection, table) for table in (*_TABLES, "inputs", *_COUNTED)}
        except sqlite3.Error as error:
            raise SourceError(f"{path}: {error}") from None
        missing = [table for table in _TABLES if not self._columns[table]]
        if missing:
            raise SourceError(f"{path} has no tables {', '.join(missing)}, so MLflow did not write it")

    def relations(self) -> Iterator[Relation]:
        name = "runs.name" if "name" in self._columns["runs"] else "NULL"
        query = (
            f"SELECT run_uuid, COALESCE({name}, (SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid"
            " AND key = 'mlflow.runName'), ''), COALESCE((SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid"
            f" AND key = '{PARENT_TAG}'), '') FROM runs WHERE {self._is_active()}"
        )
        try:
            for row in self._connection.execute(query):
                yield Relation(*map(str, row))
        except sqlite3.Error as error:
            self._tally.report(f"{self._path}: cannot read which runs are nested: {error}")

    def runs(self) -> Iterator[TrackedRun]:
        name = "runs.name" if "name" in self._columns["runs"] else "NULL"
        query = (
            f"SELECT runs.run_uuid, {name}, experiments.name, status, start_time, end_time, artifact_uri"
            " FROM runs JOIN experiments ON experiments.experiment_id = runs.experiment_id"
            f" WHERE {self._is_active()} ORDER BY start_time, run_uuid"
        )
        try:
            rows: list[_Row] = self._connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise SourceError(f"{self._path}: cannot list the runs: {error}") from None
        for row in rows:
            try:
                yield self._run(row)
            except (sqlite3.Error, ValueError, TypeError) as error:
                self._tally.report(f"{self._path}: run {row[0]} is damaged and was skipped: {error}")
                self._tally.leave_out("damaged runs")

    def metrics(self, run: TrackedRun) -> Iterator[MetricBlock]:
        # In the order of insertion, so that another import after further points reads the same blocks.
        query = "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY rowid"
        if "is_nan" not in self._columns["metrics"]:
            query = query.replace("is_nan", "0")
        try:
            cursor = self._connection.execute(query, (run.run_id,))
            while rows := cursor.fetchmany(_ROWS):
                yield self._block(rows)
        except sqlite3.Error as error:
            raise SourceError(f"{self._path}: {error}") from None

    def artifacts(self, run: TrackedRun) -> LocalArtifacts | None:
        folder = local_folder(run, self._path.parent)
        if folder is None and are_elsewhere(run, self._path.parent):
            self._tally.leave_out("artifact folders that are not on this machine")
        return None if folder is None else LocalArtifacts(ConfinedFolder(folder), run.artifact_uri)

    def left_out(self) -> Mapping[str, int]:
        counts = {"deleted runs": self._count(f"runs WHERE NOT ({self._is_active()})")}
        return counts | {kind: self._count(table) for table, kind in _COUNTED.items() if self._columns[table]}

    def close(self) -> None:
        self._connection.close()

    def _is_active(self) -> str:
        return (
            "runs.lifecycle_stage = 'active' AND runs.experiment_id IN"
            " (SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'active')"
        )

    def _run(self, row: _Row) -> TrackedRun:
        run_id, name, experiment, status, started, ended, artifact_uri = row
        tags = self._pairs("tags", run_id)
        datasets = 0
        if self._columns["inputs"]:
            where = "inputs WHERE destination_id = ? AND source_type = 'DATASET'"
            datasets = self._count(where, (run_id,))
        return TrackedRun(
            str(run_id),
            str(name or tags.get("mlflow.runName") or ""),
            str(experiment),
            str(status),
            None if started is None else int(started),
            None if ended is None else int(ended),
            self._pairs("params", run_id),
            tags,
            str(artifact_uri or ""),
            left_out={"datasets": datasets},
        )

    def _pairs(self, table: str, run_id: object) -> dict[str, str]:
        query = f"SELECT key, value FROM {table} WHERE run_uuid = ? ORDER BY key LIMIT {_MOST_ROWS}"
        return {str(key): str(value) for key, value in self._connection.execute(query, (run_id,)) if value is not None}

    def _count(self, what: str, values: Sequence[object] = ()) -> int:
        try:
            return int(self._connection.execute(f"SELECT COUNT(*) FROM {what}", values).fetchone()[0])
        except sqlite3.Error as error:
            self._tally.report(f"{self._path}: cannot count items that are left out: {error}")
            return 0

    def _block(self, rows: list[_Row]) -> MetricBlock:
        try:
            return _block_of(rows)
        except (ValueError, TypeError, OverflowError):
            intact = [row for row in rows if _is_intact(row)]
            self._tally.leave_out("damaged points", len(rows) - len(intact))
            return _block_of(intact)


def _block_of(rows: list[_Row]) -> MetricBlock:
    keys, steps, times, values, nan = zip(*rows, strict=True) if rows else ((),) * 5
    index = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    numbers = restore_infinities(np.array(values, np.float64))
    numbers[np.array(nan, bool)] = np.nan
    return MetricBlock(
        [str(key) for key in index],
        np.fromiter(map(index.__getitem__, keys), np.int64, len(keys)),
        np.array(steps, np.int64),
        np.array(times, np.int64),
        numbers,
    )


def _is_intact(row: _Row) -> bool:
    key, step, time, value, _ = row
    return isinstance(key, str) and isinstance(step, int) and isinstance(time, int) and isinstance(value, int | float)
