"""Requests as they lie in the spool, made by hand, and the processes that they go to."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from support.otlp_receivers import Grpc, Http
from tensormeter.exporter import ExporterConfig, Request
from tensormeter.otlp.batch import (
    STEP_METRIC,
    Batch,
    Buckets,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Series,
    Sum,
    Temporality,
)
from tensormeter.otlp.encode import encode_events, encode_metrics

T0 = 1_790_000_000_000_000_000


class Make:
    """Requests, and what is in them."""

    T0 = T0

    @staticmethod
    def resource(run: str = "run1", process: str = "p0123456789", project: str = "demo") -> dict[str, str]:
        return {
            "service.name": project,
            "service.instance.id": process,
            "tensormeter.run.id": run,
            "tensormeter.run.name": f"name of {run}",
        }

    @staticmethod
    def gauge(name: str, times: Sequence[int], values: Sequence[float], **attributes: str) -> Gauge:
        integers = all(isinstance(value, int) for value in values)
        column = np.array(values, np.int64 if integers else np.float64)
        return Gauge(name, np.array(times, np.uint64), column, attributes=attributes)

    @classmethod
    def rows(cls, rows: Mapping[int, Mapping[str, float]], start: int = T0) -> list[Series]:
        """Gauges from values by step, a second apart, as a training process sends them."""
        times = {step: start + 1_000_000_000 * index for index, step in enumerate(rows)}
        gauges: list[Series] = [cls.gauge(STEP_METRIC, list(times.values()), list(rows))]
        for name in dict.fromkeys(name for values in rows.values() for name in values):
            found = [(times[step], values[name]) for step, values in rows.items() if name in values]
            gauges.append(cls.gauge(name, [at for at, _ in found], [value for _, value in found]))
        return gauges

    @staticmethod
    def counter(name: str, times: Sequence[int], values: Sequence[float]) -> Sum:
        column = np.array(values, np.float64)
        return Sum(name, np.array(times, np.uint64), column, np.full(len(times), T0 - 1, np.uint64))

    @staticmethod
    def histogram(name: str, at: int) -> Histogram:
        """Five values: -1, 0.5, 1.5, 1.5, 30."""
        return Histogram(
            name,
            np.array([at], np.uint64),
            np.array([at - 1], np.uint64),
            np.array([5], np.uint64),
            np.array([32.5]),
            np.array([-1.0]),
            np.array([30.0]),
            np.array([0.0, 1.0, 2.0]),
            np.array([[1, 1, 2, 1]], np.uint64),
            temporality=Temporality.DELTA,
        )

    @staticmethod
    def exponential_histogram(name: str, at: int) -> ExponentialHistogram:
        """Base 2: one value in (-4, -2], two zeros, three in (1, 2], four in (2, 4]."""
        return ExponentialHistogram(
            name,
            np.array([at], np.uint64),
            np.array([at - 1], np.uint64),
            np.array([10], np.uint64),
            np.array([14.0]),
            np.array([-3.0]),
            np.array([4.0]),
            np.array([0]),
            np.array([2], np.uint64),
            np.array([0.0]),
            Buckets(np.array([0]), [np.array([3, 4], np.uint64)]),
            Buckets(np.array([1]), [np.array([1], np.uint64)]),
            temporality=Temporality.DELTA,
        )

    @staticmethod
    def metrics(number: int, *batches: Batch) -> Request:
        body = gzip.compress(encode_metrics(batches), 1)
        return Request(f"spool0-{number}", "metrics", body, sum(batch.points for batch in batches))

    @classmethod
    def logged(cls, number: int, series: Sequence[Series], **resource: str) -> Request:
        return cls.metrics(number, Batch(cls.resource(**resource), series))

    @classmethod
    def logs(cls, number: int, *events: Event, **resource: str) -> Request:
        body = gzip.compress(encode_events(cls.resource(**resource), events), 1)
        return Request(f"spool0-{number}", "logs", body, len(events))

    @staticmethod
    def start(config: Mapping[str, Any], at: int = T0, **said: Any) -> Event:
        return Event("tensormeter.run.start", at, {"config": dict(config), **said})

    @staticmethod
    def reconfigured(config: Mapping[str, Any], at: int = T0 + 1) -> Event:
        return Event("tensormeter.run.config", at, {"config": dict(config)})

    @staticmethod
    def end(state: str = "finished", at: int = T0 + 10**12) -> Event:
        return Event("tensormeter.run.end", at, {"state": state})


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ExporterConfig]:
    """What delivery gives an exporter."""

    def config(destination: str = "test", timeout: float = 60.0, **options: str) -> ExporterConfig:
        return ExporterConfig(
            endpoint="http://127.0.0.1:1",  # the experiment server's; no other destination may use it
            token="of the experiment server",
            timeout=timeout,
            destination=destination,
            options=options,
            state=tmp_path / "state",
        )

    return config


def wait_until(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.05)


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Waits until a condition holds, and fails with its name if it never does."""
    return wait_until


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free_port


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """The environment without variables that a destination would read."""
    prefixes = ("TENSORMETER_", "OTEL_", "MLFLOW_", "WANDB_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


@pytest.fixture
def only_our_variables(monkeypatch: pytest.MonkeyPatch, clean_environment: dict[str, str]) -> None:
    """Takes what a destination would read out of this process's environment."""
    for variable in set(os.environ) - set(clean_environment):
        monkeypatch.delenv(variable)


@pytest.fixture
def http() -> Iterator[Http]:
    server = Http()
    yield server
    server.stop()


@pytest.fixture
def rpc() -> Iterator[Grpc]:
    server = Grpc()
    yield server
    server.stop()


_DISTRIBUTIONS = ("histogram", "exponential_histogram", "summary")


def _event_key(event: Any) -> tuple[int, str]:
    return int(event["time"]), json.dumps(event, sort_keys=True)


def _digests(document: Any) -> Iterator[str]:
    """Of every image in some events."""
    if isinstance(document, Mapping):
        if "digest" in document:
            yield document["digest"]
        for item in document.values():
            yield from _digests(item)
    elif isinstance(document, list):
        for item in document:
            yield from _digests(item)


class ExperimentServer:
    """`tensormeter serve` as a process, and what is in it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(folder / "data")],
            stdout=subprocess.PIPE,
            env={**environment, "TENSORMETER_DIR": str(folder / "none")},
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[3]
        self._http = urllib3.PoolManager(retries=False, timeout=300)

    def get(self, path: str, **query: str) -> Any:
        answer = self._http.request("GET", f"{self.url}/api/v1{path}", fields=query)
        assert answer.status in (200, 404), answer.data
        return json.loads(answer.data) if answer.status == 200 else None

    def everything(self, project: str) -> dict[str, Any]:
        """All that the API tells of a project's runs, but for when it was told."""
        found = {}
        listed = self.get("/runs", project=project)
        for run in listed["runs"] if listed else []:
            where = f"/runs/{run['id']}"
            metrics = self.get(f"{where}/metrics", project=project)["metrics"]
            series = {
                name: sorted(
                    self.get(f"{where}/series", project=project, metric=name, x="step")["series"],
                    key=lambda series: json.dumps([series["process"], series["attributes"]], sort_keys=True),
                )
                for name in sorted({metric["name"] for metric in metrics if metric["kind"] not in _DISTRIBUTIONS})
            }
            histograms = {
                name: self.get(f"{where}/histograms", project=project, metric=name, max_points="1000")["points"]
                for name in sorted({metric["name"] for metric in metrics if metric["kind"] in _DISTRIBUTIONS})
            }
            events = self.get(f"{where}/events", project=project)["events"]
            images = {}
            for digest in sorted(_digests(events)):
                answer = self._http.request(
                    "GET", f"{self.url}/api/v1{where}/media/{digest}", fields={"project": project}
                )
                assert answer.status == 200, answer.data
                images[digest] = answer.data.hex()
            about = self.get(where, project=project)
            changing = {"created", "updated", "project"}
            found[run["id"]] = {
                "about": {key: value for key, value in about.items() if key not in changing},
                "metrics": sorted(metrics, key=lambda metric: json.dumps(metric, sort_keys=True)),
                "series": series,
                "histograms": histograms,
                "events": sorted(({**event, "id": None} for event in events), key=_event_key),
                "images": images,
            }
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(300)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._http.clear()


@pytest.fixture(scope="session")
def experiment_server(
    tmp_path_factory: pytest.TempPathFactory,
    clean_environment: dict[str, str],
) -> Iterator[ExperimentServer]:
    server = ExperimentServer(tmp_path_factory.mktemp("experiment"), clean_environment)
    yield server
    server.stop()
