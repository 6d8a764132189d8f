"""Load times of the web page in a real browser, compared with TensorBoard and MLflow: `benchmarks/page.py --help`.

All contenders show the same runs. They take turns, each in a separate browser context. Times are measured from navigation
to the first chart with a curve, and to the last visible chart. The pages arrange charts differently, so the table also
shows the number of drawn charts.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ui"))

from live_server import CHROMIUM, FLAGS, LiveServer
from sample_runs import SECOND, Sender

VIEWPORT = {"width": 1600, "height": 900}
PATIENCE_MS = 180_000
LOADING_S = 600
"""Maximum seconds to ingest the runs. A contender that takes longer is skipped, and its progress is printed."""


@dataclass(frozen=True)
class Shape:
    """Amount of data that a page shows."""

    runs: int
    metrics: int
    points: int

    def __str__(self) -> str:
        return f"{self.metrics} charts x {self.runs} runs x {self.points} points"

    def curve(self, run: int, metric: int) -> np.ndarray:
        rng = np.random.default_rng(run * 1000 + metric)
        x = np.linspace(0, 5, self.points)
        return np.exp(-x * (0.5 + rng.random())) + 0.05 * rng.standard_normal(self.points)


@dataclass
class Reading:
    """Result of loading a page once.

    Attributes:
        first: Seconds until the first chart was drawn.
        visible: Seconds until all visible charts were drawn.
        charts: Number of drawn charts.
        bytes: Bytes received over the network.
        heap: Size of the JavaScript heap in bytes, including arrays, after garbage collection.
    """

    first: float
    visible: float
    charts: int
    bytes: float
    heap: float


class Contender:
    """A web page to measure, and the runs of a `Shape` that it shows."""

    name = ""
    url = ""
    chart = ""
    """JavaScript expression for the number of charts with a curve."""
    pending = ""
    """JavaScript expression for the number of visible charts without a curve."""


class Tensormeter(Contender):
    name = "tensormeter"
    chart = "document.querySelectorAll('.card[data-drawn]').length"
    pending = (
        "[...document.querySelectorAll('.card')].filter((card) => card.getBoundingClientRect().top < innerHeight"
        " && !card.dataset.drawn).length"
    )

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.server = LiveServer(folder)
        began = time.time_ns() - shape.points * SECOND
        steps = np.arange(shape.points, dtype=np.int64)
        for run in range(shape.runs):
            sender = Sender(self.server.post, "bench", f"run{run:03}", f"run {run:03}")
            sender.event("run.start", began, {"config": {"seed": run}})
            for first in range(0, shape.metrics, 50):
                names = range(first, min(first + 50, shape.metrics))
                columns = {f"train/metric{metric:03}": shape.curve(run, metric) for metric in names}
                # Each request repeats the steps, so shift its times by a few nanoseconds to keep the points distinct.
                sender.rows(began + steps * SECOND + first, steps, columns)
        ids = ",".join(f"run{run:03}" for run in range(shape.runs))
        self.url = f"{self.server.url}/#/p/bench/runs/{ids}"

    def close(self) -> None:
        self.server.stop()


class TensorBoard(Contender):
    name = "TensorBoard"
    chart = "[...document.querySelectorAll('scalar-card line-chart')].filter((e) => e.querySelector('canvas, svg path')).length"
    pending = (
        "[...document.querySelectorAll('card-view')].filter((card) => card.getBoundingClientRect().top < innerHeight"
        " && card.getBoundingClientRect().height > 0 && !card.querySelector('line-chart canvas, line-chart svg path')).length"
    )

    def __init__(self, shape: Shape, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        began = time.monotonic()
        for run in range(shape.runs):
            _in_time(began, run, shape)
            writer = EventFileWriter(str(folder / f"run{run:03}"))
            for metric in range(shape.metrics):
                for step, value in enumerate(shape.curve(run, metric).tolist()):
                    summary = Summary(value=[Summary.Value(tag=f"train/metric{metric:03}", simple_value=value)])
                    writer.add_event(Event(wall_time=step, step=step, summary=summary))
            writer.close()
        port = _free_port()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
        command += ["--samples_per_plugin", f"scalars={shape.points}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}/#timeseries"
        tags = f"http://127.0.0.1:{port}/data/plugin/timeseries/tags"
        try:
            _wait(
                lambda: len(_json(tags).get("scalars", {}).get("runTagInfo", {})) == shape.runs, "TensorBoard to load"
            )
        except TimeoutError:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class MLflow(Contender):
    name = "MLflow"
    chart = "[...document.querySelectorAll('.js-plotly-plot')].filter((e) => e.querySelector('.scatterlayer path, canvas')).length"
    pending = "document.querySelectorAll('[role=progressbar], .ant-spin-spinning').length"

    def __init__(self, shape: Shape, folder: Path) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        store = f"sqlite:///{folder}/mlflow.db"
        client = MlflowClient(tracking_uri=store)
        experiment = client.create_experiment("bench", artifact_location=str(folder / "artifacts"))
        began = time.monotonic()
        for run in range(shape.runs):
            _in_time(began, run, shape)
            run_id = client.create_run(experiment, run_name=f"run {run:03}").info.run_id
            points = [
                Metric(f"train/metric{metric:03}", value, step, step)
                for metric in range(shape.metrics)
                for step, value in enumerate(shape.curve(run, metric).tolist())
            ]
            for first in range(0, len(points), 1000):
                client.log_batch(run_id, points[first : first + 1000])
            client.set_terminated(run_id)
        port = _free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        _wait(lambda: _ok(f"http://127.0.0.1:{port}/health"), "MLflow to start")
        self.url = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?compareRunsMode=CHART"

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def measure(browser: Browser, contender: Any) -> Reading:
    """Load a contender's page once, in a new browser context."""
    context = browser.new_context(viewport=VIEWPORT)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    received = 0.0

    def count(event: dict[str, Any]) -> None:
        nonlocal received
        received += event["encodedDataLength"]

    session.on("Network.loadingFinished", count)
    began = time.perf_counter()
    page.goto(contender.url, wait_until="commit")
    page.wait_for_function(f"() => {contender.chart} > 0", timeout=PATIENCE_MS)
    first = time.perf_counter() - began
    page.wait_for_function(f"() => {contender.chart} > 0 && {contender.pending} === 0", timeout=PATIENCE_MS)
    visible = time.perf_counter() - began
    charts = page.evaluate(contender.chart)
    page.wait_for_timeout(500)
    session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    # V8's used size excludes arrays of numbers.
    heap = usage["usedSize"] + usage.get("backingStorageSize", 0)
    context.close()
    return Reading(first, visible, charts, received, heap)


def live_update(browser: Browser, contender: Tensormeter, shape: Shape) -> tuple[float, float]:
    """Measure an update with ten new points of each metric in each of ten runs.

    Return the bytes received, including those of the stream, and the busy time of the page's main thread in milliseconds.
    """
    context = browser.new_context(viewport=VIEWPORT)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Performance.enable")
    streams: set[str] = set()
    waiting: set[str] = set()
    sizes: list[float] = []

    def begin(event: dict[str, Any]) -> None:
        (streams if "/stream?" in event["request"]["url"] else waiting).add(event["requestId"])

    def end(event: dict[str, Any]) -> None:
        waiting.discard(event["requestId"])
        sizes.append(event.get("encodedDataLength", 0))

    def receive(event: dict[str, Any]) -> None:
        if event["requestId"] in streams:
            sizes.append(event["encodedDataLength"])

    session.on("Network.requestWillBeSent", begin)
    session.on("Network.loadingFinished", end)
    session.on("Network.loadingFailed", end)
    session.on("Network.dataReceived", receive)
    page.goto(contender.url)
    page.wait_for_function(f"() => {contender.chart} > 0 && {contender.pending} === 0", timeout=PATIENCE_MS)
    # Wait for requests that follow the first drawing, because they do not belong to the update.
    calm = 0
    while calm < 10:
        page.wait_for_timeout(250)
        calm = 0 if waiting else calm + 1
    sizes.clear()

    def busy() -> float:
        metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    before = busy()
    steps = np.arange(shape.points, shape.points + 10, dtype=np.int64)
    columns = {f"train/metric{metric:03}": np.ones(10) for metric in range(shape.metrics)}
    for run in range(min(10, shape.runs)):
        sender = Sender(contender.server.post, "bench", f"run{run:03}", f"run {run:03}")
        sender.rows(time.time_ns() + steps, steps, columns)
    page.wait_for_timeout(6000)
    cost = (busy() - before) * 1000
    context.close()
    return sum(sizes), cost


def scroll_runs(browser: Browser, folder: Path, runs: int) -> tuple[float, float]:
    """Return the median and 99th percentile of the milliseconds between frames while scrolling a table of runs."""
    server = LiveServer(folder)
    now = time.time_ns()
    for run in range(runs):
        sender = Sender(server.post, "many", f"m{run:05}", f"run {run:05}")
        sender.event("run.start", now - run * SECOND, {"config": {"seed": run, "lr": 1 / (run + 1)}})
    context = browser.new_context(viewport=VIEWPORT)
    page = context.new_page()
    page.goto(f"{server.url}/#/p/many?columns=state,config.seed,config.lr,started,tags,notes")
    page.get_by_text(f"{runs:,} runs").wait_for(timeout=PATIENCE_MS)
    frames = page.evaluate(
        """() => new Promise((done) => {
            const grid = document.querySelector('[role=grid]');
            const times = [];
            let last = performance.now();
            const frame = (now) => {
                times.push(now - last);
                last = now;
                grid.scrollTop += 120;
                if (times.length < 600) requestAnimationFrame(frame);
                else done(times.slice(10));
            };
            requestAnimationFrame(frame);
        })"""
    )
    context.close()
    server.stop()
    return float(np.median(frames)), float(np.percentile(frames, 99))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ok(url: str) -> bool:
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        return urllib3.request("GET", url, retries=False, timeout=5).status == 200
    return False


def _json(url: str) -> dict[str, Any]:
    with contextlib.suppress(urllib3.exceptions.HTTPError, json.JSONDecodeError):
        return dict(json.loads(urllib3.request("GET", url, retries=False, timeout=60).data))
    return {}


def _in_time(began: float, runs: int, shape: Shape) -> None:
    if time.monotonic() - began > LOADING_S:
        raise TimeoutError(
            f"ingested {runs} of {shape.runs} runs in {LOADING_S} s, {runs * shape.metrics * shape.points:,} points"
        )


def _wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LOADING_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {LOADING_S} s for {what}")
        time.sleep(0.5)


def _contenders(shape: Shape, folder: Path, names: list[str]) -> Iterator[Any]:
    for kind in (Tensormeter, TensorBoard, MLflow):
        if kind.name.lower() not in names:
            continue
        try:
            yield kind(shape, folder / kind.name)
        except (ImportError, TimeoutError) as error:
            print(f"skipping {kind.name}: {error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["tensormeter", "tensorboard", "mlflow"])
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("METRICS", "RUNS", "POINTS"))
    parser.add_argument(
        "--table", type=int, default=10_000, help="number of runs in the table to scroll; 0 skips this measurement"
    )
    arguments = parser.parse_args()
    shapes = [
        Shape(runs, metrics, points) for metrics, runs, points in arguments.shape or [(50, 10, 1000), (300, 100, 100)]
    ]
    console = Console(width=120)
    if CHROMIUM is None:
        print("page: needs Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="tensormeter-page-"))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for number, shape in enumerate(shapes):
                contenders = list(_contenders(shape, folder / str(number), arguments.only))
                readings: dict[str, list[Reading]] = {contender.name: [] for contender in contenders}
                for _ in range(arguments.repeat):
                    for contender in contenders:
                        try:
                            readings[contender.name].append(measure(browser, contender))
                        except Exception as error:
                            print(f"{contender.name}: {str(error).splitlines()[0]}", file=sys.stderr)
                console.print(_table(shape, readings))
                for contender in contenders:
                    if isinstance(contender, Tensormeter):
                        size, cost = live_update(browser, contender, shape)
                        console.print(
                            f"live update of tensormeter: {size / 1024:.0f} KiB, {cost:.0f} ms on the main thread"
                        )
                    contender.close()
            if arguments.table:
                median, worst = scroll_runs(browser, folder / "table", arguments.table)
                console.print(
                    f"scrolling a table of {arguments.table:,} runs: {median:.1f} ms per frame, p99 {worst:.1f} ms"
                )
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _table(shape: Shape, readings: dict[str, list[Reading]]) -> Table:
    table = Table(title=f"{shape}, {VIEWPORT['width']} x {VIEWPORT['height']} pixels, medians over all loads")
    for column in (
        "",
        "loads",
        "first chart, s",
        "all visible charts, s",
        "charts drawn",
        "received, KiB",
        "heap, MiB",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in readings.items():
        if not taken:
            table.add_row(name, "0", "-", "-", "-", "-", "-")
            continue

        def middle(field: str, taken: list[Reading] = taken) -> float:
            return statistics.median(getattr(reading, field) for reading in taken)

        table.add_row(
            name,
            str(len(taken)),
            f"{middle('first'):.2f}",
            f"{middle('visible'):.2f}",
            f"{middle('charts'):.0f}",
            f"{middle('bytes') / 1024:.0f}",
            f"{middle('heap') / 2**20:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
