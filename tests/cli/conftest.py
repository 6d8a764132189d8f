"""A real server with two runs, and the command line in a separate process."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from support.otlp import Parts
from support.processes import clean_environment, run_python
from support.servers import ServerProcess
from tensormeter.client import Client
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Figure, Html, Image, Images, Table, Text, Video

TOKEN = "token-of-the-test"
T0 = 1_750_000_000_000_000_000
HOSTILE = "loss\x1b[2J[bold red]\u202e"


def environment(**variables: str) -> dict[str, str]:
    return clean_environment() | {"COLUMNS": "110", "TZ": "UTC", "TERM": "dumb"} | variables


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cli") / "data"
    server = ServerProcess(
        folder, environment=environment(TENSORMETER_TOKEN=TOKEN, TENSORMETER_DIR=str(folder.parent / "runs"))
    )
    assert f"(data in {folder})" in server.line
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}
    for path, body in requests():
        assert server.http.request("POST", f"{server.url}{path}", body=body, headers=headers).status == 200
    yield server.url
    assert server.stop() == 0
    assert server.output == ""


def requests() -> Iterator[tuple[str, bytes]]:
    def resource(run: str, name: str, project: str = "demo") -> dict[str, str]:
        return Parts.resource(run, f"{run}-0", project) | {"tensormeter.run.name": name}

    def gauge(name: str, values: list[float]) -> Gauge:
        times = np.arange(T0, T0 + len(values)).astype(np.uint64)
        return Gauge(name, times, np.array(values), attributes={} if name == STEP_METRIC else {"split": "train"})

    n = 500
    losses = [math.nan, *(1 / (1 + step) for step in range(1, n - 1)), math.inf]
    gauges = [gauge(STEP_METRIC, list(range(n))), gauge("train/loss", losses), gauge("acc", [0.25] * n)]
    yield "/v1/metrics", encode_metrics([Batch(resource("abc123", "first"), gauges)])
    fields = {
        "group": "a sweep",
        "job_type": "eval",
        "tags": ["x", "[y]"],
        "notes": "n",
        "summary": {"best": 0.5, "why": "[b]z\x1b"},
    }
    fields["forked_from"] = {"run": "root", "step": 7}
    start = Event(
        "tensormeter.run.start",
        T0,
        {"config": {"lr": 0.001, "name": "[red]x\x1b[0m", "opt": {"betas": [0.9], "deep": {"a": 1}}}, **fields},
    )
    end = Event("tensormeter.run.end", T0 + 10**10, {"state": "failed", "message": ""})
    yield "/v1/logs", encode_events(resource("abc123", "first"), [start, end])
    other = resource("abc123", "first") | {
        "service.instance.id": "abc123-1",
        "tensormeter.rank": 1,
        "host.name": "h\x1b",
    }
    end = Event("tensormeter.run.end", T0 + 10**10, {"state": "finished", "message": ""})
    yield "/v1/logs", encode_events(other, [start, end])
    yield "/v1/metrics", encode_metrics([Batch(resource("abd456", HOSTILE, "other"), [gauge(HOSTILE, [1.0, 2.0])])])
    image = Image("", b"\x89PNG\r\n\x1a\n", "image/png", 1, 1)
    items = [
        Images("../grid", [image, image]),
        Video("v", b"\x1aE\xdf\xa3", "video/webm"),
        Html("v", "<p>"),
        Figure("v", "{}"),
        Table("t", ["i", "n"], [[image, 1]], {"kind": "bar", "x": "i", "y": "n"}),
        Text("phase", "warmup"),
        Text("phase", "decay\x1b[2J"),
    ]
    events = [item.event(T0 + 9, number) for number, item in enumerate(items)]
    yield "/v1/logs", encode_events(resource("abd456", HOSTILE, "other"), events)


@pytest.fixture
def run_cli(url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `tensormeter` against the server."""

    def run_cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_python(
            "-m",
            "tensormeter",
            *arguments,
            environment=environment(**{"TENSORMETER_ENDPOINT": url, "TENSORMETER_TOKEN": TOKEN} | variables),
            folder=tmp_path,
        )

    return run_cli


@pytest.fixture
def spawn_cli(url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `tensormeter` and returns the process; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []
    variables = environment(TENSORMETER_ENDPOINT=url, TENSORMETER_TOKEN=TOKEN)

    def spawn_cli(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tensormeter", *arguments]
        started.append(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield spawn_cli
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def post(url: str) -> Callable[[str, bytes], None]:
    """Sends a request of OTLP to the server."""

    def post(path: str, body: bytes) -> None:
        headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}
        assert urllib3.request("POST", f"{url}{path}", body=body, headers=headers).status == 200

    return post


@pytest.fixture
def client(url: str) -> Client:
    """A client of the server."""
    return Client(url, token=TOKEN)
