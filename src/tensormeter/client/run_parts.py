"""Processes, metrics and summaries of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Metric", "Process", "Summary", "metric_of", "summaries_of"]


@dataclass(frozen=True)
class Summary:
    """The value that represents a name in the summary of a run, and the statistics of the metric over all processes.

    Attributes:
        value: Value that the script wrote to the summary, or else the statistic that the run's definitions select, by default
            the latest value; None if they select none.
        last: Latest value; None if the name is no metric.
        min: Lowest value; None if all values are NaN, or if series of the metric differ in unit or kind.
        max: Highest value; None in the same cases.
        mean: Mean value; None in the same cases.
        count: Number of points; 0 if the name is no metric.
        last_step: Step of the latest value; None if that value has no step.
        last_time: Time of the latest value, in nanoseconds since the Unix epoch; None if the name is no metric.
    """

    value: Any
    last: int | float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    count: int = 0
    last_step: int | None = None
    last_time: int | None = None


@dataclass(frozen=True)
class Process:
    """A process of a run, in one attempt.

    Attributes:
        id: ID of the process.
        attempt: Number of the attempt, from 1.
        rank: Rank of the process; None if unknown.
        host: Host name of the process; None if unknown.
        state: State of the process, such as "running" or "finished"; None if it has reported neither its start nor its
            end.
        resource: OpenTelemetry resource attributes.
    """

    id: str
    attempt: int
    rank: int | None
    host: str | None
    state: str | None
    resource: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Metric:
    """A metric of a run over all processes. Metrics with the same name but a different unit or kind are separate.

    Attributes:
        name: Name of the metric.
        kind: "gauge", "sum", "histogram", "exponential_histogram" or "summary".
        unit: UCUM unit; "" if there is none.
        description: Description of the metric; "" if there is none.
        temporality: "delta" or "cumulative"; "unspecified" if the sender did not specify it; None for gauges and
            summaries.
        monotonic: Whether the sum never decreases; None if the metric is not a sum.
        attributes: Attribute sets of the series.
        points: Number of points from all processes.
        processes: Largest number of processes that have the metric in one attempt.
        last: Latest value; None for distributions.
        last_step: Step of the latest point; None if that point has no step.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch; None if there are no points.
        scopes: Names of the instrumentation scopes that record the metric; "" for tensormeter itself.
    """

    name: str
    kind: str
    unit: str
    description: str
    temporality: str | None
    monotonic: bool | None
    attributes: Sequence[Mapping[str, Any]]
    points: int
    processes: int
    last: int | float | None
    last_step: int | None
    last_time: int | None
    scopes: Sequence[str] = ("",)

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, not distributions."""
        return self.kind in ("gauge", "sum")


def summaries_of(document: Mapping[str, Any]) -> dict[str, Summary]:
    """Return the summaries in a run's API document."""
    return {metric: _summary(numbers) for metric, numbers in document["summary"].items()}


def _summary(document: Mapping[str, Any]) -> Summary:
    if "count" not in document:
        return Summary(document["value"])
    numbers = {name: _number(document[name]) for name in ("last", "min", "max", "mean")}
    others = {"count": document["count"], "last_step": document["last_step"], "last_time": int(document["last_time"])}
    value = document.get("value", document["last"])  # servers of earlier versions send none
    return Summary(numbers["last"] if value == document["last"] else value, **numbers, **others)


def metric_of(document: Mapping[str, Any]) -> Metric:
    """Return the metric in an API document."""
    values = {name: document[name] for name in Metric.__dataclass_fields__ if name in document}
    time = values["last_time"]
    return Metric(**values | {"last": _number(values["last"]), "last_time": None if time is None else int(time)})


def _number(value: Any) -> Any:
    """Return a number from the API. Convert strings, which represent NaN and infinities, to floats."""
    return float(value) if isinstance(value, str) else value
