"""The catalog, which maps runs, processes and series to row IDs."""

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.number_blocks import hash_name, hash_series
from tensormeter.server.store.models.errors import AmbiguousRunError, NotFoundError
from tensormeter.server.store.models.metric_kind import series_of_kind
from tensormeter.server.store.models.points import Points, beginning
from tensormeter.server.store.rules import limits
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.ingest_series import Arrival, Rejections, SeriesIdentity
from tensormeter.server.store.rules.key_table import KeyTable
from tensormeter.server.store.rules.resource_identity import Source
from tensormeter.server.store.sqlite.integrity.seals import RUN_TALLY, checksum
from tensormeter.server.store.sqlite.points.first_steps import FirstSteps
from tensormeter.server.store.sqlite.points.memtable import LocatedNumbers, SeriesPoints, located_numbers
from tensormeter.server.store.sqlite.tables.name_limit import NameLimit

__all__ = ["Catalog", "find_run"]


_CACHED: Final = 20_000
"""Maximum number of processes, and of series outside of blocks, in the cache."""

_MANY: Final = 1000
"""Number of unknown series in a request from which on all series of the process are read."""

_SOME: Final = 100
_SHARE: Final = 4
"""From `_SOME` unknown series on, all series of the process are also read if there are at most `_SHARE` times as many."""

_ROWS: Final = 20_000
"""Number of rows of series to read at once."""

_KEYS: Final = 2_000_000
"""Maximum number of series of blocks in the cache, which takes 24 to 80 bytes each."""


_FIND: Final = "SELECT id FROM series WHERE process = ? AND metric = ? AND kind = ? AND scope = ? AND attributes = ?"


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
        self._began: dict[tuple[str, str, str], tuple[int, int, int]] = {}
        self._first_steps = FirstSteps()
        self._known_tombstones: dict[tuple[str, str], _Tombstone] | None = None
        self._keys = KeyTable(_KEYS)
        self._salts: dict[tuple[int, str], NDArray[np.uint64]] = {}
        self._read: set[tuple[int, str]] = set()
        self._names = NameLimit()

    def forget(self, connection: sqlite3.Connection | None = None) -> None:
        """Clear the cache, because rows may have disappeared. Does not block.

        Args:
            connection: Connection to use from now on; None to keep the current one.
        """
        self._processes.clear()
        self._series.clear()
        self._keys.clear()
        self._read.clear()
        self._names.forget(everything=connection is not None)
        self._began.clear()
        self._first_steps.forget()
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
                " ON CONFLICT DO UPDATE SET name = iif(excluded.name = run_id, name, excluded.name) RETURNING id",
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

    def record_first_steps(self, arrivals: Sequence[Arrival], blocks: Sequence[BlockArrival], seq: int) -> None:
        """Record when each process in the second or a later attempt began, and the first steps of its metrics.

        Args:
            arrivals: Points of one request.
            blocks: Blocks of the request.
            seq: Number of the journal row that contains the request.
        """
        logged: dict[Source, list[Points]] = {}
        for source, points in _steps(arrivals, blocks):
            logged.setdefault(source, []).append(points)
        sent: dict[Source, tuple[list[Arrival], list[BlockArrival]]] = {source: ([], []) for source in logged}
        for arrival in arrivals:
            if arrival.source in sent:
                sent[arrival.source][0].append(arrival)
        for block in blocks:
            if block.source in sent:
                sent[block.source][1].append(block)
        for source, parts in logged.items():
            steps = Points.concat(parts).distinct()
            first = beginning(steps)
            if first is None:
                continue
            key = (source.project, source.run_id, source.process)
            recorded = self._began.get(key)
            if recorded is None or first[0] < recorded[0] or first[1] < recorded[1]:
                recorded = self._connection.execute(
                    "UPDATE process SET first_step = min(ifnull(first_step, :step), :step),"
                    " began = min(ifnull(began, :time), :time),"
                    " began_seq = iif(first_step <= :step AND began <= :time, began_seq, :seq) WHERE process = :process"
                    " AND run = (SELECT id FROM run WHERE project = :project AND run_id = :run)"
                    " RETURNING first_step, began, id",
                    {"step": first[0], "time": first[1], "seq": seq}
                    | {"project": source.project, "run": source.run_id, "process": source.process},
                ).fetchone()
                if recorded is None:
                    continue
                self._began[key] = recorded
            self._first_steps.record(self._connection, recorded[2], steps, *sent[source], seq)

    def series(self, run: int, process: int, arrival: Arrival) -> int | str:
        """Return the row ID of a series, creating the row if needed, or the reason for refusing the series."""
        series = self._find_series(process, arrival)
        if series is None:
            (created,) = self._create_series(run, process, [arrival])
            return created if isinstance(created, str) else self._remember_series(process, arrival, created)
        return series

    def block_series(
        self, run: int, process: int, arrival: BlockArrival, rejections: Rejections, check: Check = no_check
    ) -> NDArray[np.int64]:
        """Return the row ID of each stretch's series, creating rows if needed.

        It is 0 for refused series, whose points are counted in `rejections`.
        """
        keys, rows = self._known_rows(process, arrival)
        unknown = np.flatnonzero(rows == 0)
        if not len(unknown):
            return rows
        _, first, inverse = np.unique(
            np.ascontiguousarray(keys[unknown]).view("u8,u8").reshape(-1), return_index=True, return_inverse=True
        )
        inverse = inverse.reshape(-1)
        order = np.argsort(first)  # create the rows in the order of the request
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order))
        stretches = unknown[first[order]]
        resolved, reasons = self._resolve(run, process, arrival, stretches.tolist(), check)
        rows[unknown] = resolved[positions[inverse]]
        self._keys.add(keys[stretches[resolved != 0]], resolved[resolved != 0])
        refused = unknown[rows[unknown] == 0]
        if len(refused):
            places = positions[inverse[rows[unknown] == 0]].tolist()
            for place, points in zip(places, arrival.block.counts[refused].tolist(), strict=True):
                rejections[reasons[place]] += points
        return rows

    def _known_rows(self, process: int, arrival: BlockArrival) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the key of each stretch, and the row ID of its series or 0."""
        keys = arrival.block.keys ^ self._salt(process, arrival.scope)
        rows = self._keys.find(keys)
        unknown = int(np.count_nonzero(rows == 0))
        if unknown >= _SOME and (process, arrival.scope) not in self._read and self._is_worth_reading(process, unknown):
            self._read.add((process, arrival.scope))
            self._read_keys(process, arrival.scope)
            rows = self._keys.find(keys)
        return keys, rows

    def _is_worth_reading(self, process: int, unknown: int) -> bool:
        """Return whether reading all series of a process is probably quicker than finding the unknown ones."""
        if unknown >= _MANY:
            return True
        most = _SHARE * unknown
        (series,) = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM series WHERE process = ? LIMIT ?)", (process, most + 1)
        ).fetchone()
        return bool(series <= most)

    def _read_keys(self, process: int, scope: str) -> None:
        """Add the series of a process that have no attributes to the cache, which is quicker than finding each one."""
        kinds = self._connection.execute(
            "SELECT DISTINCT kind FROM series WHERE process = ? AND (kind = 'gauge' OR kind LIKE 'sum %')", (process,)
        ).fetchall()
        for (kind,) in kinds:
            cursor = self._connection.execute(
                "SELECT metric, unit, description, id FROM series"
                " WHERE process = ? AND kind = ? AND scope = ? AND attributes = '{}'",
                (process, kind, scope),
            )
            while texts := cursor.fetchmany(_ROWS):
                keys = hash_series(texts, series_of_kind(kind)) ^ self._salt(process, scope)
                ids = np.array([row[3] for row in texts], np.int64)[: len(keys)]
                new = self._keys.find(keys) == 0
                self._keys.add(keys[new], ids[new])

    def _resolve(
        self, run: int, process: int, arrival: BlockArrival, stretches: Sequence[int], check: Check
    ) -> tuple[NDArray[np.int64], dict[int, str]]:
        """Find or create the series of stretches. Return their row IDs, and the reasons for refusing those with row ID 0."""
        rows = np.zeros(len(stretches), np.int64)
        reasons: dict[int, str] = {}
        missing: dict[tuple[str, ...], list[int]] = {}
        identities: list[SeriesIdentity] = []
        for index, identity in enumerate(arrival.identify(stretches)):
            check()
            if isinstance(identity, str):
                reasons[index] = identity
                continue
            found = self._connection.execute(_FIND, (process, *identity[:4])).fetchone()
            if found is not None:
                rows[index] = found[0]
            elif identity[:4] in missing:  # stretches may differ in unit and description
                missing[identity[:4]].append(index)
            else:
                missing[identity[:4]] = [index]
                identities.append(identity)
        if missing:
            check()
            created = self._create_series(run, process, identities)
            for row, indexes in zip(created, missing.values(), strict=True):
                if isinstance(row, str):
                    reasons.update(dict.fromkeys(indexes, row))
                else:
                    rows[indexes] = row
        return rows, reasons

    def _create_series(
        self, run: int, process: int, identities: Sequence[Arrival | SeriesIdentity]
    ) -> Sequence[int | str]:
        """Create rows. Return the row ID of each identity, or the reason for refusing it."""
        (counted,) = self._connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
        room = max(limits.MAX_SERIES_PER_RUN - counted, 0)
        metrics = [identity.metric for identity in identities]
        unnamed = self._names.refused(self._connection, run, counted, metrics)
        if unnamed is None and len(identities) <= room:
            return self._insert_series(run, process, identities)
        created: list[int | str] = [limits.too_many_series()] * len(identities)
        kept = np.arange(len(identities))
        if unnamed is not None:
            kept = np.flatnonzero(~unnamed)
            for index in np.flatnonzero(unnamed).tolist():
                created[index] = limits.too_many_names()
        places = kept[:room].tolist()
        for place, row in zip(places, self._insert_series(run, process, [identities[i] for i in places]), strict=True):
            created[place] = row
        return created

    def _insert_series(self, run: int, process: int, identities: Sequence[Arrival | SeriesIdentity]) -> Sequence[int]:
        if not identities:
            return ()
        number = len(identities)
        self._names.add(run, [identity.metric for identity in identities])
        self._connection.execute("UPDATE run SET series = series + ? WHERE id = ?", (number, run))
        last = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'series'").fetchone()
        rows = range(last[0] + 1 if last else 1, (last[0] if last else 0) + number + 1)
        self._connection.executemany(
            "INSERT INTO series (id, process, metric, kind, scope, attributes, unit, description, seal)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (*values, checksum(*values, 0, None, None, None, None, None))
                for row, identity in zip(rows, identities, strict=True)
                for values in [(row, *_key(process, identity), identity.unit, identity.description)]
            ),
        )
        return rows

    def _salt(self, process: int, scope: str) -> NDArray[np.uint64]:
        """Return what distinguishes the keys of equal series of different processes and scopes."""
        salt = self._salts.get((process, scope))
        if salt is None:
            if len(self._salts) >= _CACHED:
                self._salts.clear()
            content = hashlib.blake2b(f"{process} {scope}".encode(errors="surrogatepass"), digest_size=16).digest()
            salt = self._salts[process, scope] = np.frombuffer(content, np.uint64)
        return salt

    def place(
        self, seq: int, arrivals: Iterable[Arrival], orphans: list[Arrival | BlockArrival]
    ) -> Iterable[SeriesPoints]:
        """Yield the arrivals of journal row `seq` with their rows, for a replay.

        Skips arrivals for deleted runs and for series beyond the run's limit. If the rows of any other arrival are
        missing, the catalog is damaged, and the arrival is added to `orphans`.
        """
        for arrival in arrivals:
            if self._is_deleted_since(arrival.source, seq):
                continue
            process = self._placed_process(arrival.source)
            if process is None:
                orphans.append(arrival)
                continue
            series = self._find_series(process.process, arrival)
            if series is not None:
                yield SeriesPoints(process.run, process.process, series, arrival.metric, arrival.points)
            elif not self._is_full(process.run, arrival.metric):
                orphans.append(arrival)

    def place_blocks(
        self, seq: int, blocks: Iterable[BlockArrival], orphans: list[Arrival | BlockArrival]
    ) -> Iterable[LocatedNumbers]:
        """Yield the blocks of journal row `seq` with their rows, like `place`."""
        for arrival in blocks:
            if self._is_deleted_since(arrival.source, seq):
                continue
            process = self._placed_process(arrival.source)
            if process is None:
                orphans.append(arrival)
                continue
            keys, rows = self._known_rows(process.process, arrival)
            unknown = np.flatnonzero(rows == 0).tolist()
            for stretch, identity in zip(unknown, arrival.identify(unknown), strict=True):
                if isinstance(identity, str):
                    continue
                found = self._connection.execute(_FIND, (process.process, *identity[:4])).fetchone()
                if found is not None:
                    rows[stretch] = found[0]
                elif not self._is_full(process.run, identity.metric):
                    mask = np.zeros(len(rows), np.bool_)
                    mask[stretch] = True
                    orphans.append(replace(arrival, block=arrival.block.select(np.repeat(mask, arrival.block.counts))))
            _, first = np.unique(keys[:, 0], return_index=True)
            new = first[(rows[first] != 0) & (self._keys.find(keys[first]) == 0)]
            self._keys.add(keys[new], rows[new])
            yield from located_numbers(process.run, arrival, rows)

    def _is_deleted_since(self, source: Source, seq: int) -> bool:
        """Return whether a source's run has been deleted after journal row `seq`."""
        tombstone = self._tombstones.get((source.project, source.run_id))
        return tombstone is not None and seq <= tombstone.journal

    def _placed_process(self, source: Source) -> _Process | None:
        """Return a source's process during a replay, or None if its row is missing."""
        key = (source.project, source.run_id, source.process)
        if key not in self._processes:
            row = self._connection.execute(
                "SELECT run.id, process.id FROM run JOIN process ON process.run = run.id"
                " WHERE project = ? AND run_id = ? AND process = ?",
                key,
            ).fetchone()
            if row is None:
                return None
            # Omit name and resource, so that the next request writes them to the rows.
            self._processes[key] = _Process(row[0], row[1], "", "")
        return self._processes[key]

    def _is_full(self, run: int, metric: str) -> bool:
        """Return whether a run has no room for another series of a metric."""
        row = self._connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
        if row is None:
            return False
        return (
            row[0] >= limits.MAX_SERIES_PER_RUN
            or self._names.refused(self._connection, run, row[0], [metric]) is not None
        )

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
        row = self._connection.execute(_FIND, key).fetchone()
        return None if row is None else self._remember_series(process, arrival, row[0])

    def _remember_series(self, process: int, arrival: Arrival, series: int) -> int:
        if len(self._series) >= _CACHED:
            self._series.clear()
        self._series[_key(process, arrival)] = series
        return series


def _key(process: int, arrival: Arrival | SeriesIdentity) -> tuple[int, str, str, str, str]:
    return process, arrival.metric, arrival.kind, arrival.scope, arrival.attributes


def _steps(arrivals: Iterable[Arrival], blocks: Iterable[BlockArrival]) -> Iterable[tuple[Source, Points]]:
    """Yield the steps of sources in the second or a later attempt."""
    for arrival in arrivals:
        if arrival.source.attempt != 1 and arrival.metric == STEP_METRIC and isinstance(arrival.points, Points):
            yield arrival.source, arrival.points
    for block in blocks:
        if block.source.attempt != 1:
            stretches = block.block.names == np.uint64(hash_name(STEP_METRIC))
            if stretches.any():
                steps = block.block.select(np.repeat(stretches, block.block.counts))
                yield block.source, Points(steps.times.view(np.int64), steps.words, steps.integers)


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
