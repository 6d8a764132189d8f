"""Imports into a server, and what the server then exports."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensormeter.client import Client, StoredRun
from tensormeter.client.export import export_run
from tensormeter.importers.registry import ImportContext, Options, find_sources
from tensormeter.importers.sender import ServerSender
from tensormeter.importers.tally import Tally
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.settings import Settings

__all__ = ["bits", "exported_points", "import_all", "only_run", "read_all", "stored_counts"]


def import_all(url: str, address: object, kind: str = "auto", **options: str) -> Tally:
    """Import everything at an address, and return the counts."""
    tally = Tally()
    chosen = Options(**options)
    _, sources = find_sources(str(address), kind, chosen)
    sender = ServerSender(Settings(endpoint=url), tally)
    try:
        for source in sources:
            source.send(ImportContext(sender, tally, chosen))
        sender.flush()
    finally:
        sender.close()
    return tally


class _Collector:
    """A sender that keeps the bodies of all requests."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = bodies

    def send(self, signal: str, body: bytes, items: int) -> None:
        self._bodies.append(body)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read_all(address: object, bodies: list[bytes] | None = None, **options: str) -> Tally:
    """Read everything at an address without a server, and return the counts. Bodies of requests are appended to `bodies`."""
    tally, chosen = Tally(), Options(**options)
    for source in find_sources(str(address), "auto", chosen)[1]:
        source.send(ImportContext(_Collector([] if bodies is None else bodies), tally, chosen))
    return tally


def only_run(url: str, project: str, name: str) -> StoredRun:
    (run,) = (run for run in Client(url).runs(project=project) if run.name == name)
    return run


def exported_points(run: StoredRun, folder: Path) -> dict[str, list[tuple[int | None, int, str]]]:
    """Step, time and bits of the value of each point that `tensormeter export` writes, by metric."""
    path = folder / f"{run.id}.jsonl"
    export_run(run, path, "jsonl")
    points = defaultdict(list)
    for line in path.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["metric"] != STEP_METRIC and "value" in row:
            points[row["metric"]].append((row["step"], row["time"], bits(row["value"])))
    return dict(points)


def bits(value: float | str) -> str:
    return float(value).hex()


def stored_counts(url: str, project: str) -> dict[str, tuple[dict[str, int], int]]:
    """The number of points of each metric, and the number of events, by run."""
    runs = Client(url).runs(project=project)
    return {run.id: ({metric.name: metric.points for metric in run.metrics()}, len(run.events())) for run in runs}
