"""Runs of a test's own process that a real server receives, read back with the client."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

import tensormeter
from support.servers import Server
from tensormeter.client.run import StoredRun
from tensormeter.session import open_runs

__all__ = ["RecordedRuns", "record_runs"]


class RecordedRuns:
    """Reads runs from the server that receives them.

    Attributes:
        client: A client of the server.
    """

    def __init__(self, client: tensormeter.Client) -> None:
        self.client = client

    def run(self, selector: str, project: str | None = None) -> StoredRun:
        """The run with a name or an ID."""
        return self.client.run(selector, project)

    def points(self, run: StoredRun | str) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of all metrics of a run, ordered by step, without the runs' own statistics."""
        run = self.run(run) if isinstance(run, str) else run
        points: dict[str, list[tuple[int, float]]] = {}
        for metric in run.metrics():
            if metric.name.startswith("tensormeter."):
                continue
            for series in run.series(metric.name):
                pairs = zip(series.x.tolist(), series.y.tolist(), strict=True)
                points.setdefault(metric.name, []).extend((int(step), value) for step, value in pairs)
        return {name: sorted(pairs, key=itemgetter(0)) for name, pairs in points.items()}


@contextmanager
def record_runs(folder: Path) -> Iterator[RecordedRuns]:
    """Start a server, and let runs of this process deliver to it. Runs that a test has left open are finished.

    Args:
        folder: Folder for the server's data, the runs and their buffers.
    """
    server = Server(folder / "server")
    with pytest.MonkeyPatch.context() as patch, tensormeter.Client(server.url) as client:
        variables: dict[str, Any] = {
            "ENDPOINT": server.url,
            "DIR": folder / "runs",
            "BUFFER_DIR": folder / "buffers",
            "AGENT": "thread",
            "SCHEDULE_DELAY": 0.05,
            "FINISH_TIMEOUT": 120,
        }
        for name, value in variables.items():
            patch.setenv(f"TENSORMETER_{name}", str(value))
        yield RecordedRuns(client)
        open_runs.finish_all()
    server.stop()
