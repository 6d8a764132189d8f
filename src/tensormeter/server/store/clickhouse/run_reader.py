"""Queries for runs. They merge the updates from processes and users, and summarize metrics."""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Final

import numpy as np

from tensormeter.conventions.semconv import RANK
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.name_filter import is_named
from tensormeter.server.store.clickhouse.point_counts import MetricCounts, PointCounts
from tensormeter.server.store.clickhouse.process_updates import NEVER
from tensormeter.server.store.models.errors import AmbiguousRunError, NotFoundError
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.results import NO_RESULTS, Results, merge_values
from tensormeter.server.store.models.runs import (
    ChangedRuns,
    ProcessAttempt,
    ProjectSummary,
    RunRef,
    RunSummary,
    RunTable,
    State,
    Summary,
)
from tensormeter.server.store.rules.lifecycle import NUMBERED, ProcessLifecycle, present_state, run_lifecycle
from tensormeter.server.store.rules.run_fields import (
    PARTS,
    chosen_values,
    dig,
    parts_needed,
    summary_fields,
    summary_of,
)
from tensormeter.server.store.rules.totals import Totals

__all__ = ["Runs"]

_NOT_DELETED: Final = "run GLOBAL NOT IN (SELECT run FROM deleted)"
_LOOKED_UP: Final = 10_000

_REREAD: Final = 3600 * 10**9
"""Nanoseconds after which all runs count as changed, because retention removes points."""

_OVERLAP: Final = 600 * 10**9
"""Nanoseconds before a position from which changes are read: the time of a commit and the difference between clocks."""

_PROCESS: Final = """
SELECT run, process, anyLast(project) AS project, anyLast(run_id) AS run_id, max(name) AS name,
    tupleElement(max(resource), 2) AS attempt, position(tupleElement(max(resource), 3), '{numbered}') > 0 AS numbered,
    min(created) AS created, max(updated) AS updated, max(newest) AS newest,
    min(first_start) AS first_start, max(started) AS started, max(ended) AS ended, max(turned) AS turned,
    max(config) AS config, max(results) AS results, max(definitions) AS definitions, max(parent) AS parent, min(tags) AS tags, min(grp) AS grp,
    min(job_type) AS job_type, min(notes) AS notes,
    tupleElement(max(losses), 2) AS losses
FROM process WHERE {condition} GROUP BY run, process"""

_RUN: Final = """
SELECT run, any(project), any(run_id), tupleElement(max(name), 2), min(created), min(first_start), max(updated), max(newest),
    max(turned), {config}, {results}, tupleElement(min(tags), 2), tupleElement(min(grp), 2), tupleElement(min(job_type), 2),
    tupleElement(min(notes), 2),
    groupArray((attempt, started, tupleElement(ended, 1), tupleElement(ended, 3), numbered)), groupArrayIf(losses, losses NOT IN ('', '{{}}'))
FROM ({inner}) GROUP BY run"""


_RESULTS: Final = (
    "arrayMap(written -> tupleElement(written, 3), arraySort(groupArrayIf(results, tupleElement(results, 3) != '')))"
)
"""Documents that the processes of a run have written to the summary, in the order in which they last wrote."""


class Runs:
    """Reader of runs. Thread-safe."""

    def __init__(self, connection: Connection, counts: PointCounts, stall_after: float) -> None:
        self._connection = connection
        self._counts = counts
        self.stall_after = stall_after

    def find(self, ref: RunRef) -> int:
        """Return the key of a run. Raises NotFoundError or AmbiguousRunError."""
        only = "" if ref.project is None else " AND project = {project:String}"
        rows = self._connection.rows(
            "SELECT run, any(project) AS p FROM process WHERE run_id = {run_id:String}"
            f"{only} AND {_NOT_DELETED} GROUP BY run ORDER BY p",
            run_id=ref.run_id,
            project=ref.project or "",
        )
        if len(rows) == 1:
            return int(rows[0][0])
        if rows:
            names = ", ".join(repr(row[1]) for row in rows[:10])
            raise AmbiguousRunError(
                f"run {ref.run_id!r} is in {len(rows)} projects ({names}); choose one with `project`"
            )
        where = "" if ref.project is None else f" in project {ref.project!r}"
        raise NotFoundError(f"there is no run {ref.run_id!r}{where}; list the runs to see their IDs")

    def existing(self, refs: Sequence[RunRef]) -> set[int]:
        """Return the keys of the given runs, without runs that do not exist."""
        ids = sorted({ref.run_id for ref in refs})
        rows = self._connection.rows(
            f"SELECT DISTINCT run, run_id, project FROM process WHERE run_id IN {{ids:Array(String)}} AND {_NOT_DELETED}",
            ids=ids,
        )
        wanted = {(ref.run_id, ref.project) for ref in refs}
        return {run for run, run_id, project in rows if wanted & {(run_id, project), (run_id, None)}}

    def recent(self, since: int) -> set[int]:
        """Return the keys of runs for which data has arrived since the given time."""
        rows = self._connection.rows(f"SELECT DISTINCT run FROM process WHERE updated > {since} AND {_NOT_DELETED}")
        return {row[0] for row in rows}

    def states(self, runs: Collection[int]) -> dict[int, tuple[RunRef, State]]:
        """Return the names and current states of runs, by key."""
        loaded = self._load(f"run IN ({numbers(runs)})", runs) if runs else {}
        return {key: (RunRef(run.run_id, run.project), run.state) for key, run in loaded.items()}

    def names(self, runs: Collection[int]) -> dict[int, RunRef]:
        """Return the names of runs, by key, without deleted runs."""
        if not runs:
            return {}
        rows = self._connection.rows(
            f"SELECT DISTINCT run, run_id, project FROM process WHERE run IN ({numbers(runs)}) AND {_NOT_DELETED}"
        )
        return {row[0]: RunRef(row[1], row[2]) for row in rows}

    def projects(self) -> list[ProjectSummary]:
        """See `Store.projects`."""
        rows = self._connection.rows(
            "SELECT project, uniqExact(run), max(updated) FROM"
            f" (SELECT run, any(project) AS project, max(updated) AS updated FROM process WHERE {_NOT_DELETED} GROUP BY run)"
            " GROUP BY project ORDER BY project"
        )
        return [ProjectSummary(*row) for row in rows]

    def attempts(self, run: int, metrics: Sequence[str] = ()) -> dict[str, ProcessAttempt]:
        """Return the attempts of a run's processes, with the first steps of metrics; empty if all processes belong to attempt 1."""
        rows = self._connection.rows(
            "SELECT process, max(resource), min(first_step), min(began) FROM process"
            f" WHERE run = {run} GROUP BY process"
        )
        if all(row[1][1] == 1 for row in rows):
            return {}
        attempts = {}
        first_steps = self._first_steps(run, {row[0]: row[2] for row in rows if row[1][1] > 1}, metrics)
        for process, (_, number, resource), _, began in rows:
            rank = json.loads(resource).get(RANK)
            attempts[process] = ProcessAttempt(
                number,
                first_steps.get(process, {}),
                began if began != NEVER else 0,
                rank if isinstance(rank, int) and not isinstance(rank, bool) else None,
            )
        return attempts

    def _first_steps(
        self, run: int, later: Mapping[str, int], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, int]]:
        """Return the first steps of metrics by process and metric.

        If the steps of a metric arrived in other requests than its points, its first step is that of the process.

        Args:
            run: Key of the run.
            later: First steps of the processes in later attempts; `NEVER` for those that log no steps.
            metrics: Names of the metrics.
        """
        stepped = {process: step for process, step in later.items() if step != NEVER}
        if not metrics or not stepped:
            return {}
        of_names, names = is_named({*metrics})
        rows = self._connection.rows(
            "SELECT p, metric, min(step) FROM (SELECT series, metric, anyLast(process) AS p FROM catalog"
            f" WHERE run = {run} AND {of_names} GROUP BY series, metric) AS named GLOBAL ANY INNER JOIN"
            f" (SELECT series, min(first_step) AS step FROM summary WHERE run = {run} AND series GLOBAL IN"
            f" (SELECT series FROM catalog WHERE run = {run} AND {of_names}) GROUP BY series) AS summed USING series"
            " GROUP BY p, metric",
            **names,
        )
        steps: dict[str, dict[str, int]] = defaultdict(dict)
        for process, metric, step in rows:
            if process in stepped:
                steps[process][metric] = step if step != NEVER else stepped[process]
        return steps

    def started(self, run: int) -> int:
        """Return the time at which a run started."""
        rows = self._connection.rows(f"SELECT min(first_start), min(created) FROM process WHERE run = {run}")
        first_start, created = rows[0]
        return int(created if first_start == NEVER else first_start)

    def updated(self, run: int) -> int:
        """Return the time when data last arrived for a run."""
        return int(self._connection.rows(f"SELECT max(updated) FROM process WHERE run = {run}")[0][0])

    def load(self, runs: Sequence[int], metrics: Collection[str] | None) -> list[RunSummary]:
        """Return the existing runs in the given order, with summaries of `metrics`, or of all metrics if it is None."""
        if not runs:
            return []
        loaded = self._load(f"run IN ({numbers(runs)})", runs, config=True, results=True)
        updated = {key: run.updated for key, run in loaded.items()}
        summaries = self._summaries(updated, metrics) if loaded and (metrics is None or metrics) else {}
        points = self._counts.of_runs(updated)
        return [
            replace(loaded[key], points=points.get(key, 0), summary=summaries.get(key, {}))
            for key in runs
            if key in loaded
        ]

    def summaries(self, run: int, metrics: Collection[str]) -> dict[str, Summary]:
        """Return the summaries of a run's metrics, by name."""
        return self._summaries({run: self.updated(run)}, metrics).get(run, {})

    def _summaries(self, updated: Mapping[int, int], metrics: Collection[str] | None) -> dict[int, dict[str, Summary]]:
        """Return summaries by run and metric. `updated` contains the time of each run's last arrival."""
        counts = self._counts.of_metrics(updated, metrics)
        totals = self._totals(f"run IN ({numbers(updated)})", metrics, counts, steps=True)
        for run, metric in self._mixed(updated, metrics):
            if metric in totals.get(run, {}):
                totals[run][metric] = totals[run][metric].without_statistics()
        return {
            run: {name: summary_of(total) for name, total in sorted(by_metric.items())}
            for run, by_metric in totals.items()
        }

    def changed(self, position: int | None) -> ChangedRuns:
        """See `Store.changed`. A position is a time in nanoseconds since the Unix epoch."""
        now = time.time_ns()
        if position is None or not 0 <= now - position < _REREAD:
            return ChangedRuns(now, None)
        since = position - _OVERLAP
        rows = self._connection.rows(
            f"SELECT DISTINCT run FROM (SELECT run FROM process WHERE updated > {since}"
            f" UNION ALL SELECT run FROM annotation WHERE number > {since // 1000}"
            f" UNION ALL SELECT run FROM deleted WHERE time > {since})"
        )
        return ChangedRuns(now, frozenset(row[0] for row in rows))

    def table(
        self,
        project: str | None,
        fields: Sequence[str],
        check: Check = no_check,
        chosen: Collection[int] | None = None,
    ) -> RunTable:
        """See `Store.table`."""
        if chosen is not None and not chosen:
            return RunTable([], {name: [] for name in fields})
        configured = any(name.startswith("config.") for name in fields)
        of_project = "1" if project is None else "project = {project:String}"
        if chosen is not None:
            of_project += f" AND run IN ({numbers(chosen)})"
        names = {"project": project or ""}
        parts_of = summary_fields(fields)
        valued = any("value" in parts for parts in parts_of.values())
        loaded = self._load(of_project, chosen, config=configured, results=valued, **names)
        runs = list(loaded)
        updated = {key: run.updated for key, run in loaded.items()}
        within = f"run GLOBAL IN (SELECT DISTINCT run FROM process WHERE {of_project})"
        columns: dict[str, Sequence[Any]] = {}
        for name in fields:
            check()
            group, _, rest = name.partition(".")
            if name == "points":
                points = self._counts.of_runs(updated)
                columns[name] = [points[run] for run in runs]
            elif group == "config" and rest:
                columns[name] = [dig(run.config, rest) for run in loaded.values()]
            elif group != "summary":
                columns[name] = [getattr(run, "run_id" if name == "id" else name) for run in loaded.values()]
        results = {key: run.results for key, run in loaded.items() if run.results != NO_RESULTS}
        for metric, parts in parts_of.items():
            check()
            needed = parts_needed(metric, parts, results)
            counted = not {"count", "mean"}.isdisjoint(needed)
            counts = self._counts.of_metrics(updated, (metric,)) if counted else {}
            totals = self._totals(within, (metric,), counts, steps="last_step" in parts, **names)
            of_run = {run: by_metric[metric] for run, by_metric in totals.items()}
            values: dict[str, Mapping[int, Any]] = {
                part: {run: getattr(total, PARTS.get(part, part)) for run, total in of_run.items()} for part in needed
            }
            if "value" in parts:
                values["value"] = chosen_values(metric, values, results)
            columns |= {f"summary.{metric}.{part}": [*map(values[part].get, runs)] for part in parts}
        return RunTable(runs, columns)

    def _mixed(self, runs: Collection[int], metrics: Collection[str] | None) -> Sequence[Sequence[Any]]:
        """Return a pair (run, metric) for each metric whose series in the run differ in unit or kind."""
        named, names = is_named(metrics)
        return self._connection.rows(
            f"SELECT run, metric FROM catalog WHERE run IN ({numbers(runs)}) AND (kind = 'gauge' OR kind LIKE 'sum %') AND {named}"
            " GROUP BY run, metric HAVING uniqExact(kind, unit) > 1",
            **names,
        )

    def step_at(self, wanted: Collection[tuple[int, int, int]]) -> dict[tuple[int, int], int]:
        """Return the steps logged at certain times, by (series, time), omitting times without a step.

        Args:
            wanted: Triples (run, key of the step series, time).
        """
        steps: dict[tuple[int, int], int] = {}
        ordered = sorted(wanted)
        for i in range(0, len(ordered), _LOOKED_UP):
            part = ordered[i : i + _LOOKED_UP]
            pairs = ", ".join(f"({series}, fromUnixTimestamp64Nano({time}, 'UTC'))" for _, series, time in part)
            rows = self._connection.columns(
                f"SELECT series, time, word, integer FROM points FINAL WHERE run IN ({numbers({key[0] for key in part})})"
                f" AND series IN ({numbers({key[1] for key in part})}) AND (series, time) IN ({pairs})",
                np.dtype([("series", "<u8"), ("time", "<i8"), ("word", "<i8"), ("integer", "u1")]),
            )
            for series, moment, word, integer in rows.tolist():
                column = Points(np.array([moment]), np.array([word]), np.array([integer], np.bool_))
                step, known = steps_at(column, column.times)
                if known[0]:
                    steps[series, moment] = int(step[0])
        return steps

    def _load(
        self,
        condition: str,
        runs: Collection[int] | None,
        *,
        config: bool = False,
        results: bool = False,
        **parameters: Any,
    ) -> dict[int, RunSummary]:
        """Return runs by key, without `points` and `summary`, and without config, results and parent unless requested."""
        inner = _PROCESS.format(condition=f"{condition} AND {_NOT_DELETED}", numbered=NUMBERED)
        rows = self._connection.rows(
            _RUN.format(
                inner=inner,
                config="tupleElement(max(config), 3)" if config else "''",
                results=", ".join(
                    (_RESULTS, "tupleElement(max(definitions), 3)", "tupleElement(max(parent), 3)")
                    if results
                    else ("emptyArrayString()", "''", "''")
                ),
            ),
            **parameters,
        )
        annotations = self._annotations(runs)
        now = time.time_ns()
        return {row[0]: self._run(row, annotations.get(row[0], {}), now) for row in rows}

    def _annotations(self, runs: Collection[int] | None) -> dict[int, dict[str, tuple[Any, int]]]:
        only = "run != 0" if runs is None else f"run IN ({numbers(runs)})"
        annotations: dict[int, dict[str, tuple[Any, int]]] = defaultdict(dict)
        for run, name, value, number in self._connection.rows(
            f"SELECT run, field, value, number FROM annotation FINAL WHERE {only}"
        ):
            annotations[run][name] = json.loads(value), number
        return annotations

    def _run(self, row: Sequence[Any], annotations: Mapping[str, tuple[Any, int]], now: int) -> RunSummary:
        _, project, run_id, name, created, first_start, updated, newest, turned, config, *rest = row
        values, definitions, parent, tags, group, job_type, notes, lifecycles, losses = rest
        state, attempt, ended = run_lifecycle(
            [ProcessLifecycle(a, s or None, e or None, how or None, bool(n)) for a, s, e, how, n in lifecycles]
        )
        stalled, since = annotations.get("stalled", (False, 0))
        present = present_state(
            state, updated, stalled=stalled and since > turned, now=now, stall_after=self.stall_after
        )

        def chosen(field: str, sent: Any) -> Any:
            return annotations[field][0] if field in annotations else sent

        return RunSummary(
            project=project,
            run_id=run_id,
            name=chosen("name", name),
            state=present,
            attempt=attempt,
            created=created,
            started=created if first_start == NEVER else first_start,
            ended=ended,
            updated=updated,
            newest=newest,
            group=chosen("group", group),
            job_type=chosen("job_type", job_type),
            tags=chosen("tags", json.loads(tags or "[]")),
            notes=chosen("notes", notes),
            archived=chosen("archived", False),
            config=json.loads(config or "{}"),
            points=0,
            processes=len(lifecycles),
            lost=sum(sum(json.loads(text).values()) for text in losses),
            summary={},
            results=Results(reduce(merge_values, map(json.loads, values), {}), json.loads(definitions or "[]")),
            parent=json.loads(parent or "null"),
        )

    def _totals(
        self,
        condition: str,
        metrics: Collection[str] | None,
        counts: Mapping[int, Mapping[str, MetricCounts]],
        *,
        steps: bool,
        **parameters: Any,
    ) -> dict[int, dict[str, Totals]]:
        """Return totals by run and metric, with counts and sums from `counts`."""
        of_names, names = is_named(metrics)
        named = (
            f"FROM catalog WHERE {condition} AND {of_names} AND (startsWith(kind, 'gauge') OR startsWith(kind, 'sum '))"
        )
        of_series = "" if metrics is None else f" AND series GLOBAL IN (SELECT series {named})"
        rows = self._connection.rows(
            "SELECT run, metric, reinterpretAsInt64(min(minimum)), reinterpretAsInt64(max(maximum)), max(last)"
            " FROM (SELECT run, series, min(minimum) AS minimum, max(maximum) AS maximum, max(last) AS last"
            f" FROM summary WHERE {condition}{of_series} GROUP BY run, series) AS summed"
            f" GLOBAL ANY INNER JOIN (SELECT DISTINCT run, series, metric {named}) AS named USING (run, series)"
            " GROUP BY run, metric",
            **parameters,
            **names,
        )
        unknown = {(row[0], row[4][5], row[4][0]) for row in rows if not row[4][3]}
        looked_up = self.step_at(unknown) if steps and unknown else {}
        by_run: dict[int, dict[str, Totals]] = defaultdict(dict)
        for run, metric, *words, last in rows:
            minimum, maximum = np.array(words, np.int64).view(np.float64).tolist()
            if minimum > maximum:  # all values are NaN
                minimum = maximum = float("nan")
            moment, word, integer, stepped, step, series = last
            last_step = step if stepped else looked_up.get((series, moment))
            count, present, total = counts.get(run, {}).get(metric, MetricCounts())
            by_run[run][metric] = Totals(
                *(count, present, total, minimum, maximum),
                *(moment, word, bool(integer), last_step),
            )
        return by_run
