"""A common interface to the servers of tensormeter, MLflow and trackio, which run as real processes and respond over HTTP.

A batch consists of rows of one run. Each row has a time, a step and the same metrics.
"""

import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import urllib3
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

T0 = 1_750_000_000_000_000_000
PROTOBUF = {"Content-Type": "application/x-protobuf"}
COLUMNS = {"Accept": "application/vnd.tensormeter.columns"}
PROJECT = "bench"


class Server(ABC):
    """A server with a separate process and folder."""

    name: ClassVar[str]
    batch_rows: ClassVar[int]
    """Number of rows with 100 metrics that fit into one request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http = urllib3.PoolManager(maxsize=16, retries=False, timeout=600)
        self.url = ""
        self.process = self.launch()

    @abstractmethod
    def launch(self) -> subprocess.Popen[str]:
        """Start the process, wait until it responds, and set `url`."""

    @abstractmethod
    def prepare(self, run: str, config: dict[str, float]) -> None:
        """Create a run."""

    @abstractmethod
    def encode(self, run: str, first: int, columns: dict[str, NDArray[np.float64]]) -> list[tuple[str, bytes]]:
        """Return requests, as paths and bodies, for rows that start at step `first`. Encoding is not measured."""

    @abstractmethod
    def chart(self, run: str, metrics: Sequence[str], most: int, x: str = "step") -> None:
        """Request metrics of a run, reduced to `most` points if the server supports this."""

    @abstractmethod
    def page(self, sort: str) -> None:
        """Request the first 50 runs of the project, sorted by `sort` if the server supports this."""

    def send(self, path: str, body: bytes) -> None:
        """Send a request, and retry while the server is overloaded."""
        while True:
            answer = self.http.request("POST", self.url + path, body=body, headers=self.headers())
            if answer.status not in (429, 503):
                break
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        assert answer.status == 200, answer.data[:500]

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"}

    def rss(self) -> float:
        """Return the resident memory of all the server's processes in MiB."""
        root = psutil.Process(self.process.pid)
        total = 0
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 2**20

    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in (self.folder / "data").rglob("*") if file.is_file())

    def stop(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.terminate()
        self.process.wait(300)
        for child in children:
            with suppress(psutil.Error):
                child.terminate()
        psutil.wait_procs(children, 60)
        if self.process.stdout is not None:
            self.process.stdout.close()


def columns_of(first: int, n: int, metrics: int) -> dict[str, NDArray[np.float64]]:
    """Return a noisy loss curve with float32 precision for each metric."""
    chaos = np.random.default_rng(first)
    curve = np.exp(-np.arange(first, first + n) / 2e4)
    noise = chaos.standard_normal((metrics, n)) * 0.05
    return {f"m{i}": (curve + noise[i]).astype(np.float32).astype(np.float64) for i in range(metrics)}


def times_of(first: int, n: int) -> NDArray[np.uint64]:
    """Return jittered times about 10 ms apart, in nanoseconds since the Unix epoch."""
    steps = np.arange(first, first + n)
    return (T0 + steps * 10**7 + np.random.default_rng(first).integers(0, 10**6, n)).astype(np.uint64)


class Tensormeter(Server):
    name = "tensormeter"
    batch_rows = 500

    def launch(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tensormeter",
                "serve",
                "--port",
                "0",
                "--data",
                str(self.folder / "data"),
                *self.arguments(),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TENSORMETER_DIR": str(self.folder / "runs")},
        )
        assert process.stdout is not None
        self.url = process.stdout.readline().split()[3]
        return process

    def arguments(self) -> list[str]:
        """Return further arguments of `tensormeter serve`."""
        return []

    def headers(self) -> dict[str, str]:
        return PROTOBUF

    def prepare(self, run: str, config: dict[str, float]) -> None:
        self.send("/v1/logs", self.start(run, config))

    @staticmethod
    def start(run: str, config: dict[str, float]) -> bytes:
        """Return the request that starts a run."""
        return encode_events(_resource(run), [Event("tensormeter.run.start", T0, {"config": config})])

    def encode(self, run: str, first: int, columns: dict[str, NDArray[np.float64]]) -> list[tuple[str, bytes]]:
        return [("/v1/metrics", encode_metrics([self.batch(run, first, columns)]))]

    @staticmethod
    def batch(run: str, first: int, columns: dict[str, NDArray[np.float64]]) -> Batch:
        n = len(next(iter(columns.values())))
        times = times_of(first, n)
        gauges = [Gauge(STEP_METRIC, times, np.arange(first, first + n))]
        return Batch(_resource(run), gauges + [Gauge(name, times, values) for name, values in columns.items()])

    def chart(self, run: str, metrics: Sequence[str], most: int, x: str = "step") -> None:
        query = json.dumps({"runs": [run], "metrics": [*metrics], "x": x, "max_points": most})
        answer = self.http.request("POST", f"{self.url}/api/v1/query", body=query, headers=COLUMNS)
        assert answer.status == 200, answer.data[:500]

    def page(self, sort: str, filter_text: str = "") -> None:
        fields = {
            "project": PROJECT,
            "sort": sort,
            "limit": "50",
            "fields": "config.lr,summary.m0",
            "filter": filter_text,
        }
        answer = self.http.request("GET", f"{self.url}/api/v1/runs", fields=fields)
        assert answer.status == 200, answer.data[:500]


class Mlflow(Server):
    """The server that `mlflow server` starts, on SQLite with one worker. A request can contain 1,000 values."""

    name = "MLflow"
    batch_rows = 10

    def launch(self) -> subprocess.Popen[str]:
        (self.folder / "data").mkdir(parents=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        store = f"sqlite:///{self.folder / 'data' / 'mlflow.db'}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=self.folder)
        _wait_for(self.http, f"{self.url}/health", process)
        self._runs: dict[str, str] = {}
        self._experiment = self._call("experiments/create", {"name": PROJECT})["experiment_id"]
        return process

    def _call(self, path: str, document: dict[str, object]) -> dict[str, str]:
        answer = self.http.request(
            "POST", f"{self.url}/api/2.0/mlflow/{path}", body=json.dumps(document), headers=self.headers()
        )
        assert answer.status == 200, answer.data[:500]
        reply: dict[str, str] = json.loads(answer.data)
        return reply

    def prepare(self, run: str, config: dict[str, float]) -> None:
        made: dict[str, dict[str, dict[str, str]]] = self._call(  # type: ignore[assignment]
            "runs/create", {"experiment_id": self._experiment, "run_name": run, "start_time": T0 // 10**6}
        )
        self._runs[run] = made["run"]["info"]["run_id"]
        params = [{"key": key, "value": str(value)} for key, value in config.items()]
        self._call("runs/log-batch", {"run_id": self._runs[run], "params": params})

    def encode(self, run: str, first: int, columns: dict[str, NDArray[np.float64]]) -> list[tuple[str, bytes]]:
        n = len(next(iter(columns.values())))
        times = (times_of(first, n) // 10**6).tolist()
        rows = [
            {"key": name, "value": values[i], "timestamp": times[i], "step": first + i}
            for name, values in ((name, column.tolist()) for name, column in columns.items())
            for i in range(n)
        ]
        parts = (rows[i : i + 1000] for i in range(0, len(rows), 1000))
        return [
            ("/api/2.0/mlflow/runs/log-batch", json.dumps({"run_id": self._runs[run], "metrics": part}).encode())
            for part in parts
        ]

    def chart(self, run: str, metrics: Sequence[str], most: int, x: str = "step") -> None:
        # MLflow's page sends the same request, which reads up to 25,000 points per metric, sampled by step.
        for metric in metrics:
            fields = {"run_ids": self._runs[run], "metric_key": metric, "max_results": str(most)}
            answer = self.http.request(
                "GET", f"{self.url}/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", fields=fields
            )
            assert answer.status == 200, answer.data[:500]

    def page(self, sort: str) -> None:
        self._call(
            "runs/search", {"experiment_ids": [self._experiment], "order_by": ["metrics.m0 DESC"], "max_results": 50}
        )


class Trackio(Server):
    """The server that `trackio.show` starts. A request can have any size. The list of runs has no pages and cannot be sorted."""

    name = "trackio"
    batch_rows = 500

    def launch(self) -> subprocess.Popen[str]:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        script = (
            "import trackio;"
            f"trackio.show({PROJECT!r}, host='127.0.0.1', server_port={port}, open_browser=False, block_thread=True)"
        )
        environment = os.environ | {"TRACKIO_DIR": str(self.folder / "data"), "TRACKIO_WRITE_TOKEN": "bench"}
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", script], stdout=log, stderr=log, text=True, env=environment, cwd=self.folder
            )
        _wait_for(self.http, f"{self.url}/", process)
        return process

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "X-Trackio-Write-Token": "bench"}

    def prepare(self, run: str, config: dict[str, float]) -> None:
        pass  # the first logged row creates the run

    def encode(self, run: str, first: int, columns: dict[str, NDArray[np.float64]]) -> list[tuple[str, bytes]]:
        n = len(next(iter(columns.values())))
        lists = {name: column.tolist() for name, column in columns.items()}
        logs = [
            {
                "project": PROJECT,
                "run": run,
                "metrics": {name: values[i] for name, values in lists.items()},
                "step": first + i,
                "log_id": f"{run}-{first + i}",
            }
            for i in range(n)
        ]
        return [("/api/bulk_log", json.dumps({"logs": logs, "hf_token": None}).encode())]

    def chart(self, run: str, metrics: Sequence[str], most: int, x: str = "step") -> None:
        for metric in metrics:
            query = {"project": PROJECT, "run": run, "metric_name": metric, "max_points": most}
            self.send("/api/get_metric_values", json.dumps(query).encode())

    def page(self, sort: str) -> None:
        self.send("/api/get_runs_for_project", json.dumps({"project": PROJECT}).encode())


@contextmanager
def serving(kind: type[Server], folder: Path) -> Iterator[Server]:
    """Run a server in `folder` until the end of the block."""
    folder.mkdir(parents=True)
    server = kind(folder)
    try:
        yield server
    finally:
        server.stop()


def repeat(call: Callable[[], object], times: int = 15) -> NDArray[np.float64]:
    """Return the duration of each call in milliseconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return np.array(taken)


def _resource(run: str) -> dict[str, str]:
    return {"service.name": PROJECT, "tensormeter.run.id": run, "service.instance.id": "p"}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(http: urllib3.PoolManager, url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib3.exceptions.HTTPError):
            if http.request("GET", url, timeout=5).status < 500:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not respond; see the file log in the server's folder")
