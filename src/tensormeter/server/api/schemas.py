"""The JSON shapes of runs, metrics and events."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tensormeter.conventions.semconv import PROCESS_KIND, RANK
from tensormeter.server.query.points.variant import Varying
from tensormeter.server.store import Kind, MetricSummary, ProcessSummary, RunSummary, StoredEvent
from tensormeter.server.store.models.canonical_json import json_value

__all__ = [
    "environment_json",
    "event_json",
    "join_metrics",
    "metrics_json",
    "process_json",
    "run_json",
    "trim_config",
    "variant_json",
]


_OWN: Final = frozenset({""})


def run_json(run: RunSummary, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A RUN; with a trimmed `config`, if given."""
    return {
        "id": run.run_id,
        "project": run.project,
        "name": run.name,
        "state": run.state,
        "attempt": run.attempt,
        "started": str(run.started),
        "ended": None if run.ended is None else str(run.ended),
        "last_time": str(run.updated),
        "group": run.group,
        "tags": list(run.tags),
        "notes": run.notes,
        "archived": run.archived,
        "processes": run.processes,
        "points": run.points,
        "lost": run.lost,
        "lag": max(run.updated - run.newest, 0) / 1e9 if run.newest else None,
        "config": run.config if config is None else config,
        "summary": {
            metric: {
                "last": json_value(one.last),
                "min": _known(one.min),
                "max": _known(one.max),
                "mean": _known(one.mean),
                "count": one.count,
                "last_step": one.last_step,
                "last_time": str(one.last_time),
            }
            for metric, one in run.summary.items()
        },
    }


def process_json(process: ProcessSummary) -> dict[str, Any]:
    """A process of a run."""
    return {
        "id": process.process,
        "attempt": process.attempt,
        "rank": process.resource.get(RANK),
        "host": process.resource.get("host.name"),
        "state": process.state,
        "resource": process.resource,
    }


def environment_json(processes: Sequence[ProcessSummary]) -> Mapping[str, Any]:
    """The resource that speaks for a run: that of its newest attempt's lowest rank.

    A node, which has no command line and no revision, speaks only where nobody trains: what is heard of first is luck.
    """

    def order(process: ProcessSummary) -> tuple[bool, int, float]:
        rank = process.resource.get(RANK)
        is_node = process.resource.get(PROCESS_KIND) == "node"
        return is_node, -process.attempt, rank if isinstance(rank, int) else math.inf

    return min(processes, key=order).resource if processes else {}


def variant_json(series: Varying) -> dict[str, Any]:
    """What tells series of one metric, process and attribute set apart."""
    kind = series.kind
    return {
        "kind": kind.name,
        "temporality": kind.temporality,
        "monotonic": kind.monotonic,
        "scope": series.scope,
        "unit": series.unit,
    }


def metrics_json(series: Sequence[MetricSummary]) -> list[dict[str, Any]]:
    """One entry for each name, kind and unit of metric, of its series."""
    groups: dict[tuple[str, Kind, str], list[MetricSummary]] = {}
    for one in series:
        groups.setdefault((one.metric, one.kind, one.unit), []).append(one)
    return [_metric(group) for group in groups.values()]


def join_metrics(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What `metrics_json` said of several runs as one list: `processes` are those of the run that has most of them."""
    joined: dict[tuple[object, ...], dict[str, Any]] = {}
    seen: dict[tuple[object, ...], set[str]] = {}
    for metrics in runs:
        for one in metrics:
            key = tuple(one[part] for part in ("name", "kind", "temporality", "monotonic", "unit"))
            known = joined.get(key)
            new = [
                attributes for attributes in one["attributes"] if repr(attributes) not in seen.setdefault(key, set())
            ]
            seen[key].update(map(repr, new))
            if known is None:
                joined[key] = {**one, "attributes": new}
                continue
            newest = one if int(one["last_time"] or 0) > int(known["last_time"] or 0) else known
            both = (known, one)
            joined[key] = {
                **newest,
                "attributes": [*known["attributes"], *new],
                "points": known["points"] + one["points"],
                "processes": max(known["processes"], one["processes"]),
                **_more(
                    {scope for each in both for scope in each.get("scopes", _OWN)},
                    stepped=any(_is_stepped(each) for each in both) and newest["last_step"] is None,
                ),
            }
    return list(joined.values())


def event_json(event: StoredEvent) -> dict[str, Any]:
    """An event. What its log record does not have is 0, "", null or {}."""
    record = event.record
    observed = record.get("observed_time")
    return {
        "id": event.id,
        "time": str(event.time),
        "observed_time": None if observed is None else str(observed),
        "name": event.name,
        "step": event.step,
        "process": event.process,
        "severity_number": record.get("severity_number", 0),
        "severity_text": record.get("severity_text", ""),
        "trace_id": record.get("trace_id", ""),
        "span_id": record.get("span_id", ""),
        "flags": record.get("flags", 0),
        "scope": record.get("scope", {}),
        "attributes": event.attributes,
        "body": event.body,
        "size": event.size,
    }


def trim_config(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The part of a configuration that is named; dots go into nested objects."""
    trimmed: dict[str, Any] = {}
    for key in keys:
        if key in config:
            trimmed[key] = config[key]
            continue
        value: Any = config
        parts = key.split(".")
        for part in parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            inside = trimmed
            for part in parts[:-1]:
                inside = inside.setdefault(part, {})
            inside[parts[-1]] = value
    return trimmed


def _metric(group: Sequence[MetricSummary]) -> dict[str, Any]:
    last = max(group, key=lambda one: one.last_time or 0)
    attributes: list[Mapping[str, Any]] = []
    attempts: dict[int, set[str]] = {}
    seen = set()
    for one in group:
        attempts.setdefault(one.attempt, set()).add(one.process)
        key = repr(one.attributes)
        if key not in seen:
            seen.add(key)
            attributes.append(one.attributes)
    return {
        "name": last.metric,
        "kind": last.kind.name,
        "unit": last.unit,
        "description": last.description,
        "temporality": last.kind.temporality,
        "monotonic": last.kind.monotonic,
        "attributes": attributes,
        "points": sum(one.points for one in group),
        "processes": max(len(processes) for processes in attempts.values()),
        "last": json_value(last.last),
        "last_step": last.last_step,
        "last_time": None if last.last_time is None else str(last.last_time),
        **_more(
            {one.scope for one in group},
            stepped=last.last_step is None and any(one.last_step is not None for one in group),
        ),
    }


def _more(scopes: Collection[str], *, stepped: bool) -> dict[str, Any]:
    """What few metrics have to say: scopes other than tensormeter's own, and steps though the latest point has none."""
    return ({} if set(scopes) == _OWN else {"scopes": sorted(scopes)}) | ({"stepped": True} if stepped else {})


def _is_stepped(metric: Mapping[str, Any]) -> bool:
    return metric["last_step"] is not None or metric.get("stepped", False)


def _known(value: float) -> Any:
    return None if math.isnan(value) else json_value(value)
