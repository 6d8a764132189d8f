"""Functions that create API documents from the store's values."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET, convert
from msgspec.structs import replace

from tensormeter.conventions.semconv import PROCESS_KIND, RANK
from tensormeter.server.api import schemas
from tensormeter.server.query.points.variant import Varying
from tensormeter.server.store import Kind, MetricSummary, ProcessSummary, RunSummary, StoredEvent, Summary
from tensormeter.server.store.models.canonical_json import json_value
from tensormeter.server.store.models.config_path import path_of
from tensormeter.server.store.models.results import Results

__all__ = [
    "event_document",
    "join_metrics",
    "metric_documents",
    "result_documents",
    "run_details",
    "run_document",
    "summary_documents",
    "trim_config",
    "variant_fields",
]

_OWN_SCOPE: Final = frozenset({""})


def run_document(run: RunSummary, config: Mapping[str, Any] | None = None) -> schemas.Run:
    """Return the document of a run in a list. `config`, if given, replaces the full configuration."""
    fields = _run_fields(run)
    return schemas.Run(**(fields if config is None else fields | {"config": config}), processes=run.processes)


def run_details(
    run: RunSummary, processes: Sequence[ProcessSummary], losses: Mapping[str, int], config: Mapping[str, Any]
) -> schemas.RunDetails:
    """Return the document of a run with its processes and losses. `config` replaces the full configuration."""
    documents = [_process(process) for process in processes]
    fields = _run_fields(run) | {"config": config}
    return schemas.RunDetails(
        **fields, processes=documents, environment=_environment(processes), losses=losses, results=run.results.values
    )


def summary_documents(summaries: Mapping[str, Summary], results: Results) -> dict[str, schemas.Summary]:
    """Return the documents of the summaries of metrics, by name."""
    return {metric: _summary(metric, summary, results) for metric, summary in summaries.items()}


def result_documents(results: Results, names: Iterable[str]) -> dict[str, schemas.Summary]:
    """Return the documents of values that the script wrote to the summary, for those of the names that are no metrics."""
    return {name: schemas.Summary(results.values[name]) for name in names if name in results.values}


def variant_fields(series: Varying) -> dict[str, Any]:
    """Return the fields that distinguish series with the same metric, process and attribute set."""
    return _kind_fields(series.kind) | {"scope": series.scope, "unit": series.unit}


def metric_documents(series: Sequence[MetricSummary], numeric: bool | None = None) -> list[schemas.Metric]:
    """Return one document for each name, kind and unit among a run's series.

    `numeric` selects gauges and sums (True), distributions (False) or both (None).
    """
    groups: dict[tuple[str, Kind, str], list[MetricSummary]] = {}
    for summary in series:
        if numeric in (None, summary.kind.numeric):
            groups.setdefault((summary.metric, summary.kind, summary.unit), []).append(summary)
    return [_metric(group) for group in groups.values()]


def join_metrics(runs: Sequence[Sequence[schemas.Metric]]) -> list[schemas.Metric]:
    """Combine the metrics of several runs, ordered by name.

    `processes` is the highest number of processes that have the metric in one run.
    """
    joined: dict[tuple[object, ...], schemas.Metric] = {}
    seen: dict[tuple[object, ...], set[str]] = {}
    for metrics in runs:
        for metric in metrics:
            key = metric.name, metric.kind, metric.temporality, metric.monotonic, metric.unit
            keys = seen.setdefault(key, set())
            attributes = [attributes for attributes in metric.attributes if repr(attributes) not in keys]
            keys.update(map(repr, attributes))
            known = joined.get(key)
            if known is None:
                joined[key] = replace(metric, attributes=attributes)
                continue
            newest = metric if int(metric.last_time or 0) > int(known.last_time or 0) else known
            both = known, metric
            joined[key] = replace(
                newest,
                attributes=[*known.attributes, *attributes],
                points=known.points + metric.points,
                processes=max(known.processes, metric.processes),
                **_rare_fields(
                    {scope for each in both for scope in each.scopes or _OWN_SCOPE},
                    stepped=any(_is_stepped(each) for each in both) and newest.last_step is None,
                ),
            )
    return sorted(joined.values(), key=lambda metric: metric.name)


def event_document(event: StoredEvent) -> schemas.Event:
    """Return the document of an event. Fields that its log record lacks are 0, empty or null."""
    record = event.record
    observed = record.get("observed_time")
    return schemas.Event(
        id=event.id,
        time=str(event.time),
        observed_time=None if observed is None else str(observed),
        name=event.name,
        step=event.step,
        process=event.process,
        severity_number=record.get("severity_number", 0),
        severity_text=record.get("severity_text", ""),
        trace_id=record.get("trace_id", ""),
        span_id=record.get("span_id", ""),
        flags=record.get("flags", 0),
        scope=record.get("scope", {}),
        attributes=event.attributes,
        body=event.body,
        size=event.size,
    )


def trim_config(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return only the given keys of a configuration. Keys that it does not have are omitted.

    A key with dots selects the entry with this exact name or, if there is none, an entry of nested objects, whose
    last key may contain dots.
    """
    trimmed: dict[str, Any] = {}
    for key in keys:
        if key in config:
            trimmed[key] = config[key]
            continue
        path = path_of(config, key)
        if path is not None:
            value: Any = config
            inside = trimmed
            for part in path[:-1]:
                value = value[part]
                inside = inside.setdefault(part, {})
            inside[path[-1]] = value[path[-1]]
    return trimmed


def _run_fields(run: RunSummary) -> dict[str, Any]:
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
        "job_type": run.job_type,
        "tags": run.tags,
        "notes": run.notes,
        "archived": run.archived,
        "points": run.points,
        "lost": run.lost,
        "lag": max(run.updated - run.newest, 0) / 1e9 if run.newest else None,
        "config": run.config,
        "summary": summary_documents(run.summary, run.results),
        "definitions": [convert(definition, schemas.Definition) for definition in run.results.definitions],
        "parent": None if run.parent is None else schemas.Parent(**run.parent),
    }


def _summary(metric: str, summary: Summary, results: Results) -> schemas.Summary:
    if metric in results.values:
        value = results.values[metric]
    else:
        part = results.part(metric)
        value = None if part is None else json_value(summary.last) if part == "last" else _known(getattr(summary, part))
    return schemas.Summary(
        value,
        json_value(summary.last),
        _known(summary.min),
        _known(summary.max),
        _known(summary.mean),
        summary.count,
        summary.last_step,
        str(summary.last_time),
    )


def _process(process: ProcessSummary) -> schemas.Process:
    resource = process.resource
    return schemas.Process(
        id=process.process,
        attempt=process.attempt,
        rank=resource.get(RANK),
        host=resource.get("host.name"),
        state=process.state,
        resource=resource,
        losses=process.losses or UNSET,
    )


def _environment(processes: Sequence[ProcessSummary]) -> Mapping[str, Any]:
    """Return the resource of the process with the lowest rank in the latest attempt; empty if there are no processes.

    The resource of a node process has neither a command line nor a revision, so it is used only if there is no training
    process.
    """

    def order(process: ProcessSummary) -> tuple[bool, int, float]:
        rank = process.resource.get(RANK)
        is_node = process.resource.get(PROCESS_KIND) == "node"
        return is_node, -process.attempt, rank if isinstance(rank, int) else math.inf

    return min(processes, key=order).resource if processes else {}


def _metric(group: Sequence[MetricSummary]) -> schemas.Metric:
    latest = max(group, key=lambda summary: summary.last_time or 0)
    processes: dict[int, set[str]] = {}
    attributes: dict[str, Mapping[str, Any]] = {}
    for summary in group:
        processes.setdefault(summary.attempt, set()).add(summary.process)
        attributes.setdefault(repr(summary.attributes), summary.attributes)
    return schemas.Metric(
        name=latest.metric,
        **_kind_fields(latest.kind),
        unit=latest.unit,
        description=latest.description,
        attributes=[*attributes.values()],
        points=sum(summary.points for summary in group),
        processes=max(map(len, processes.values())),
        last=json_value(latest.last),
        last_step=latest.last_step,
        last_time=None if latest.last_time is None else str(latest.last_time),
        **_rare_fields(
            {summary.scope for summary in group},
            stepped=latest.last_step is None and any(summary.last_step is not None for summary in group),
        ),
    )


def _kind_fields(kind: Kind) -> dict[str, Any]:
    return {"kind": kind.name, "temporality": kind.temporality, "monotonic": kind.monotonic}


def _rare_fields(scopes: Collection[str], *, stepped: bool) -> dict[str, Any]:
    """Return the fields that few metrics have.

    `scopes` is omitted if "" is the only scope, and `stepped` if it is false.

    Args:
        scopes: Scopes of the metric's series.
        stepped: Whether the latest point has no step but the latest point of another series has one.
    """
    return {"scopes": UNSET if set(scopes) == _OWN_SCOPE else sorted(scopes), "stepped": True if stepped else UNSET}


def _is_stepped(metric: schemas.Metric) -> bool:
    return metric.last_step is not None or metric.stepped is True


def _known(value: float) -> Any:
    return None if math.isnan(value) else json_value(value)
