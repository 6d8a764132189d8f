"""The catalog, which maps runs, processes and series to row IDs."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.errors import AmbiguousRunError, NotFoundError
from tensormeter.server.store.models.points import Points, beginning
from tensormeter.server.store.rules import limits
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.resource_identity import Source
from tensormeter.server.store.sqlite.integrity.seals import RUN_TALLY
from tensormeter.server.store.sqlite.points.memtable import SeriesPoints

__all__ = ["Catalog", "find_run"]


_CACHED: Final = 200_000


@dataclass(slots=True)
class _Tombstone:
    """The time of a run's deletion, the last journal row before it, and whether the run has since started again."""

    time: int
    journal: int
    revived: bool


@dataclass(slots=True)
class _Process:
    run: int
    process: int
    name: str
    resource: str


class Catalog:
    """The catalog, which finds or creates rows inside the caller's transaction and caches row IDs. Not thread-safe.

    Call `forget` after a transaction that was not committed.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._processes: dict[tuple[str, str, str], _Process] = {}
        self._series: dict[tuple[int, str, str, str, str], int] = {}
        self._first_steps: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._known_tombstones: dict[tuple[str, str], _Tombstone] | None = None

    def forget(self, connection: sqlite3.Connection | None = None) -> None:
        """Clear the cache, because rows may have disappeared. Does not block.

        Args:
            connection: Connection to use from now on; None to keep the current one.
        """
        self._processes.clear()
        self._series.clear()
        self._first_steps.clear()
        self._known_tombstones = None
        self._connection = connection or self._connection

    def process(
        self,
        source: Source,
        times: tuple[int, int],
        received: int,
        *,
        starts: bool = False,
        points: bool = True,
    ) -> tuple[int, int] | None:
        """Return the row IDs (run, process) of a request's sender, creating rows if needed; None for a deleted run.

        Args:
            source: Sender, whose latest name and resource are stored.
            times: Earliest and latest time of the data, in nanoseconds since the Unix epoch.
            received: Current time, in nanoseconds since the Unix epoch.
            starts: Whether the request starts the run. A start revives a deleted run.
            points: Whether the request contains points.
        """
        if self._is_deleted(source, times[0], starts=starts):
            return None
        time, newest = times
        key = (source.project, source.run_id, source.process)
        cached = self._processes.get(key)
        if cached is None or cached.name != source.name:
            run = self._connection.execute(
                "INSERT INTO run (project, run_id, name, created, updated) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET name = excluded.name RETURNING id",
                (source.project, source.run_id, source.name, time, received),
            ).fetchone()[0]
        else:
            run = cached.run
        self._connection.execute(
            "UPDATE run SET created = min(created, ?), updated = max(updated, ?), newest = max(newest, ?) WHERE id = ?",
            # A sender's clock may be years ahead. Without this limit, the run's lag would stay 0.
            (time, received, min(newest, received) if points else 0, run),
        )
        if cached is None or cached.resource != source.resource:
            process = self._connection.execute(
                "INSERT INTO process (run, process, resource, attempt) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET resource = excluded.resource, attempt = excluded.attempt RETURNING id",
                (run, source.process, source.resource, source.attempt),
            ).fetchone()[0]
        else:
            process = cached.process
        if len(self._processes) >= _CACHED:
            self._processes.clear()
        self._processes[key] = _Process(run, process, source.name, source.resource)
        return run, process

    def record_first_steps(self, arrivals: Iterable[Arrival], seq: int) -> None:
        """Record the first step, and its time, of each process in the second or a later attempt.

        Args:
            arrivals: Points of one request.
            seq: Number of the journal row that contains the request.
        """
        for arrival in arrivals:
            source = arrival.source
            if source.attempt == 1 or arrival.metric != STEP_METRIC or not isinstance(arrival.points, Points):
                continue
            first = beginning(arrival.points)
            if first is None:
                continue
            key = (source.project, source.run_id, source.process)
            recorded = self._first_steps.get(key)
            if recorded is None or first[0] < recorded[0] or first[1] < recorded[1]:
                row = self._connection.execute(
                    "UPDATE process SET first_step = min(ifnull(first_step, :step), :step),"
                    " began = min(ifnull(began, :time), :time),"
                    " began_seq = iif(first_step <= :step AND began <= :time, began_seq, :seq) WHERE process = :process"
                    " AND run = (SELECT id FROM run WHERE project = :project AND run_id = :run)"
                    " RETURNING first_step, began",
                    {"step": first[0], "time": first[1], "seq": seq}
                    | {"project": source.project, "run": source.run_id, "process": source.process},
                ).fetchone()
                if row is not None:
                    self._first_steps[key] = row

    def series(self, run: int, process: int, arrival: Arrival) -> int | None:
        """Return the row ID of a series, creating the row if needed; None if the run has too many series."""
        series = self._find_series(process, arrival)
        if series is not None:
            return series
        counted = self._connection.execute(
            "UPDATE run SET series = series + 1 WHERE id = ? AND series < ?",
            (run, limits.MAX_SERIES_PER_RUN),
        )
        if not counted.rowcount:
            return None
        created = self._connection.execute(
            "INSERT INTO series (process, metric, kind, scope, attributes, unit, description) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*_key(process, arrival), arrival.unit, arrival.description),
        ).lastrowid
        assert created is not None
        return self._remember_series(process, arrival, created)

    def place(self, seq: int, arrivals: Iterable[Arrival], orphans: list[Arrival]) -> Iterable[SeriesPoints]:
        """Yield the arrivals of journal row `seq` with their rows, for a replay.

        Skips arrivals for deleted runs and for series beyond the run's limit. If the rows of any other arrival are
        missing, the catalog is damaged, and the arrival is added to `orphans`.
        """
        for arrival in arrivals:
            source = arrival.source
            tombstone = self._tombstones.get((source.project, source.run_id))
            if tombstone is not None and seq <= tombstone.journal:
                continue
            key = (source.project, source.run_id, source.process)
            if key not in self._processes:
                row = self._connection.execute(
                    "SELECT run.id, process.id FROM run JOIN process ON process.run = run.id"
                    " WHERE project = ? AND run_id = ? AND process = ?",
                    key,
                ).fetchone()
                if row is None:
                    orphans.append(arrival)
                    continue
                # Omit name and resource, so that the next request writes them to the rows.
                self._processes[key] = _Process(row[0], row[1], "", "")
            process = self._processes[key]
            series = self._find_series(process.process, arrival)
            if series is not None:
                yield SeriesPoints(process.run, process.process, series, arrival.metric, arrival.points)
            elif not self._is_full(process.run):
                orphans.append(arrival)

    def _is_full(self, run: int) -> bool:
        """Return whether a run has the maximum number of series."""
        row = self._connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
        return row is not None and row[0] >= limits.MAX_SERIES_PER_RUN

    def delete(self, run: int, received: int, journal: int) -> None:
        """Mark a run as deleted, and free its run ID. The caller removes the run's data later.

        Args:
            run: Row ID of the run.
            received: Current time, in nanoseconds since the Unix epoch.
            journal: Number of the last journal row before the deletion.
        """
        self._connection.execute(
            "INSERT INTO tombstone (project, run_id, time, journal) SELECT project, run_id, ?, ? FROM run WHERE id = ?"
            " ON CONFLICT DO UPDATE SET time = excluded.time, journal = excluded.journal, revived = 0",
            (received, journal, run),
        )
        # Free the run ID for a new run. No sender can use the replacement, because it is not a valid run ID.
        self._connection.execute("UPDATE run SET deleted = ?, run_id = '/' || id WHERE id = ?", (received, run))
        self.forget()

    @property
    def _tombstones(self) -> dict[tuple[str, str], _Tombstone]:
        if self._known_tombstones is None:
            rows = self._connection.execute("SELECT project, run_id, time, journal, revived FROM tombstone")
            self._known_tombstones = {(row[0], row[1]): _Tombstone(row[2], row[3], bool(row[4])) for row in rows}
        return self._known_tombstones

    def _is_deleted(self, source: Source, time: int, *, starts: bool) -> bool:
        tombstone = self._tombstones.get((source.project, source.run_id))
        if tombstone is None or tombstone.revived:
            return False
        # Senders that set no run ID never send the start of a run.
        if time <= tombstone.time or not (starts or source.derived):
            return True
        tombstone.revived = True
        self._connection.execute(
            "UPDATE tombstone SET revived = 1 WHERE project = ? AND run_id = ?", (source.project, source.run_id)
        )
        return False

    def _find_series(self, process: int, arrival: Arrival) -> int | None:
        key = _key(process, arrival)
        cached = self._series.get(key)
        if cached is not None:
            return cached
        row = self._connection.execute(
            "SELECT id FROM series WHERE process = ? AND metric = ? AND kind = ? AND scope = ? AND attributes = ?", key
        ).fetchone()
        return None if row is None else self._remember_series(process, arrival, row[0])

    def _remember_series(self, process: int, arrival: Arrival, series: int) -> int:
        if len(self._series) >= _CACHED:
            self._series.clear()
        self._series[_key(process, arrival)] = series
        return series


def _key(process: int, arrival: Arrival) -> tuple[int, str, str, str, str]:
    return process, arrival.metric, arrival.kind, arrival.scope, arrival.attributes


def find_run(connection: sqlite3.Connection, run_id: str, project: str | None) -> int:
    """Return the row ID of a run.

    Raises:
        NotFoundError: No run has this ID.
        AmbiguousRunError: `project` is None, and several projects have a run with this ID.
        DamagedError: The row is damaged.
    """
    rows = connection.execute(
        f"SELECT {RUN_TALLY.selection} FROM run WHERE run_id = ? AND project = ifnull(?, project) AND NOT deleted"
        " ORDER BY project",
        (run_id, project),
    ).fetchall()
    if len(rows) == 1:
        RUN_TALLY.verify(rows[0], f"the row of run {run_id!r}")
        return int(rows[0][0])
    if rows:
        names = ", ".join(repr(row[1]) for row in rows[:10])
        raise AmbiguousRunError(f"run {run_id!r} is in {len(rows)} projects ({names}); choose one with `project`")
    where = "" if project is None else f" in project {project!r}"
    raise NotFoundError(f"there is no run {run_id!r}{where}; list the runs to see their IDs")
