"""Processor time and memory for lists of runs, metrics, sections and fields, in large projects and wide runs.

    `python benchmarks/lists.py [--runs 100,100000] [--metrics 100,100000,500000] [--repeat 5]`

The program writes rows without points into a store's file, then starts a server and requests lists. The table shows the
processor time of the server per request, for the first request and the median of later ones, in milliseconds.
"""

import argparse
import json
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from servers import PROJECT, T0, Tensormeter

from tensormeter.disk.private import make_directory
from tensormeter.server.store.sqlite.schema import prepare

METRICS_PER_RUN = 10
MINUTE = 60 * 10**9


def fill(folder: Path, runs: int, widths: list[int]) -> None:
    """Write a project with many small runs, and one wide run per width in the project `wide`."""
    make_directory(folder)
    prepare(folder / "tensormeter.db")
    connection = sqlite3.connect(folder / "tensormeter.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    names = [f"train/m{i}" for i in range(METRICS_PER_RUN)]
    for run in range(1, runs + 1):
        config = {"lr": 1e-3 * (run % 97), "seed": run, "model": {"layers": 12, "width": run % 5 * 256}}
        config |= {f"option_{i}": f"value {i} of this option" for i in range(20)}
        _insert(connection, run, PROJECT, f"run-{run:06}", names, json.dumps(config))
    for number, width in enumerate(widths):
        names = [f"layer_{i // 50:05}/block_{i // 10 % 5}/norm_{i % 10}" for i in range(width)]
        _insert(connection, runs + 1 + number, "wide", f"wide-{width}", names, "{}")
    connection.execute("COMMIT")
    connection.close()


def _insert(connection: sqlite3.Connection, run: int, project: str, name: str, metrics: list[str], config: str) -> None:
    at = T0 + run * MINUTE
    connection.execute(
        "INSERT INTO run (id, project, run_id, name, config, state, created, started, ended, updated, newest, series, points)"
        " VALUES (?, ?, ?, ?, ?, 'finished', ?, ?, ?, ?, ?, ?, ?)",
        (run, project, name, name, config, at, at, at + MINUTE, at + MINUTE, at + MINUTE, len(metrics), len(metrics)),
    )
    connection.execute(
        "INSERT INTO process (id, run, process, resource, started, ended, end_state) VALUES (?, ?, ?, '{}', ?, ?, 'finished')",
        (run, run, f"process-{run}", at, at + MINUTE),
    )
    connection.executemany(
        "INSERT INTO series (process, metric, kind, scope, attributes, unit, description, points, last_time, last_word, last_integer)"
        " VALUES (?, ?, 'gauge', '', '{}', '', '', 1, ?, ?, 1)",
        ((run, metric, at, i) for i, metric in enumerate(metrics)),
    )
    connection.executemany(
        "INSERT INTO summary (run, metric, count, numbers, total, minimum, maximum, last_time, last_word, last_integer)"
        " VALUES (?, ?, 1, 1, ?, ?, ?, ?, ?, 1)",
        ((run, metric, i + run % 89, i, i, at, i + run % 89) for i, metric in enumerate(metrics)),
    )


def requests(runs: int, widths: list[int]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield a description, a path and parameters of each request to measure."""
    page = {"project": PROJECT, "limit": "50", "fields": "config.lr,summary.train/m0"}
    yield f"{runs:,} runs: first page", "runs", page
    yield f"{runs:,} runs: last page", "runs", page | {"offset": str(max(runs - 50, 0))}
    yield f"{runs:,} runs: name contains", "runs", page | {"filter": "name ~ '77'"}
    yield f"{runs:,} runs: state, lost", "runs", page | {"filter": "state = 'running' or lost > 0"}
    yield f"{runs:,} runs: config filter", "runs", page | {"filter": "config.lr > 0.05 and config.model.width = 512"}
    yield f"{runs:,} runs: sort by config", "runs", page | {"sort": "config.lr"}
    yield f"{runs:,} runs: sort by summary", "runs", page | {"sort": "-summary.train/m0"}
    yield f"{runs:,} runs: fields", "fields", {"project": PROJECT}
    yield "wide runs: page without fields", "runs", {"project": "wide"}
    for width in widths:
        run = f"runs/wide-{width}"
        yield f"{width:,} metrics: first page", f"{run}/metrics", {"limit": "1000"}
        yield f"{width:,} metrics: page of a section", f"{run}/metrics", {"prefix": "layer_00001/", "limit": "50"}
        yield f"{width:,} metrics: search for text", f"{run}/metrics", {"search": "block_3/norm_7", "limit": "50"}
        yield (
            f"{width:,} metrics: search for an expression",
            f"{run}/metrics",
            {"search": "block_[34]/.*7$", "limit": "50"},
        )
        yield f"{width:,} metrics: sections", f"{run}/sections", {"limit": "1000"}
        yield f"{width:,} metrics: sections with search", f"{run}/sections", {"search": "norm_7"}
        yield f"{width:,} metrics: fields", "fields", {"project": "wide", "search": "norm_7", "limit": "50"}
        yield f"{width:,} metrics: the whole run", run, {}


def measure(server: Tensormeter, path: str, parameters: dict[str, str], repeat: int) -> tuple[float, float, int]:
    """Return the processor times in milliseconds of the first request and of later ones, and the response's size."""
    process = psutil.Process(server.process.pid)
    taken: list[float] = []
    size = 0
    for _ in range(1 + repeat):
        before = _seconds(process)
        answer = server.http.request("GET", f"{server.url}/api/v1/{path}", fields=parameters)
        assert answer.status == 200, answer.data[:500]
        taken.append(1000 * (_seconds(process) - before))
        size = len(answer.data)
    return taken[0], statistics.median(taken[1:]), size


def _seconds(process: psutil.Process) -> float:
    times: Callable[[], float] = lambda: sum(process.cpu_times()[:2])  # noqa: E731
    return times()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = {"type": lambda text: [int(float(part)) for part in text.split(",") if part]}
    parser.add_argument("--runs", default=[100, 100_000], **lengths)
    parser.add_argument("--metrics", default=[100, 100_000, 500_000], **lengths)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder that keeps the filled stores between calls")
    given = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as name:
        for runs in given.runs:
            folder = (given.folder or Path(name)) / f"lists-{runs}"
            if not folder.exists():
                fill(folder / "data", runs, given.metrics)
            started = time.perf_counter()
            server = Tensormeter(folder)
            console.print(f"start: {time.perf_counter() - started:.1f} s, {server.rss():.0f} MiB resident")
            table = Table("", "first", "later", "bytes", "MiB", title="Processor time per request, in milliseconds")
            try:
                for what, path, parameters in requests(runs, given.metrics):
                    try:
                        first, later, size = measure(server, path, parameters, given.repeat)
                    except AssertionError as error:
                        table.add_row(what, str(error)[:80])
                        continue
                    console.print(f"{what}: {first:.0f}, {later:.0f} ms")
                    table.add_row(what, f"{first:.0f}", f"{later:.0f}", f"{size:,}", f"{server.rss():.0f}")
            finally:
                console.print(table)
                server.stop()
    console.print(f"{platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
