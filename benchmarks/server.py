"""Throughput and response times of the experiment server, compared with the servers of MLflow and trackio.

    `python benchmarks/server.py [--scale 1] [--beside 0.02] [--grow 1e6,1e7]`

With a scale of 1, tensormeter stores 10 million points, a series of one million points, ten thousand runs, and a run with
512 ranks. The other servers would take a hundred times as long, so their scale is multiplied by `--beside`; 0 skips them.
`--grow` also measures queries of a single series at several lengths: `--grow 1e6,1e7,1e8` takes a few minutes and 2 GB of
disk space. Each point of that series has a step, which is stored too.
"""

import argparse
import concurrent.futures
import os
import platform
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from servers import PROJECT, Mlflow, Server, Tensormeter, Trackio, columns_of, repeat, serving

from tensormeter.otlp.encode import encode_metrics

METRICS = 100


def measure_ingest(server: Server, points: int) -> float:
    """Return the points stored per second with four concurrent senders, each for a separate run."""
    rows = max(points // METRICS // 4, server.batch_rows)
    bodies: list[list[tuple[str, bytes]]] = [[] for _ in range(4)]
    for sender in range(4):
        server.prepare(f"ingest-{sender}", {"lr": 0.1})
        for first in range(0, rows, server.batch_rows):
            columns = columns_of(first, server.batch_rows, METRICS)
            bodies[sender] += server.encode(f"ingest-{sender}", first, columns)

    def send(mine: list[tuple[str, bytes]]) -> None:
        for path, body in mine:
            server.send(path, body)

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(send, bodies))
    sent = 4 * -(-rows // server.batch_rows) * server.batch_rows * METRICS
    return sent / (time.perf_counter() - started)


def measure_under_queries(server: Server, requests: int) -> NDArray[np.float64]:
    """Return the durations, in milliseconds, of requests with 1,000 points while two clients request charts nonstop."""
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            server.chart("ingest-0", [f"m{i}" for i in range(10)], 1000)

    server.prepare("live", {"lr": 0.1})
    bodies = [server.encode("live", i * 10, columns_of(i * 10, 10, METRICS)) for i in range(requests)]
    taken = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawing = [pool.submit(draw) for _ in range(2)]
        for parts in bodies:
            started = time.perf_counter()
            for path, body in parts:
                server.send(path, body)
            taken.append(1000 * (time.perf_counter() - started))
        stop.set()
        for future in drawing:
            future.result()
    return np.array(taken)


def fill_series(server: Server, run: str, first: int, points: int) -> None:
    if first == 0:
        server.prepare(run, {"lr": 0.1})
    step = min(50_000, points)
    for at in range(first, first + points, step):
        for path, body in server.encode(run, at, columns_of(at, step, 1)):
            server.send(path, body)


def fill_crowd(server: Tensormeter, ranks: int, rows: int) -> None:
    """Store a run with many ranks. Each rank logs one metric and the step."""
    server.prepare("crowd", {"lr": 0.1})
    for first in range(0, rows, 1000):
        n = min(1000, rows - first)
        columns = columns_of(first, n, ranks)
        for group in range(0, ranks, 32):
            batches = []
            for rank in range(group, min(group + 32, ranks)):
                batch = server.batch("crowd", first, {"m0": columns[f"m{rank}"]})
                batches.append(replace(batch, resource={**batch.resource, "service.instance.id": f"rank-{rank:028}"}))
            server.send("/v1/metrics", encode_metrics(batches))


def measure_ranks(server: Tensormeter) -> tuple[float, float]:
    """Return the durations, in milliseconds, of the first and of later requests for statistics over a run's ranks."""
    url = f"{server.url}/api/v1/runs/crowd/ranks"
    fields = {"project": PROJECT, "metric": "m0", "max_points": "400"}

    def ask_once() -> None:
        answer = server.http.request("GET", url, fields=fields)
        assert answer.status == 200, answer.data[:500]

    return repeat(ask_once, 1)[0], float(np.median(repeat(ask_once, 5)))


def fill_runs(server: Server, runs: int) -> None:
    names = [f"run-{i:05}" for i in range(runs)]
    configs = [{"lr": 1e-3 * (i % 97), "layers": 12} for i in range(runs)]
    if isinstance(server, Tensormeter):  # the others accept one run per request
        for first in range(0, runs, 500):
            some = range(first, min(first + 500, runs))
            # Concatenated Protobuf messages form one message.
            server.send("/v1/logs", b"".join(server.start(names[i], configs[i]) for i in some))
            batches = [server.batch(names[i], i * 10, columns_of(i * 10, 10, 5)) for i in some]
            server.send("/v1/metrics", encode_metrics(batches))
        return
    for i, name in enumerate(names):
        server.prepare(name, configs[i])
        for path, body in server.encode(name, i * 10, columns_of(i * 10, 10, 5)):
            server.send(path, body)


def measure(kind: type[Server], folder: Path, scale: float) -> dict[str, str]:
    """Return one server's results, by row of the table."""
    results: dict[str, str] = {}
    points, live = max(int(10_000_000 * scale), 4 * METRICS * kind.batch_rows), 200 if scale >= 0.1 else 40
    with serving(kind, folder / f"{kind.name}-ingest") as server:
        idle = server.rss()
        results["ingest, 4 senders"] = f"{measure_ingest(server, points):,.0f} points/s ({points:,})"
        results["resident, idle and after ingest"] = f"{idle:.0f}, {server.rss():.0f} MiB"
        p50, p99 = np.percentile(measure_under_queries(server, live), [50, 99])
        results["a request of 1,000 points while two clients draw charts, p50 and p99"] = f"{p50:.1f}, {p99:.1f} ms"
        server.stop()
        results["bytes per point on disk"] = f"{server.bytes_on_disk() / (points + live * 10 * METRICS):.1f}"
    with serving(kind, folder / f"{kind.name}-read") as server:
        n = max(int(1_000_000 * scale), 2000)
        fill_series(server, "long", 0, n)
        for x in ("time", "step") if kind is Tensormeter else ("step",):
            taken = repeat(partial(server.chart, "long", ["m0"], 2000, x))
            results[f"reducing a series to 2,000 points by {x}, p50"] = f"{np.median(taken):.0f} ms ({n:,})"
        runs = max(int(10_000 * scale), 50)
        fill_runs(server, runs)
        sorts = ("-summary.m0.last", "config.lr", "-started") if kind is Tensormeter else ("-summary.m0.last",)
        for sort in sorts:
            taken = repeat(partial(server.page, sort))
            results[f"first page of runs by {sort}, p50"] = f"{np.median(taken):.0f} ms ({runs:,})"
        if isinstance(server, Tensormeter):
            text = "summary.m0.min < 0.9 and config.lr > 0.05 and name ~ '7'"
            taken = repeat(partial(server.page, "-started", text))
            results["first page of runs by -started with a filter of three conditions, p50"] = (
                f"{np.median(taken):.0f} ms ({runs:,})"
            )
            rows = max(int(30_000 * scale), 100)
            fill_crowd(server, 512, rows)
            first, again = measure_ranks(server)
            results["statistics over 512 ranks, first and later reads, p50"] = (
                f"{first:.0f}, {again:.0f} ms ({512 * rows:,})"
            )
            results["resident after the statistics over ranks"] = f"{server.rss():.0f} MiB"
    return results


def grow(folder: Path, lengths: list[int], console: Console) -> Table:
    """Measure queries of one growing series: the whole series, as a chart requests it, and its last hundredth.

    The server is stopped before each measurement, which compacts the series.
    """
    table = Table(title="One growing series")
    for column in (
        "points",
        "reduced to 2,000 by step",
        "by time",
        "its last hundredth by time",
        "first page",
        "resident",
        "bytes per point",
        "points/s",
    ):
        table.add_column(column)
    had = 0
    place = folder / "grow"
    for n in lengths:
        place.mkdir(exist_ok=True)
        server = Tensormeter(place)
        try:
            started = time.perf_counter()
            fill_series(server, "long", had, n - had)
            rate = (n - had) / (time.perf_counter() - started)
        finally:
            server.stop()  # compacts the series
        had = n
        stored = server.bytes_on_disk() / (2 * n)
        server = Tensormeter(place)
        try:
            answers = []
            for x, share in (("step", 1.0), ("time", 1.0), ("time", 0.01)):
                start = None if share == 1.0 else (1_750_000_000 + n * (1 - share) / 100)
                try:
                    taken = repeat(partial(ask, server, x, start), 5)
                    answers.append(f"{np.median(taken):.0f} ms")
                except AssertionError as error:
                    answers.append(str(error)[:60])
            answers.append(f"{np.median(repeat(partial(server.page, '-summary.m0.last'))):.0f} ms")
            console.print(f"{n:,} points: {', '.join(answers)}; {2 * rate:,.0f} points/s")
            table.add_row(f"{n:,}", *answers, f"{server.rss():.0f} MiB", f"{stored:.1f}", f"{2 * rate:,.0f}")
        finally:
            server.stop()
    return table


def ask(server: Server, x: str, start: float | None) -> None:
    query: dict[str, object] = {"runs": ["long"], "metrics": ["m0"], "x": x, "max_points": 2000}
    if start is not None:
        query["start"] = start
    answer = server.http.request("POST", f"{server.url}/api/v1/query", json=query)
    assert answer.status == 200, answer.json()["error"]["code"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="amount of data, relative to 10 million points; 0 runs only --grow"
    )
    parser.add_argument(
        "--beside", type=float, default=0.02, help="scale of the other servers, relative to --scale; 0 skips them"
    )
    parser.add_argument("--grow", type=lambda text: [int(float(part)) for part in text.split(",") if part], default=[])
    given = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: list[tuple[type[Server], float]] = [(Tensormeter, given.scale)] if given.scale else []
        if given.scale and given.beside:
            kinds += [(Mlflow, given.scale * given.beside), (Trackio, given.scale * given.beside)]
        columns: dict[str, dict[str, str]] = {}
        for kind, scale in kinds:
            console.print(f"{kind.name} ...")
            try:
                columns[kind.name] = measure(kind, folder, scale)
            except (AssertionError, RuntimeError, OSError) as error:  # continue with the other servers
                columns[kind.name] = {"failed": str(error)[:200]}
        table = Table("", *columns, title=f"Experiment servers, project {PROJECT!r} (in parentheses: amount of data)")
        for what in dict.fromkeys(what for results in columns.values() for what in results):
            table.add_row(what, *(results.get(what, "") for results in columns.values()))
        if given.scale:
            console.print(table)
        if given.grow:
            console.print(grow(folder, given.grow, console))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
