"""What the experiment server takes and how soon it answers: one real process, real requests from this one.

    python benchmarks/server.py [--scale 1]

With a scale of 1 it stores 10 million points, then a series of one million and ten thousand runs.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import urllib3
from rich.console import Console
from rich.table import Table

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

T0 = 1_750_000_000_000_000_000
PROTOBUF = {"Content-Type": "application/x-protobuf"}
COLUMNS = {"Accept": "application/vnd.tensormeter.columns"}
METRICS = 100
ROWS = 500


class Server:
    """A server in a process and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = os.environ | {"TENSORMETER_DIR": str(folder / "runs")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder / "data")],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[3]
        self.http = urllib3.PoolManager(maxsize=16, retries=False, timeout=300)

    def post(self, path: str, body: bytes, **headers: str) -> bytes:
        answer = self.http.request("POST", self.url + path, body=body, headers=PROTOBUF | headers)
        assert answer.status == 200, answer.data
        return answer.data

    def query(self, **query: object) -> bytes:
        answer = self.http.request("POST", f"{self.url}/api/v1/query", body=json.dumps(query), headers=COLUMNS)
        assert answer.status == 200, answer.data
        return answer.data

    def get(self, path: str, **fields: str) -> bytes:
        answer = self.http.request("GET", self.url + path, fields=fields)
        assert answer.status == 200, answer.data
        return answer.data

    def rss(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in (self.folder / "data").iterdir())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(300)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def rows(run: str, first: int, n: int, metrics: int, process: str = "p") -> Batch:
    """A batch as a trainer sends it: jittered times, a noisy loss of float32 in each metric."""
    chaos = np.random.default_rng(first)
    steps = np.arange(first, first + n)
    times = (T0 + steps * 10**7 + chaos.integers(0, 10**6, n)).astype(np.uint64)
    gauges = [Gauge(STEP_METRIC, times, steps)]
    for i in range(metrics):
        noise = chaos.standard_normal(n) * 0.05
        gauges.append(Gauge(f"m{i}", times, (np.exp(-steps / 2e4) + noise).astype(np.float32).astype(np.float64)))
    resource = {"service.name": "bench", "tensormeter.run.id": run, "service.instance.id": process}
    return Batch(resource, gauges)


def measure_ingest(server: Server, points: int) -> float:
    """Points a second, from four senders at once, each request with 50,500 points of a run of its own."""
    requests = max(points // ((METRICS + 1) * ROWS), 4)
    bodies = [encode_metrics([rows(f"ingest-{i % 4}", i // 4 * ROWS, ROWS, METRICS)]) for i in range(requests)]

    def send(index: int) -> None:
        server.post("/v1/metrics", bodies[index], **{"Tensormeter-Batch-Id": f"ingest-{index}"})

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(requests)))
    return requests * (METRICS + 1) * ROWS / (time.perf_counter() - started)


def measure_under_queries(server: Server, requests: int) -> np.ndarray:
    """Milliseconds of small requests (1,010 points), while two clients draw charts without pause."""
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            server.query(runs=["ingest-0", "ingest-1"], metrics=[f"m{i}" for i in range(10)], max_points=1000)

    taken = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawing = [pool.submit(draw) for _ in range(2)]
        for i in range(requests):
            body = encode_metrics([rows("live", i * 10, 10, METRICS)])
            started = time.perf_counter()
            server.post("/v1/metrics", body)
            taken.append(1000 * (time.perf_counter() - started))
        stop.set()
        for future in drawing:
            future.result()
    return np.array(taken)


def repeat(call: Callable[[], object], times: int = 15) -> np.ndarray:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return np.array(taken)


def fill_long_series(server: Server, points: int) -> None:
    for first in range(0, points, 50_000):
        server.post("/v1/metrics", encode_metrics([rows("long", first, 50_000, 1)]))


def fill_runs(server: Server, runs: int) -> None:
    for first in range(0, runs, 500):
        batches = [rows(f"run-{i:05}", i * 10, 10, 5) for i in range(first, min(first + 500, runs))]
        server.post("/v1/metrics", encode_metrics(batches))
        for batch in batches:
            config = {"lr": 1e-3 * (hash(batch.resource["tensormeter.run.id"]) % 97), "layers": 12, "name": "adam"}
            start = Event("tensormeter.run.start", T0, {"config": config})
            server.post("/v1/logs", encode_events(batch.resource, [start]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    table = Table("what", "measured", "hold", title="tensormeter serve")
    with serving() as server:
        idle = server.rss()
        points = int(10_000_000 * scale)
        rate = measure_ingest(server, points)
        table.add_row(f"ingest, {points:,} points, 4 senders", f"{rate:,.0f} points/s", "300,000")
        table.add_row("resident memory, idle and after that", f"{idle:.0f} and {server.rss():.0f} MiB", "")
        taken = measure_under_queries(server, 200)
        p50, p99 = np.percentile(taken, [50, 99])
        table.add_row(
            "a request of 1,010 points beside two busy charts, p50 and p99", f"{p50:.1f} and {p99:.1f} ms", ""
        )
        server.stop()
        stored = points + 200 * 1010
        table.add_row("bytes a point on disk", f"{server.bytes_on_disk() / stored:.2f}", "")
    with serving() as server:
        n = int(1_000_000 * scale)
        fill_long_series(server, n)
        for x in ("time", "step"):
            taken = repeat(lambda x=x: server.query(runs=["long"], metrics=["m0"], x=x, max_points=2000))
            table.add_row(f"a series of {n:,} points to 2,000 by {x}, p50", f"{np.median(taken):.0f} ms", "100 ms")
        fill_runs(server, int(10_000 * scale))
        for sort in ("-summary.m0.last", "config.lr", "-started"):
            fields = {"project": "bench", "sort": sort, "limit": "50", "fields": "config.lr,summary.m0"}
            taken = repeat(lambda fields=fields: server.get("/api/v1/runs", **fields))
            what = f"first page of {int(10_000 * scale):,} runs by {sort}, p50"
            table.add_row(what, f"{np.median(taken):.0f} ms", "100 ms")
        text = "summary.m0.min < 0.9 and config.lr > 0.05 and name ~ '7'"
        taken = repeat(lambda: server.get("/api/v1/runs", project="bench", filter=text, limit="50", fields=""))
        table.add_row("the same with a filter of three conditions, p50", f"{np.median(taken):.0f} ms", "")
    console = Console(width=120)
    console.print(table)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
