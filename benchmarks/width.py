"""Wide and irregular rows: `benchmarks/width.py --help`.

Compares tensormeter, which delivers to its server, with wandb (offline), trackio, TensorBoard and MLflow. Each contender logs
the same rows in a separate process. The table shows the time in the loop, the time until everything is stored, how many of
the logged values can be read back, the disk space, and the time from navigation to the first chart for contenders with a page.
A loop is stopped after `--limit` seconds; the table then shows how far it came.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from contenders import CONTENDERS, Log
from report import print_on_machine
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ui"))

NAMES = ("tensormeter", "wandb, offline", "trackio", "tensorboard", "mlflow, async")
SETTLE_S = 180
"""Maximum seconds for a contender to store everything after the loop."""
PATIENCE_MS = 120_000

Rows = Iterator[dict[str, float]]


def some_missing(scale: float) -> Rows:
    """Rows that each contain a random nine tenths of 300 names."""
    draw, names = random.Random(1).random, [f"info/achievement_{number:03}" for number in range(300)]
    for step in range(round(1000 * scale)):
        yield {name: step + 0.5 for name in names if draw() < 0.9}


def halves(scale: float) -> Rows:
    """Rows that each contain a random half of 22 names."""
    draw, names = random.Random(2).random, [f"reward/kind_of_event_{number:02}" for number in range(22)]
    for step in range(round(30_000 * scale)):
        yield {name: step + 0.5 for name in names if draw() < 0.5} or {names[0]: step + 0.5}


def wide(scale: float) -> Rows:
    """10,000 values in each row."""
    names = [f"layers/{number // 100:03}/expert_{number % 100:02}/norm" for number in range(10_000)]
    for step in range(max(1, round(60 * scale))):
        yield dict.fromkeys(names, step + 0.5)


def once(scale: float, names: int = 100_000) -> Rows:
    """100,000 names, each logged once, 1,000 in a row."""
    for first in range(0, max(1000, round(names * scale)), 1000):
        yield {f"layers/{number // 100:04}/param_{number % 100:02}/norm": 0.5 for number in range(first, first + 1000)}


def most(scale: float) -> Rows:
    """500,000 names, each logged once, 1,000 in a row."""
    return once(scale, 500_000)


WORKLOADS: dict[str, Callable[[float], Rows]] = {
    "300 names, a tenth missing": some_missing,
    "22 names by halves": halves,
    "10,000 values a row": wide,
    "100,000 names once": once,
    "500,000 names": most,
}


@dataclass
class Result:
    """The result of a contender for a workload.

    Attributes:
        logged: Number of values that the loop logged, of `total`.
        loop: Seconds in the loop.
        stored: Seconds until everything was stored; None if it was not within the limit.
        kept: Number of values that can be read back.
        disk: Bytes on disk.
        chart: Seconds to the first chart; None without a page or a chart.
    """

    total: int
    logged: int
    loop: float
    stored: float | None
    kept: int
    disk: int
    chart: float | None = None


@contextlib.contextmanager
def _tensormeter_to_its_server(folder: Path) -> Iterator[Log]:
    import tensormeter

    settings = {"directory": folder / "runs", "sample_interval": 0.0}
    with tensormeter.init("bench", id="wide", settings=settings) as run:
        yield lambda values, step: run.log(values, step)  # noqa: PLW0108 - as scripts look it up


def run_loop(contender: str, workload: str, scale: float, limit: float, folder: Path) -> None:
    """Log a workload, and print the number of values and the seconds as JSON. It runs in a separate process."""
    rows = [*WORKLOADS[workload](scale)]
    logged, began = 0, time.perf_counter()
    contexts = CONTENDERS | {"tensormeter": _tensormeter_to_its_server}
    with contexts[contender](folder) as log:
        began = time.perf_counter()
        for step, row in enumerate(rows):
            log(row, step)
            logged += len(row)
            if time.perf_counter() - began > limit:
                break
        loop = time.perf_counter() - began
        print(json.dumps({"logged": logged, "loop": loop}), flush=True)
    print(json.dumps({"stored": time.perf_counter() - began}), flush=True)


def measure(contender: str, workload: str, scale: float, limit: float, *, pages: bool) -> Result:
    """Run a contender on a workload."""
    total = sum(map(len, WORKLOADS[workload](scale)))
    with tempfile.TemporaryDirectory(prefix="width-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(_server(folder / "server")) if contender == "tensormeter" else None
        command = [sys.executable, __file__, "--child", contender, workload, str(scale), str(limit), name]
        environment = os.environ | (
            {} if server is None else {"TENSORMETER_ENDPOINT": server, "TENSORMETER_FINISH_TIMEOUT": str(SETTLE_S)}
        )
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit + SETTLE_S + 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        told: dict[str, float] = {}
        for line in output.splitlines():
            if line.startswith("{"):
                told |= json.loads(line)
        if "loop" not in told:
            return Result(total, 0, float("nan"), None, 0, 0)
        kept = _KEPT[contender](folder if server is None else server)
        disk = _size(folder / "server" if server is not None else folder)
        chart = None
        if pages and contender in _PAGES:
            with (
                contextlib.suppress(Exception),
                _PAGES[contender](folder if server is None else server) as (url, drawn),
            ):
                chart = _first_chart(url, drawn)
        return Result(total, int(told["logged"]), told["loop"], told.get("stored"), kept, disk, chart)


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    from live_server import LiveServer

    server = LiveServer(folder)
    try:
        yield server.url
    finally:
        server.stop()


def _size(folder: Path) -> int:
    # A server reserves space for a full disk.
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "reserve")
    return sum(path.stat().st_blocks * 512 for path in files)


def _kept_by_tensormeter(url: str) -> int:
    with urllib.request.urlopen(f"{url}/api/v1/runs/wide?project=bench") as answer:
        summary = json.loads(answer.read())["summary"]
    return sum(entry["count"] for name, entry in summary.items() if name.partition("/")[0] in _SECTIONS)


_SECTIONS = ("info", "reward", "layers")


def _kept_by_wandb(folder: Path) -> int:
    from support.wandb_records import records, rows

    kept = 0
    for path in folder.rglob("*.wandb"):
        kept += sum(name.partition("/")[0] in _SECTIONS for row in rows(records(path)) for name in row)
    return kept


def _kept_by_trackio(folder: Path) -> int:
    kept = 0
    for path in folder.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.Error):
            for (metrics,) in connection.execute("SELECT metrics FROM metrics"):
                kept += sum(name.partition("/")[0] in _SECTIONS for name in json.loads(metrics))
    return kept


def _kept_by_tensorboard(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return sum(
        sum(value.tag.partition("/")[0] in _SECTIONS for value in event.summary.value)
        for path in folder.rglob("events.out.tfevents.*")
        for event in LegacyEventFileLoader(str(path)).Load()
    )


def _kept_by_mlflow(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        kept: int = connection.execute("SELECT count(*) FROM metrics").fetchone()[0]
    return kept


_KEPT: dict[str, Callable[[Any], int]] = {
    "tensormeter": _kept_by_tensormeter,
    "wandb, offline": _kept_by_wandb,
    "trackio": _kept_by_trackio,
    "tensorboard": _kept_by_tensorboard,
    "mlflow, async": _kept_by_mlflow,
}


@contextlib.contextmanager
def _page_of_tensormeter(url: str) -> Iterator[tuple[str, str]]:
    yield f"{url}/#/p/bench/runs/wide", "document.querySelectorAll('.card[data-drawn]').length"


@contextlib.contextmanager
def _page_of_tensorboard(folder: Path) -> Iterator[tuple[str, str]]:
    from page import TensorBoard, _free_port

    port = _free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "tensorboard"), "--port", str(port)]
    with _process(command, f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}/#timeseries", TensorBoard.chart


@contextlib.contextmanager
def _page_of_mlflow(folder: Path) -> Iterator[tuple[str, str]]:
    from page import MLflow, _free_port

    port, store = _free_port(), f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        experiment = connection.execute("SELECT experiment_id FROM experiments WHERE name = 'bench'").fetchone()[0]
    with _process(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?compareRunsMode=CHART", MLflow.chart


@contextlib.contextmanager
def _process(command: list[str], url: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


_PAGES: dict[str, Callable[[Any], contextlib.AbstractContextManager[tuple[str, str]]]] = {
    "tensormeter": _page_of_tensormeter,
    "tensorboard": _page_of_tensorboard,
    "mlflow, async": _page_of_mlflow,
}


def _first_chart(url: str, drawn: str) -> float:
    from live_server import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, _killing_browsers(2 * PATIENCE_MS / 1000):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        began = time.perf_counter()
        page.goto(url, wait_until="commit")
        page.wait_for_function(f"() => {drawn} > 0", timeout=PATIENCE_MS)
        first = time.perf_counter() - began
        browser.close()
    return first


@contextlib.contextmanager
def _killing_browsers(seconds: float) -> Iterator[None]:
    """Kill this process's browsers after some seconds. A page that computes without end also blocks their closing."""

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "chrom" in process.name():
                    process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def show(workload: str, results: dict[str, Result]) -> None:
    """Print the results of a workload."""
    total = next(iter(results.values())).total
    table = Table(title=f"{workload}: {total:,} values")
    for column in ("", "loop", "stored", "logged", "kept", "disk, bytes a value", "first chart"):
        table.add_column(column, justify="right" if column else "left")
    for contender, result in results.items():
        table.add_row(
            contender,
            f"{result.loop:.2f} s",
            "-" if result.stored is None else f"{result.stored:.1f} s",
            f"{result.logged / total:.1%}",
            f"{result.kept / total:.1%}",
            f"{result.disk / result.kept:.0f}" if result.kept else "-",
            "-" if result.chart is None else f"{result.chart:.1f} s",
        )
    print_on_machine(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="default: all")
    parser.add_argument("--contender", choices=NAMES, action="append", help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows; 0.001 shows how the times grow")
    parser.add_argument("--limit", type=float, default=120.0, help="maximum seconds of a loop")
    parser.add_argument("--no-pages", action="store_true", help="do not load pages in a browser")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        contender, workload, scale, limit, folder = options.child
        run_loop(contender, workload, float(scale), float(limit), Path(folder))
        return
    for workload in options.workload or WORKLOADS:
        results = {
            contender: measure(contender, workload, options.scale, options.limit, pages=not options.no_pages)
            for contender in options.contender or NAMES
        }
        show(workload, results)


if __name__ == "__main__":
    main()
