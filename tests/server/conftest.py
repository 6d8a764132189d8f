"""A real server process, real sockets, real signals."""

import functools
import hashlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
import urllib3

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

PROTOBUF = "application/x-protobuf"


CLICKHOUSE_PORT = 0
"""Of the ClickHouse that servers of these tests use; 0: none. `TENSORMETER_TEST_STORE=clickhouse` gives them one."""


class Server:
    """`tensormeter serve` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TENSORMETER_")}
        if CLICKHOUSE_PORT and "--store" not in arguments:
            name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            arguments += ("--store", f"clickhouse://127.0.0.1:{CLICKHOUSE_PORT}/test_{name}")
        self.clickhouse = arguments[arguments.index("--store") + 1] if "--store" in arguments else None
        inherited["TENSORMETER_DIR"] = str(folder.parent / "runs")  # what earlier runs left here is not for a test
        with (folder.parent / f"{folder.name}.stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=inherited | (environment or {}),
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line.startswith(("tensormeter: serving on http://", "tensormeter: serving on https://")), (
            self.line,
            self.stderr,
        )
        self.url = self.line.split()[3]
        self.http = urllib3.PoolManager(retries=False, timeout=300, maxsize=16)

    @property
    def stderr(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.stderr").read_text()

    def post(self, path: str, body: bytes, **headers: str) -> urllib3.BaseHTTPResponse:
        named = {"Content-Type": PROTOBUF} | {key.replace("_", "-"): value for key, value in headers.items()}
        return self.http.request("POST", f"{self.url}{path}", body=body, headers=named)

    def metrics(self, *batches: Batch, batch_id: str | None = None) -> urllib3.BaseHTTPResponse:
        named = {} if batch_id is None else {"Tensormeter_Batch_Id": batch_id}
        return self.post("/v1/metrics", encode_metrics(batches), **named)

    def events(self, resource: Mapping[str, Any], *events: Event) -> None:
        answer = self.post("/v1/logs", encode_events(resource, events))
        assert (answer.status, answer.data) == (200, b"")

    def get(self, path: str, headers: Mapping[str, str] | None = None, **query: object) -> Any:
        status, document = self.ask(path, headers, **query)
        assert status == 200, document
        return document

    def ask(self, path: str, headers: Mapping[str, str] | None = None, **query: object) -> tuple[int, Any]:
        url = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        answer = self.http.request("GET", url, headers=headers)
        return answer.status, json.loads(answer.data, parse_constant=pytest.fail)

    def query(self, *runs: str, **query: object) -> Any:
        status, document = self.send("POST", "/api/v1/query", {"runs": runs} | query)
        assert status == 200, document
        return document

    def send(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        answer = self.http.request(method, f"{self.url}{path}", body=json.dumps(document).encode())
        return answer.status, json.loads(answer.data, parse_constant=pytest.fail) if answer.data else None

    def has_batch(self, batch_id: str) -> bool:
        """Whether a batch is committed. The store itself is asked, so this is known before the server has answered."""
        if self.clickhouse is None:
            with closing(sqlite3.connect(self.folder / "tensormeter.db")) as database:
                return database.execute("SELECT 1 FROM batch WHERE id = ?", (batch_id,)).fetchone() is not None
        where = urlsplit(self.clickhouse)
        url = f"http://{where.netloc}/?database={where.path[1:]}&param_id={batch_id}"
        body = b"SELECT count() FROM batch WHERE id = {id:String}"
        answer = urllib3.request("POST", url, body=body, retries=False)
        assert answer.status == 200, answer.data
        return int(answer.data) > 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._reap()
        return self.process.returncode

    def _reap(self) -> None:
        self.process.wait(300)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.clear()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, by default all on one folder, and stops those that still run."""
    started: list[Server] = []

    def start(
        *arguments: str, folder: Path = tmp_path / "data", environment: Mapping[str, str] | None = None
    ) -> Server:
        started.append(Server(folder, *arguments, environment=environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module; at the end it must stop by itself and must have complained about nothing."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.fixture(scope="session")
def server_on_clickhouse(tmp_path_factory: pytest.TempPathFactory, clickhouse: int) -> Iterator[Server]:
    """One server on ClickHouse for all modules; as `server` else."""
    store = f"clickhouse://127.0.0.1:{clickhouse}/shared"
    server = Server(tmp_path_factory.mktemp("server") / "data", "--store", store)
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.fixture(scope="module", params=["sqlite", "clickhouse"])
def server_on_each(request: pytest.FixtureRequest) -> Server:
    """A server on one store, and then on the other."""
    found: Server = request.getfixturevalue("server" if request.param == "sqlite" else "server_on_clickhouse")
    return found


@pytest.fixture(params=["sqlite", "clickhouse"])
def start_on_each(
    request: pytest.FixtureRequest, start: Callable[..., Server], tmp_path: Path
) -> Callable[..., Server]:
    """As `start`, with one store, and then with the other."""
    if request.param == "sqlite":
        return start
    port = request.getfixturevalue("clickhouse")
    database = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    return functools.partial(start, "--store", f"clickhouse://127.0.0.1:{port}/each_{database}")


@pytest.fixture(scope="session", autouse=True)
def store_of_all_servers(request: pytest.FixtureRequest) -> None:
    global CLICKHOUSE_PORT
    if os.environ.get("TENSORMETER_TEST_STORE") == "clickhouse":
        CLICKHOUSE_PORT = request.getfixturevalue("clickhouse")


@pytest.fixture(scope="session")
def server_class() -> type[Server]:
    return Server


@pytest.fixture(scope="session")
def make() -> type["Make"]:
    return Make


class Make:
    """Requests."""

    @staticmethod
    def resource(run: str, process: str = "p0", project: str = "demo", **more: str) -> dict[str, str]:
        return {
            "service.name": project,
            "service.instance.id": process,
            "tensormeter.run.id": run,
            "tensormeter.run.name": f"name of {run}",
        } | more

    @staticmethod
    def gauge(name: str, times: Sequence[int], values: Sequence[float], **attributes: str) -> Gauge:
        integers = all(isinstance(value, int) for value in values)
        column = np.array(values, np.int64 if integers else np.float64)
        return Gauge(name, np.array(times, np.uint64), column, attributes=attributes)

    @classmethod
    def rows(cls, run: str, rows: Sequence[tuple[int, int, Mapping[str, float]]], **resource: str) -> Batch:
        """A batch from rows of (time, step, values), as a training process sends it."""
        gauges = [cls.gauge(STEP_METRIC, [time for time, _, _ in rows], [step for _, step, _ in rows])]
        for name in sorted({name for _, _, values in rows for name in values}):
            points = [(time, values[name]) for time, _, values in rows if name in values]
            gauges.append(cls.gauge(name, [time for time, _ in points], [value for _, value in points]))
        return Batch(cls.resource(run, **resource), gauges)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds."""

    def eventually(condition: Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            pause.wait(0.002)

    return eventually


def number(value: float | str) -> float:
    """A value of the API as the number that it stands for."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    return value


@pytest.fixture
def decode_number() -> Callable[[float | str], float]:
    return number
