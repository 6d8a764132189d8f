"""`tensormeter serve` in separate processes."""

import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import urllib3

from support.ports import reserve_port
from support.processes import clean_environment
from tensormeter.otlp.batch import Batch, Event
from tensormeter.otlp.encode import encode_events, encode_metrics

__all__ = ["Points", "RestartableServer", "Server", "ServerProcess", "read_to_end"]

PROTOBUF = "application/x-protobuf"

Points = Counter[tuple[str, int, str]]
"""The number of points by (metric, step, value). Values are hexadecimal floats, so that equal means every bit."""


def read_to_end(connection: socket.socket) -> bytes:
    """Read from a connection until the other side closes it."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


class ServerProcess:
    """A server process, by default on a port that it chooses.

    Attributes:
        process: The process.
        line: The line that it prints when it listens.
        url: Its address.
        http: A pool of connections for requests to it.
        output: All that it has printed after the line, once it has been stopped.
    """

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str], log: Path | None = None) -> None:
        """Start it. Blocks until it listens.

        Args:
            folder: The folder of its data.
            arguments: Further arguments of `tensormeter serve`.
            environment: All of its environment.
            log: File to append its standard error to; by default it goes to that of the test.
        """
        port = () if "--port" in arguments else ("--port", "0")
        with open(os.devnull if log is None else log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tensormeter", "serve", "--data", str(folder), *port, *arguments],
                stdout=subprocess.PIPE,
                stderr=None if log is None else errors,
                env=environment,
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.http = urllib3.PoolManager(retries=False, timeout=300, maxsize=16)
        if not self.line.startswith(("tensormeter: serving on http://", "tensormeter: serving on https://")):
            self.kill()
            raise AssertionError(f"the server does not listen: {self.line}{log.read_text() if log else ''}")
        self.url = self.line.split()[3]

    def connect(self) -> socket.socket:
        """Open a connection to the server, for requests that no client would send."""
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=300)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal if it still runs. Returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(300)
            assert self.process.stdout is not None
            self.output = self.process.stdout.read()
        self._reap()
        return self.process.returncode

    def _reap(self) -> None:
        self.process.wait(300)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.clear()


class Server(ServerProcess):
    """A server and its API."""

    clickhouse_port = 0
    """Port of the ClickHouse for servers without the option `--store`; 0: none."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        if self.clickhouse_port and "--store" not in arguments:
            name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            arguments += ("--store", f"clickhouse://127.0.0.1:{self.clickhouse_port}/test_{name}")
        self.clickhouse = arguments[arguments.index("--store") + 1] if "--store" in arguments else None
        variables = clean_environment("TENSORMETER_")
        variables["TENSORMETER_DIR"] = str(folder.parent / "runs")  # what earlier runs left here is not for a test
        log = folder.parent / f"{folder.name}.stderr"
        super().__init__(folder, *arguments, environment=variables | dict(environment or {}), log=log)

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


class RestartableServer:
    """A server on a data folder and a port that stay the same over restarts. It is not started yet."""

    def __init__(self, folder: Path, environment: dict[str, str], port: int | None = None) -> None:
        self._data = folder / "server"
        self._port = port or reserve_port()
        self._environment = environment
        self._server: ServerProcess | None = None
        self._pool = urllib3.PoolManager(retries=False, timeout=300)
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ServerProcess(self._data, "--port", str(self._port), environment=self._environment)
        assert self._server.url == self.url

    def kill(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server = None
        self._pool.clear()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(signal.SIGINT)
            self._server = None
            self._pool.clear()

    def get(self, path: str, **query: str) -> dict:
        response = self._pool.request("GET", f"{self.url}/api/v1{path}", fields=query)
        return json.loads(response.data) if response.status == 200 else {}

    def state(self, run_id: str) -> str | None:
        return self.get(f"/runs/{run_id}").get("state")

    def points(self, run_id: str, *prefixes: str) -> Points:
        """All points of a run but its steps, of the metrics whose names start with one of the prefixes."""
        points: Points = Counter()
        metrics = {metric["name"] for metric in self.get(f"/runs/{run_id}/metrics").get("metrics", [])}
        for metric in metrics - {"tensormeter.step"}:
            if not metric.startswith(prefixes or ("",)):
                continue
            for series in self.get(f"/runs/{run_id}/series", metric=metric, x="step")["series"]:
                points.update(
                    (metric, step, float(value).hex())
                    for step, value in zip(series["step"], series["value"], strict=True)
                )
        return points
