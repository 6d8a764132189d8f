"""Cost of many series in the experiment server: processor time per point, memory, disk space and start time.

    `python benchmarks/many_series.py [--runs 10x100000,1x500000] [--rounds 12]`

Each series has one point in a request, as if every rank of a run logged all of its metrics in one call. `--runs` lists numbers of runs
and of metrics per run. `--rounds` is the number of points of each series. Requests follow each other as fast as the server responds.
The server's processor time includes the work in the background, for which the program waits. Finally, the server is killed and started
again, which replays the commit log.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from servers import PROJECT, T0, Tensormeter

from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

_PART = 25_000
"""Maximum number of metrics in a request."""


def request_of(run: str, first: int, n: int, round_: int) -> bytes:
    """Return a request with one point of each metric."""
    times = np.array([T0 + round_ * 10**9], np.uint64)
    values = np.random.default_rng(round_).standard_normal(n).astype(np.float32).astype(np.float64)
    resource = {"service.name": PROJECT, "tensormeter.run.id": run, "service.instance.id": "rank-0"}
    series = [
        Gauge(f"layer_{i // 50:05}/param_{i % 50:02}/grad_norm", times, values[i - first : i - first + 1])
        for i in range(first, first + n)
    ]
    return encode_metrics([Batch(resource, series)])


def requests(runs: list[tuple[str, int]], round_: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of points and the body of each request of a round."""
    for run, metrics in runs:
        for first in range(0, metrics, _PART):
            n = min(_PART, metrics - first)
            yield n, request_of(run, first, n, round_)


class Meter:
    """Processor time and memory of a server."""

    def __init__(self, server: Tensormeter) -> None:
        self.server = server
        self._process = psutil.Process(server.process.pid)
        self.peak = 0.0

    def cpu(self) -> float:
        """Return the processor time so far, in seconds."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> float:
        """Return the resident memory in MB."""
        rss = self._process.memory_info().rss / 1e6
        self.peak = max(self.peak, rss)
        return rss

    def send(self, bodies: Iterator[tuple[int, bytes]]) -> tuple[int, float, float]:
        """Send requests. Return the number of points, the processor time, and the time in requests, in seconds."""
        points, cpu, waited = 0, self.cpu(), 0.0
        for n, body in bodies:
            started = time.perf_counter()
            self.server.send("/v1/metrics", body)
            waited += time.perf_counter() - started
            points += n
            self.rss()
        return points, self.cpu() - cpu, waited

    def settle(self) -> float:
        """Wait until the background work has ended, and return its processor time in seconds."""
        before = last = self.cpu()
        idle_since = time.monotonic()
        while time.monotonic() < idle_since + 32:  # the server flushes at least every 30 s
            time.sleep(2)
            self.rss()
            if self.cpu() > last + 0.2:  # an idle server uses about one percent of a core
                idle_since = time.monotonic()
            last = self.cpu()
        return self.cpu() - before


def started(folder: Path) -> tuple[Tensormeter, float]:
    """Start a server, and return it with the seconds until it responds."""
    begin = time.perf_counter()
    server = Tensormeter(folder)
    assert server.http.request("GET", f"{server.url}/healthz").status == 200
    return server, time.perf_counter() - begin


def measure(folder: Path, runs: list[tuple[str, int]], rounds: int, console: Console) -> Table:
    """Store the runs' points, and return the results as a table."""
    table = Table(title=f"{sum(metrics for _, metrics in runs):,} series in {len(runs)} runs, {rounds} points each")
    table.add_column("what")
    table.add_column("result", justify="right")
    server, seconds = started(folder)
    try:
        meter = Meter(server)
        table.add_row("start of an empty store", f"{seconds:.1f} s")
        table.add_row("resident, idle", f"{meter.rss():.0f} MB")
        points, cpu, waited = meter.send(requests(runs, 0))
        table.add_row("processor time of a new series", f"{1e6 * cpu / points:.1f} µs")
        console.print(f"new: {points:,} points, {cpu:.1f} s of processor time, {waited:.1f} s in requests")
        total, spent, slowest = 0, 0.0, 0.0
        for round_ in range(1, rounds):
            points, cpu, waited = meter.send(requests(runs, round_))
            total, spent, slowest = total + points, spent + cpu, max(slowest, waited)
            console.print(
                f"round {round_}: {1e6 * cpu / points:.2f} µs per point, {waited:.1f} s in requests, {meter.rss():.0f} MB"
            )
        spent += meter.settle()
        table.add_row("processor time of a point, with the work in the background", f"{1e6 * spent / total:.2f} µs")
        table.add_row("points per second of processor time", f"{total / spent:,.0f}")
        table.add_row("resident, at most and at rest", f"{meter.peak:.0f}, {meter.rss():.0f} MB")
        table.add_row(
            "bytes on disk per series, with its points", f"{server.bytes_on_disk() / sum(m for _, m in runs):.0f}"
        )
        meter.send(requests(runs, rounds))
        server.process.kill()
        server.process.wait()
        server, seconds = started(folder)
        table.add_row("start after a kill, with a round in the commit log", f"{seconds:.1f} s")
        table.add_row("resident after the start", f"{Meter(server).rss():.0f} MB")
    finally:
        server.stop()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="10x100000,1x500000", help="numbers of runs and of metrics per run")
    parser.add_argument("--rounds", type=int, default=12, help="points of each series")
    given = parser.parse_args()
    runs: list[tuple[str, int]] = []
    for part in given.runs.split(","):
        count, metrics = map(int, part.split("x"))
        runs += [(f"run-{len(runs) + i:03}", metrics) for i in range(count)]
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as name:
        console.print(measure(Path(name), runs, given.rounds, console))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
