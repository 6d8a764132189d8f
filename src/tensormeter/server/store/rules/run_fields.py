"""Functions that find requested run fields in configs and summaries."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tensormeter.server.store.models.runs import Summary
from tensormeter.server.store.rules.totals import Totals

__all__ = ["PARTS", "dig", "summary_fields", "summary_of"]

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


def dig(config: Any, key: str) -> Any:
    """Return the config value under the full key, or else at its dotted path; None if neither exists."""
    if isinstance(config, Mapping) and key in config:
        return config[key]
    for part in key.split("."):
        if not isinstance(config, Mapping):
            return None
        config = config.get(part)
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
