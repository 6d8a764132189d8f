"""Reading of all distributions of a metric with the buckets that were sent, as rows of an archive."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tensormeter.client.archive.json_text import json_text
from tensormeter.client.blocks import BlockReader
from tensormeter.client.connection import Connection
from tensormeter.client.distributions import BLOCK_DISTRIBUTIONS

__all__ = ["read_distributions"]

_MAX_BLOCK: Final = 20_000
"""Maximum number of distributions per request that the server allows."""

_SERIES: Final = ("process", "attempt", "scope", "unit", "kind", "temporality", "monotonic")


def read_distributions(
    connection: Connection, run: tuple[str, str], metric: str, stop: int, processes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Read the distributions of a metric, as rows without `project`, `run` and `rank`.

    Args:
        connection: Connection to the server.
        run: Project and ID of the run.
        metric: Name of the metric.
        stop: Exclusive end of the time range, in nanoseconds since the Unix epoch.
        processes: IDs of the run's processes.
    """
    project, run_id = run

    def request(process: str | None, start: int, stop: int, limit: int) -> list[dict[str, Any]]:
        document = connection.get(
            "runs", run_id, "distributions",
            project=project, metric=metric, process=process, start=start, stop=stop, limit=limit, attempt="all",
            exact="true",
        )  # fmt: skip
        return list(document["series"])

    reader = BlockReader(request, BLOCK_DISTRIBUTIONS, _MAX_BLOCK)
    for series in reader.read(lambda: processes, 1, stop):
        about = {name: series[name] for name in _SERIES}
        about |= {"metric": metric, "attributes": json_text(series["attributes"])}
        for point in series["points"]:
            yield about | _row(point)


def _row(point: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: point[name] for name in ("time", "step", "count", "counts")}
    row |= {name: _number(point[name]) for name in ("sum", "min", "max")}
    row["start_time"] = point.get("start_time")
    row["bounds"] = [float(bound) for bound in point["bounds"]]
    if "quantiles" in point:
        row["quantiles"] = [{"quantile": float(q), "value": float(value)} for q, value in point["quantiles"]]
    exponential = point.get("exponential")
    if exponential is not None:
        row |= {"scale": exponential["scale"], "zero_count": exponential["zero_count"]}
        row["zero_threshold"] = float(exponential["zero_threshold"])
        for side in ("positive", "negative"):
            row |= {f"{side}_{name}": exponential[side][name] for name in ("offset", "counts")}
    return row


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
