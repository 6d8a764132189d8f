"""Cost of runs with many metrics, whose requests contain one point of each series, in the SQLite and the ClickHouse store.

    `python benchmarks/series.py [--store clickhouse] [--series 100,1000,10000,100000] [--rows 3] [--request 10000] [--runs 1]`

For each number of series, a new server receives rows with one value of each series, in requests of `--request` points. The
first row creates the series. The table contains CPU time per point rather than throughput, so that other programs on the
machine matter less. For ClickHouse, chDB runs as a separate process, as in the tests; `pip install chdb` is necessary.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from servers import PROJECT, T0, Tensormeter, repeat

from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

TESTS = Path(__file__).parents[1] / "tests"
COLUMNS = (
    "series per run",
    "first row, µs/point",
    "later rows, µs/point",
    "in ClickHouse, first",
    "later",
    "points/s of two cores",
    "resident, MiB",
    "bytes per series",
    "list of runs, ms",
    "a metric's chart, ms",
    "cold start with a chart, CPU s",
)


class ClickHouseServer(Tensormeter):
    """The server on a ClickHouse store."""

    store = ""

    def arguments(self) -> list[str]:
        return ["--store", self.store]


class Cpu:
    """CPU time of processes, in microseconds."""

    def __init__(self, *pids: int) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._before = self.total()

    def taken(self) -> float:
        """Return the CPU time since the last call."""
        before, self._before = self._before, self.total()
        return self._before - before

    def total(self) -> float:
        """Return the CPU time since the processes started."""
        return sum(1e6 * (times.user + times.system) for times in (process.cpu_times() for process in self._processes))


@contextmanager
def clickhouse(folder: Path) -> Iterator[tuple[int, int]]:
    """Run chDB behind HTTP, and yield its process ID and port."""
    command = [sys.executable, "-m", "support.clickhouse_server", str(folder)]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def name_of(series: int) -> str:
    return f"layer_{series // 50:05d}/param_{series % 50:02d}/grad_norm"


def requests_of(run: str, row: int, series: int, size: int) -> Iterator[bytes]:
    """Yield the requests of one row."""
    resource = {"service.name": PROJECT, "tensormeter.run.id": run, "service.instance.id": "p"}
    times = np.array([T0 + row * 10**9], np.uint64)
    for first in range(0, series, size):
        values = np.random.default_rng(first).normal(size=size)
        gauges = [
            Gauge(name_of(i), times, values[i - first : i - first + 1]) for i in range(first, min(first + size, series))
        ]
        yield encode_metrics([Batch(resource, [Gauge(STEP_METRIC, times, np.array([row])), *gauges])])


def measure(
    kind: type[Tensormeter], folder: Path, series: int, given: argparse.Namespace, engine: int | None
) -> list[str]:
    server = kind(folder)
    store = Cpu(server.process.pid)
    database = Cpu(*([engine] if engine else []))
    before = server.rss()
    taken = {"first": [0.0, 0.0], "later": [0.0, 0.0]}
    for row in range(given.rows):
        for number in range(given.runs):
            for body in requests_of(f"wide-{number}", row, series, given.request):
                store.taken(), database.taken()
                server.send("/v1/metrics", body)
                part = taken["first" if row == 0 else "later"]
                part[0] += store.taken()
                part[1] += database.taken()
    points = series * given.runs
    first, later = (
        [value / points / rows for value in taken[part]] for part, rows in (("first", 1), ("later", given.rows - 1))
    )
    grown = server.rss() - before
    fields = {"project": PROJECT, "limit": "50", "fields": ""}
    listing = np.median(repeat(lambda: server.http.request("GET", f"{server.url}/api/v1/runs", fields=fields), 5))
    chart = np.median(repeat(lambda: server.chart("wide-0", [name_of(series // 2)], 1000), 5))
    resident = server.rss()
    server.stop()
    database.taken()
    server = kind(folder)
    server.chart("wide-0", [name_of(series // 2)], 1000)
    cold = (Cpu(server.process.pid).total() + database.taken()) / 1e6
    server.stop()
    return [
        f"{series:,}",
        f"{first[0]:.2f}",
        f"{later[0]:.2f}",
        *((f"{first[1]:.2f}", f"{later[1]:.2f}") if engine else ("", "")),
        f"{2e6 / (later[0] + later[1]):,.0f}",
        f"{resident:.0f}",
        f"{grown * 2**20 / points:.0f}",
        f"{listing:.0f}",
        f"{chart:.0f}",
        f"{cold:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "clickhouse"], default="sqlite", help="store to measure")
    parser.add_argument("--series", default="100,1000,10000,100000", help="numbers of series per run")
    parser.add_argument("--rows", type=int, default=3, help="rows per run; at least 2")
    parser.add_argument("--runs", type=int, default=1, help="number of runs")
    parser.add_argument("--request", type=int, default=10_000, help="maximum number of points per request")
    given = parser.parse_args()
    table = Table(*COLUMNS, title=f"Runs with many metrics, {given.store}, {given.runs} runs, {given.rows} rows")
    console = Console(width=190)
    for text in given.series.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if given.store == "sqlite":
                table.add_row(*measure(Tensormeter, folder, int(text), given, None))
            else:
                with clickhouse(folder / "chdb") as (pid, port):
                    ClickHouseServer.store = f"clickhouse://127.0.0.1:{port}/series"
                    table.add_row(*measure(ClickHouseServer, folder, int(text), given, pid))
    console.print(table)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
