"""Functions that find requested run fields in configs and summaries."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tensormeter.server.store.models.config_path import path_of
from tensormeter.server.store.models.results import Results
from tensormeter.server.store.models.runs import Summary
from tensormeter.server.store.rules.totals import Totals

__all__ = ["PARTS", "chosen_values", "dig", "parts_needed", "summary_fields", "summary_of"]

PARTS: Final = {"min": "minimum", "max": "maximum"}
"""Names of `Totals` attributes, by summary part. Parts that are not listed have the same name in `Totals`."""


def summary_fields(fields: Sequence[str]) -> dict[str, list[str]]:
    """Return the parts that fields of the form `summary.METRIC.PART` request, by metric. Other fields are ignored."""
    parts_of: dict[str, list[str]] = defaultdict(list)
    for name in fields:
        if name.startswith("summary."):
            metric, _, part = name.removeprefix("summary.").rpartition(".")
            parts_of[metric].append(part)
    return parts_of


def parts_needed(metric: str, parts: Sequence[str], results: Mapping[int, Results]) -> list[str]:
    """Return the statistics that are needed for the requested parts of a metric, with `value` replaced.

    Args:
        metric: Name of the metric.
        parts: Requested parts.
        results: Results of those runs that have any, by run number.
    """
    if "value" not in parts:
        return [*parts]
    chosen = (of_run.part(metric) for of_run in {id(of_run): of_run for of_run in results.values()}.values())
    return [*dict.fromkeys([*(part for part in parts if part != "value"), "last", *filter(None, chosen)])]


def chosen_values(
    metric: str, statistics: Mapping[str, Mapping[int, Any]], results: Mapping[int, Results]
) -> dict[int, Any]:
    """Return the value that represents a metric in each run.

    Args:
        metric: Name of the metric.
        statistics: Values of the parts from `parts_needed`, by part and run number.
        results: Results of those runs that have any, by run number.
    """
    values = dict(statistics["last"])
    for run, of_run in results.items():
        if metric in of_run.values:
            values[run] = of_run.values[metric]
        elif (part := of_run.part(metric)) != "last":
            values[run] = None if part is None else statistics[part].get(run)
    return values


def dig(config: Any, key: str) -> Any:
    """Return the config value under the full key, or else at its dotted path; None if neither exists (see `path_of`)."""
    path = path_of(config, key)
    if path is None:
        return None
    for part in path:
        config = config[part]
    return config


def summary_of(totals: Totals) -> Summary:
    """Convert totals to a summary."""
    return Summary(
        last=totals.last,
        min=totals.minimum,
        max=totals.maximum,
        mean=totals.mean,
        count=totals.count,
        last_step=totals.last_step,
        last_time=totals.last_time,
    )
