"""A cache of run fields as columns, so that lists of many runs read only the runs that have changed."""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check
from tensormeter.server.store import RunTable, Store

__all__ = ["RunColumns"]

_MAX_CELLS: Final = 1_500_000
"""Maximum number of cached values. A value takes 8 to about 100 bytes."""

_MAX_PROJECTS: Final = 8
_FEW: Final = 1000
"""Number of changed runs up to which columns are updated; if more than a quarter have changed, they are read again."""

_USUAL: Final = ("started", "archived", "state", "updated", "newest", "lost")
"""Columns that are read together when a project is first requested, because its page needs all of them."""

_Column = Sequence[Any] | NDArray[Any]


@dataclass
class _Project:
    """Columns of a project's runs. All of them are replaced as a whole, so that readers need no lock.

    Attributes:
        position: Position of `Store.changed` up to which the columns are current; None before the first read.
        runs: Run numbers.
        rows: Row of each run number.
        columns: Columns by field name; the least recently used one is first.
        stalls: Time in nanoseconds at which the state of a run may change without an arrival.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    position: int | None = None
    runs: Sequence[int] = ()
    rows: Mapping[int, int] = field(default_factory=dict)
    columns: OrderedDict[str, _Column] = field(default_factory=OrderedDict)
    stalls: int = 0


class RunColumns:
    """Run fields of the most recently requested projects, as columns. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._projects: OrderedDict[Hashable, _Project] = OrderedDict()

    def table(
        self, store: Store, scope: Hashable, project: str | None, fields: Sequence[str], check: Check
    ) -> RunTable:
        """Return the same as `Store.table`. Other threads that request the same project wait meanwhile.

        Args:
            store: Store to read.
            scope: Key of the store: requests with different access must use different keys.
            project: Project name; None for all projects.
            fields: See `Store.table`.
            check: See `Store.table`.
        """
        with self._lock:
            cached = self._projects.setdefault((scope, project), _Project())
            self._projects.move_to_end((scope, project))
            while len(self._projects) > _MAX_PROJECTS:
                self._projects.popitem(last=False)
        with cached.lock:
            _refresh(cached, store, project, fields, check)
            columns = {name: _values(cached.columns[name]) for name in fields}
            runs = cached.runs
            _evict(cached)
        return RunTable(runs, columns)


def _refresh(cached: _Project, store: Store, project: str | None, fields: Sequence[str], check: Check) -> None:
    changed = store.changed(cached.position)
    now = time.time_ns()
    stale = changed.runs
    if stale is not None and now >= cached.stalls and "state" in cached.columns:
        stale = stale | _running(cached, now - int(store.stall_after * 1e9))
    if stale is None or len(stale) > max(_FEW, len(cached.runs) // 4):
        cached.columns.clear()
        cached.position = None
    elif stale:
        _update(cached, store.table(project, [*cached.columns], check, stale), stale)
    missing = [name for name in fields if name not in cached.columns]
    if project is not None and not cached.columns:
        missing = [*dict.fromkeys([*missing, *_USUAL])]
    if "state" in missing and "updated" not in (*cached.columns, *missing):
        missing.append("updated")
    # Read configs last: if this takes too long, the other columns are cached for the next request.
    configs = [name for name in missing if name.startswith("config.")]
    for names in ([name for name in missing if name not in configs], configs):
        if names or cached.position is None:
            _add(cached, store, project, names, fields, check)
            cached.position = changed.position
    cached.position = changed.position
    for name in fields:
        cached.columns.move_to_end(name)
    if "state" in cached.columns and (missing or stale):
        running = _running(cached, None)
        updated = cached.columns["updated"]
        first = min((int(updated[cached.rows[run]]) for run in running), default=now + 10**18)
        cached.stalls = first + int(store.stall_after * 1e9)


def _add(
    cached: _Project, store: Store, project: str | None, names: Sequence[str], fields: Sequence[str], check: Check
) -> None:
    """Read columns and add them. Afterwards, at least these columns exist; older ones may be gone."""
    table = store.table(project, names, check)
    order: Sequence[int] | None = None
    if cached.columns:
        order = _order(cached, table)
        if order is None:  # runs have arrived since the call of `changed`, so the other columns lack them
            cached.columns.clear()
            names = [*dict.fromkeys([*names, *fields, *(("updated",) if "state" in fields else ())])]
            table = store.table(project, names, check)
    if not cached.columns:
        cached.runs = list(table.runs)
        cached.rows = {run: row for row, run in enumerate(cached.runs)}
    for name in names:
        values = table.columns[name]
        cached.columns[name] = _compact(values if order is None else [values[i] for i in order])


def _order(cached: _Project, table: RunTable) -> Sequence[int] | None:
    """Return the row of each cached run in a table; None if the table contains other runs."""
    if len(table.runs) != len(cached.runs):
        return None
    rows = {run: row for row, run in enumerate(table.runs)}
    order = [rows.get(run, -1) for run in cached.runs]
    return None if -1 in order else order


def _update(cached: _Project, table: RunTable, stale: frozenset[int]) -> None:
    """Replace the values of stale runs. Add new runs, and remove runs that no longer exist."""
    removed = (stale & cached.rows.keys()) - {*table.runs}
    new = [run for run in table.runs if run not in cached.rows]
    kept = [row for run, row in cached.rows.items() if run not in removed] if removed else None
    places = [(cached.rows[run], i) for i, run in enumerate(table.runs) if run in cached.rows]
    added = [i for i, run in enumerate(table.runs) if run not in cached.rows]
    for name, column in cached.columns.items():
        values = [*_values(column)]
        fresh = table.columns[name]
        for row, i in places:
            values[row] = fresh[i]
        if kept is not None:
            values = [values[row] for row in kept]
        cached.columns[name] = _compact([*values, *(fresh[i] for i in added)])
    runs = cached.runs if kept is None else [cached.runs[row] for row in kept]
    if new or removed:
        cached.runs = [*runs, *new]
        cached.rows = {run: row for row, run in enumerate(cached.runs)}


def _running(cached: _Project, before: int | None) -> frozenset[int]:
    """Return the running runs, or those whose last data arrived before a time."""
    states, updated = cached.columns["state"], cached.columns["updated"]
    return frozenset(
        run
        for run, state, time in zip(cached.runs, states, updated, strict=True)
        if state == "running" and (before is None or time < before)
    )


def _evict(cached: _Project) -> None:
    """Remove the least recently used columns beyond the limit. The columns of the current request stay."""
    while len(cached.columns) > 4 and len(cached.columns) * len(cached.runs) > _MAX_CELLS:
        name = next(iter(cached.columns))
        if name == "updated" and "state" in cached.columns:
            cached.columns.move_to_end(name)
            name = next(iter(cached.columns))
        del cached.columns[name]


def _compact(values: Sequence[Any]) -> _Column:
    """Return values as an array if all of them are integers, or all are floats."""
    types = set(map(type, values))
    if types == {float}:
        return np.array(values, np.float64)
    if types == {int} and min(values) >= -(1 << 63) and max(values) < 1 << 63:
        return np.array(values, np.int64)
    return values


def _values(column: _Column) -> Sequence[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else column
