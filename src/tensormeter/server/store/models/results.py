"""The results that a script stated for its run, and its definitions of metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final, Literal

from tensormeter.conventions.nesting import flatten
from tensormeter.server.store.models.canonical_json import canonical_json

__all__ = [
    "MAX_RESULTS",
    "NO_RESULTS",
    "Definition",
    "Part",
    "Results",
    "merge_values",
    "valid_definitions",
    "valid_values",
]

Part = Literal["last", "min", "max", "mean"]
"""Statistic of a metric's values."""

Definition = Mapping[str, str]
"""Presentation of metrics: `name` is a pattern as in `fnmatch`, `summary` a `Part` or `none`, and `step_metric` a metric."""

_SUMMARIES: Final = frozenset({"last", "min", "max", "mean", "none"})
_MAX_DEFINITIONS: Final = 200
_MAX_NAME: Final = 1024
_MAX_LEVELS: Final = 20
MAX_RESULTS: Final = 10_000
"""Maximum number of values in the results of a run."""


@dataclass(frozen=True)
class Results:
    """Statements of a script about the results of its run.

    Attributes:
        values: Values that the script wrote to the summary, as JSON values by name.
        definitions: Definitions of metrics, in order. The last one that matches a name and has a property decides it.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    definitions: Sequence[Definition] = ()

    def part(self, metric: str) -> Part | None:
        """Return the statistic that represents a metric; None if the definitions select none."""
        for definition in reversed(self.definitions):
            summary = definition.get("summary")
            if summary is not None and fnmatchcase(metric, definition["name"]):
                return None if summary == "none" else summary  # type: ignore[return-value]
        return "last"


NO_RESULTS: Final = Results()


def merge_values(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the values that two processes of a run have written. Null removes the value of this name. Excess values are omitted."""
    merged = ((name, value) for name, value in {**earlier, **later}.items() if value is not None)
    return dict(islice(merged, MAX_RESULTS))


def valid_values(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return values by name. Names of nested values are joined with slashes. Excess values are omitted."""
    flat = flatten(values, levels=_MAX_LEVELS, longest=_MAX_NAME, most=MAX_RESULTS)
    return {
        name: canonical_json(value) if isinstance(value, Mapping) else value for name, value in flat.items() if name
    }


def valid_definitions(values: Sequence[Any]) -> list[Definition]:
    """Return the valid properties of definitions. Entries without a name are omitted."""
    definitions: list[Definition] = []
    for value in values:
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            continue
        definition = {"name": name}
        summary, step_metric = value.get("summary"), value.get("step_metric")
        if isinstance(summary, str) and summary in _SUMMARIES:
            definition["summary"] = summary
        if isinstance(step_metric, str) and 0 < len(step_metric) <= _MAX_NAME:
            definition["step_metric"] = step_metric
        definitions.append(definition)
    return definitions[-_MAX_DEFINITIONS:]
