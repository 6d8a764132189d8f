"""Times and memory of the web page by width: `benchmarks/page_width.py --help`.

For runs with more and more metrics: seconds from navigation to the first chart, and from the last keystroke in the search
field to the chart that it finds. For projects with more and more runs: seconds to the first rows, and from a filter to
its rows. Each page is opened in a new browser context. The heap is that of JavaScript after garbage collection, with
arrays.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ui"))

from live_server import CHROMIUM, FLAGS, LiveServer
from sample_runs import SECOND

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

VIEWPORT = {"width": 1600, "height": 900}
PATIENCE_MS = 180_000
POINTS = 10
METRICS_PER_REQUEST = 5_000
RUNS_PER_REQUEST = 1_000


@dataclass
class Reading:
    """One load of a page.

    Attributes:
        first: Seconds from navigation to the first chart or row.
        search: Seconds from a search to its result.
        received: Bytes received until the search.
        heap: Size of the JavaScript heap in bytes after the search.
    """

    first: float
    search: float
    received: float
    heap: float


def metric_name(number: int) -> str:
    """Return the name of a metric: sections of 50, as the norms of a large model's parameters have them."""
    return f"layer_{number // 50:05}/param_{number % 50:02}/grad_norm"


def send_run(server: LiveServer, metrics: int) -> None:
    """Send a run of this many metrics, in the project `width`."""
    run = f"m{metrics}"
    resource = {"service.name": "width", "service.instance.id": run, "tensormeter.run.id": run}
    times = np.uint64(time.time_ns() - 3600 * SECOND) + np.arange(POINTS, dtype=np.uint64) * np.uint64(SECOND)
    for first in range(0, metrics, METRICS_PER_REQUEST):
        numbers = range(first, min(first + METRICS_PER_REQUEST, metrics))
        at = times + np.uint64(first)
        series: list[Any] = [Gauge(STEP_METRIC, at, np.arange(POINTS))]
        series += [Gauge(metric_name(number), at, np.arange(POINTS) * 0.1 + number) for number in numbers]
        server.post("/v1/metrics", encode_metrics([Batch(resource, series)]))


def send_project(server: LiveServer, runs: int) -> None:
    """Send a project of this many runs, with a configuration and three metrics each."""
    project = f"r{runs}"
    began = time.time_ns() - 10**6 * SECOND
    for first in range(0, runs, RUNS_PER_REQUEST):
        points, events = [], b""
        for number in range(first, min(first + RUNS_PER_REQUEST, runs)):
            at = began + number * SECOND
            resource = {
                "service.name": project,
                "service.instance.id": f"{project}-{number}",
                "tensormeter.run.id": f"{project}-{number}",
                "tensormeter.run.name": f"sweep {number:06}",
            }
            config = {"config": {"seed": number, "lr": 1 / (number + 1), "width": 2 ** (number % 5)}}
            # Concatenated protobuf messages are one message with the entries of all.
            events += encode_events(
                resource,
                [
                    Event("tensormeter.run.start", at, config),
                    Event("tensormeter.run.end", at + 100, {"state": "finished"}),
                ],
            )
            times = np.array([at + 1], np.uint64)
            names = ("train/loss", "eval/loss", "eval/accuracy")
            values = [Gauge(name, times, np.array([number % 97 / 97])) for name in names]
            points.append(Batch(resource, [Gauge(STEP_METRIC, times, np.array([1])), *values]))
        server.post("/v1/logs", events)
        server.post("/v1/metrics", encode_metrics(points))


def open_run(page: Page, url: str, metrics: int) -> tuple[float, float]:
    """Return the seconds to the first chart of a run and those of a search."""
    began = time.perf_counter()
    page.goto(f"{url}/#/p/width/runs/m{metrics}", wait_until="commit")
    page.wait_for_function("() => document.querySelector('.card[data-drawn]')", timeout=PATIENCE_MS)
    first = time.perf_counter() - began
    page.wait_for_timeout(2000)
    name = metric_name(metrics * 2 // 3)
    began = time.perf_counter()
    page.get_by_label("Search charts").fill(name)
    found = f"() => document.querySelectorAll('.card').length === 1 && document.querySelector('.card[aria-label=\"{name}\"]')"
    page.wait_for_function(found, timeout=PATIENCE_MS)
    return first, time.perf_counter() - began


def open_project(page: Page, url: str, runs: int) -> tuple[float, float]:
    """Return the seconds to the first rows of a project and those of a filter."""
    began = time.perf_counter()
    page.goto(f"{url}/#/p/r{runs}", wait_until="commit")
    page.wait_for_function("() => document.querySelector('.rows .row:not(.waiting) a')", timeout=PATIENCE_MS)
    first = time.perf_counter() - began
    page.wait_for_timeout(2000)
    began = time.perf_counter()
    page.get_by_label("Filter runs").fill(f"config.seed = {runs * 2 // 3}")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('footer').textContent.startsWith('1 run')", timeout=PATIENCE_MS
    )
    return first, time.perf_counter() - began


def measure(browser: Browser, load: Callable[[Page], tuple[float, float]]) -> Reading:
    """Open a page in a new browser context, and read its times and its heap."""
    context = browser.new_context(viewport=VIEWPORT)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    received: list[float] = []
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    first, search = load(page)
    page.wait_for_timeout(500)
    session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    context.close()
    return Reading(first, search, sum(received), usage["usedSize"] + usage.get("backingStorageSize", 0))


def show(title: str, readings: dict[int, Sequence[Reading]], first: str, search: str) -> Table:
    """Return a table of the medians."""
    table = Table(title=title)
    for column in ("", first, search, "received, KiB", "heap, MiB"):
        table.add_column(column, justify="right")
    for size, taken in readings.items():
        middle = {
            name: statistics.median(getattr(reading, name) for reading in taken) for name in Reading.__annotations__
        }
        table.add_row(
            f"{size:,}",
            f"{middle['first']:.2f}",
            f"{middle['search']:.3f}",
            f"{middle['received'] / 1024:,.0f}",
            f"{middle['heap'] / 2**20:.1f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--metrics", type=int, nargs="*", default=[100, 10_000, 100_000])
    parser.add_argument("--runs", type=int, nargs="*", default=[100, 100_000])
    arguments = parser.parse_args()
    if CHROMIUM is None:
        print("page_width: needs Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    console = Console(width=120)
    folder = Path(tempfile.mkdtemp(prefix="tensormeter-page-"))
    server = LiveServer(folder)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            runs: dict[int, Sequence[Reading]] = {}
            for metrics in arguments.metrics:
                send_run(server, metrics)
                runs[metrics] = [
                    measure(browser, lambda page, n=metrics: open_run(page, server.url, n))  # type: ignore[misc]
                    for _ in range(arguments.repeat)
                ]
            if runs:
                console.print(show("metrics of a run", runs, "first chart, s", "search, s"))
            projects: dict[int, Sequence[Reading]] = {}
            for number in arguments.runs:
                send_project(server, number)
                projects[number] = [
                    measure(browser, lambda page, n=number: open_project(page, server.url, n))  # type: ignore[misc]
                    for _ in range(arguments.repeat)
                ]
            if projects:
                console.print(show("runs of a project", projects, "first rows, s", "filter, s"))
            browser.close()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
