"""Response times of the experiment server for charts of a very long series, and for statistics over many ranks.

    `python benchmarks/reads.py [--steps 5e4,5e7] [--ranks 512] [--rows 30,30000] [--wide 100,20000] [--store sqlite]`

Each measurement prints the time that the client waits and the server's processor time. The defaults take some minutes
and 1 GB of disk space. With `--store clickhouse`, the server uses ClickHouse's engine, which runs in a separate process
(chDB). An empty value skips a measurement. `--folder` keeps the data, and reuses the data of an earlier call.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from servers import COLUMNS, PROJECT, T0, Tensormeter, columns_of, times_of

from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

RANKS_OF_A_NODE = 8
ROWS_OF_A_REQUEST = 1000
STEPS_OF_A_REQUEST = 50_000


class Measured(Tensormeter):
    """The experiment server, with its processor time."""

    store: str | None = None

    def launch(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(self.folder / "data")]
        if self.store is not None:
            command += ["--store", self.store]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TENSORMETER_DIR": str(self.folder / "runs")}
        )
        assert process.stdout is not None
        self.url = process.stdout.readline().split()[3]
        return process

    def cpu(self) -> float:
        """Return the processor seconds that the server has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        """Kill the server as a crash would."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ask(self, x: str, window: tuple[float, float] | None = None, max_points: int = 1000) -> int:
        """Request the chart that the page requests, and return the size of the response in bytes."""
        query: dict[str, object] = {"runs": [f"{PROJECT}/long"], "metrics": ["m0"], "x": x, "max_points": max_points}
        if window is not None:
            query |= {"start": window[0], "stop": window[1]}
        return self.get("POST", "/api/v1/query", json.dumps(query))

    def has(self, run: str) -> bool:
        """Return whether the run exists."""
        return bool(self.http.request("GET", f"{self.url}/api/v1/runs/{run}?project={PROJECT}").status == 200)

    def ranks(self, x: str = "step", window: tuple[float, float] | None = None) -> int:
        """Request the statistics over ranks that the page requests."""
        fields = f"project={PROJECT}&metric=m0&max_points=400&x={x}"
        if window is not None:
            fields += f"&start={window[0]}&stop={window[1]}"
        return self.get("GET", f"/api/v1/runs/crowd/ranks?{fields}")

    def get(self, method: str, path: str, body: str | None = None) -> int:
        answer = self.http.request(method, self.url + path, body=body, headers=COLUMNS)
        assert answer.status == 200, answer.data[:500]
        return len(answer.data)


class Report:
    """The results. Each result is also printed immediately."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.table = Table(title="Reads")
        for column in ("", "size", "wall, ms", "server's CPU, ms", "resident, MiB"):
            self.table.add_column(column)

    def add(self, what: str, size: str, server: Measured, calls: Sequence[Callable[[], object]]) -> None:
        """Make calls one after another, and report their medians."""
        wall, used = [], []
        for call in calls:
            before, started = server.cpu(), time.perf_counter()
            call()
            wall.append(1000 * (time.perf_counter() - started))
            used.append(1000 * (server.cpu() - before))
        several = f"{np.median(wall):.0f} (at most {max(wall):.0f})" if len(wall) > 1 else f"{wall[0]:.0f}"
        row = (what, size, several, f"{np.mean(used):.0f}", f"{server.rss():.0f}")
        self._console.print(" | ".join(row))
        self.table.add_row(*row)


def fill_long(server: Measured, first: int, steps: int) -> None:
    """Store rows of the run `long`."""
    if first == 0:
        server.prepare("long", {"lr": 0.1})
    for at in range(first, first + steps, STEPS_OF_A_REQUEST):
        n = min(STEPS_OF_A_REQUEST, first + steps - at)
        for path, body in server.encode("long", at, columns_of(at, n, 1)):
            server.send(path, body)


@contextmanager
def arriving(server: Measured, first: int, rows: int = 100) -> Iterator[None]:
    """Send rows of the run `long`, one request after another, until the end of the block."""
    stop = threading.Event()

    def send() -> None:
        at = first
        while not stop.wait(0.02):
            for path, body in server.encode("long", at, columns_of(at, rows, 1)):
                server.send(path, body)
            at += rows

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def zooms(server: Measured, steps: int, x: str, count: int = 12) -> list[Callable[[], object]]:
    """Return requests for parts of the series, from half of it to a hundred-thousandth of it."""
    chaos = np.random.default_rng(steps)
    calls: list[Callable[[], object]] = []
    for width in np.geomspace(0.5, 1e-5, count):
        begin = float(chaos.uniform(0, 1 - width)) * steps
        window = begin, begin + width * steps
        if x == "time":
            window = (T0 / 1e9 + window[0] / 100, T0 / 1e9 + window[1] / 100)
        calls.append(partial(server.ask, x, window))
    return calls


def measure_long(start: Callable[[], Measured], steps: int, report: Report) -> None:
    """Measure charts of a series with many points: after it was stored, after a restart, and while it grows."""
    size = f"{steps:,} steps"
    server = start()
    try:
        if not server.has("long"):
            fill_long(server, 0, steps)
        report.add("first chart by step, right after it was stored", size, server, [lambda: server.ask("step")])
        report.add("first chart by time, right after it was stored", size, server, [lambda: server.ask("time")])
    finally:
        server.stop()
    for x in ("step", "time"):
        server = start()
        try:
            report.add(f"first chart by {x} after a restart", size, server, [partial(server.ask, x)])
            report.add(f"again by {x}", size, server, [partial(server.ask, x)] * 5)
            report.add(f"parts by {x}", size, server, zooms(server, steps, x))
        finally:
            server.stop()
    server = start()
    try:
        with arriving(server, steps):
            report.add("first chart by step after a restart, growing", size, server, [lambda: server.ask("step")])
            report.add("again by step, growing", size, server, [lambda: server.ask("step")] * 5)
            report.add("parts by step, growing", size, server, zooms(server, steps, "step"))
            report.add("parts by time, growing", size, server, zooms(server, steps, "time"))
    finally:
        server.kill()
    server = start()
    try:
        report.add("first chart by step after a crash", size, server, [lambda: server.ask("step")])
    finally:
        server.stop()


def crowd_batch(rank: int, first: int, rows: int) -> Batch:
    """Return rows of one rank, which have the step and one metric, at times of this rank's own."""
    chaos = np.random.default_rng(1000 * first + rank)
    times = times_of(first, rows) + np.uint64(rank * 1000)
    steps = np.arange(first, first + rows)
    values = (np.exp(-steps / 2e4) + chaos.standard_normal(rows) * 0.05).astype(np.float32).astype(np.float64)
    resource = {
        "service.name": PROJECT,
        "tensormeter.run.id": "crowd",
        "service.instance.id": f"rank-{rank:028}",
        "tensormeter.rank": rank,
    }
    return Batch(resource, [Gauge(STEP_METRIC, times, steps), Gauge("m0", times, values)])


def fill_crowd(server: Measured, ranks: int, first: int, rows: int) -> None:
    """Store rows of the run `crowd` as the agents of its nodes send them."""
    for at in range(first, first + rows, ROWS_OF_A_REQUEST):
        n = min(ROWS_OF_A_REQUEST, first + rows - at)
        for node in range(0, ranks, RANKS_OF_A_NODE):
            batches = [crowd_batch(rank, at, n) for rank in range(node, min(node + RANKS_OF_A_NODE, ranks))]
            server.send("/v1/metrics", encode_metrics(batches))


def measure_ranks(start: Callable[[], Measured], ranks: int, rows: int, report: Report) -> None:
    """Measure statistics over ranks: after they were stored, after a restart, and while new rows arrive."""
    size = f"{ranks} ranks, {rows:,} rows"
    server = start()
    try:
        if not server.has("crowd"):
            server.prepare("crowd", {"lr": 0.1})
            report.add("store the ranks' rows", size, server, [lambda: fill_crowd(server, ranks, 0, rows)])
        report.add("first statistics, right after they were stored", size, server, [server.ranks])
        report.add("again", size, server, [server.ranks] * 5)
    finally:
        server.stop()
    for x in ("step", "time"):
        server = start()
        try:
            report.add(f"first statistics by {x} after a restart", size, server, [partial(server.ranks, x)])
            report.add(f"again by {x}", size, server, [partial(server.ranks, x)] * 5)
            if x == "step":
                report.add("statistics of a part", size, server, [partial(server.ranks, x, (rows // 4, rows // 2))])
                for more in range(3):
                    fill_crowd(server, ranks, rows + 10 * more, 10)
                    report.add("again, after ten new rows of each rank", size, server, [server.ranks])
        finally:
            server.stop()


def fill_wide(server: Measured, series: int) -> None:
    """Store one point of each series of the run `wide`."""
    server.prepare("wide", {"lr": 0.1})
    times = times_of(0, 1)
    resource = {"service.name": PROJECT, "tensormeter.run.id": "wide", "service.instance.id": "p"}
    for first in range(0, series, 5000):
        gauges = [Gauge(STEP_METRIC, times, np.zeros(1, np.int64))] if first == 0 else []
        gauges += [
            Gauge("m0", times, np.array([float(i)]), attributes={"part": i})
            for i in range(first, min(first + 5000, series))
        ]
        server.send("/v1/metrics", encode_metrics([Batch(resource, gauges)]))


def measure_wide(start: Callable[[], Measured], series: int, report: Report) -> None:
    """Measure reads of a metric that has many series with one point each, which differ in an attribute."""
    size = f"{series:,} series"
    server = start()
    try:
        if not server.has("wide"):
            fill_wide(server, series)
        _measure_wide_reads(server, size, "in memory", report)
    finally:
        server.stop()
    server = start()
    try:
        _measure_wide_reads(server, size, "after a restart", report)
    finally:
        server.stop()


def _measure_wide_reads(server: Measured, size: str, when: str, report: Report) -> None:
    path = f"/api/v1/runs/wide/series?project={PROJECT}&metric=m0"
    query = {"runs": [f"{PROJECT}/wide"], "metrics": ["m0"], "x": "time", "attributes": {"part": 7}}
    report.add(f"/series in binary, {when}", size, server, [lambda: server.get("GET", path)] * 3)
    body = json.dumps(query)
    report.add(f"/query of one series, {when}", size, server, [lambda: server.get("POST", "/api/v1/query", body)] * 3)


@contextmanager
def clickhouse(folder: Path) -> Iterator[str]:
    """Run ClickHouse's engine, and yield the address of a new database."""
    support = Path(__file__).parents[1] / "tests"
    process = subprocess.Popen(
        [sys.executable, "-m", "support.clickhouse_server", str(folder / "chdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(support)},
    )
    assert process.stdout is not None
    try:
        yield f"clickhouse://127.0.0.1:{process.stdout.readline().strip()}/bench"
    finally:
        process.communicate()


def integers(text: str) -> list[int]:
    return [int(float(part)) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=integers, default=[50_000, 50_000_000], help="lengths of the long series")
    parser.add_argument("--ranks", type=int, default=512, help="number of ranks")
    parser.add_argument("--rows", type=integers, default=[30, 30_000], help="numbers of rows of each rank")
    parser.add_argument("--wide", type=integers, default=[100, 20_000], help="numbers of series with one point")
    parser.add_argument("--store", choices=["sqlite", "clickhouse"], default="sqlite", help="store of the server")
    parser.add_argument("--folder", type=Path, help="folder in which the data is kept; default: a temporary one")
    given = parser.parse_args()
    console = Console(width=170)
    report = Report(console)
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as name:
        kinds: list[tuple[str, int, Callable[[Callable[[], Measured], int, Report], None]]] = [
            *(("long", steps, measure_long) for steps in given.steps),
            *(("crowd", rows, lambda start, n, to: measure_ranks(start, given.ranks, n, to)) for rows in given.rows),
            *(("wide", series, measure_wide) for series in given.wide),
        ]
        for kind, size, measure in kinds:
            folder = Path(name) / f"{kind}-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            if given.store == "sqlite":
                measure(lambda folder=folder: Measured(folder), size, report)
                continue
            with clickhouse(folder) as address:
                Measured.store = address
                measure(lambda folder=folder: Measured(folder), size, report)
    console.print(report.table)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
