"""Requests as they lie in the spool, made by hand, and the processes that they go to."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.otlp import Requests
from support.otlp_receivers import Grpc, Http
from support.processes import clean_environment
from support.servers import ServerProcess
from tensormeter.exporter import ExporterConfig

T0 = 1_790_000_000_000_000_000


@pytest.fixture(scope="session")
def make() -> type[Requests]:
    return Requests


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ExporterConfig]:
    """The configuration that delivery gives an exporter."""

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


@pytest.fixture(scope="session", name="clean_environment")
def environment_without_destinations() -> dict[str, str]:
    """The environment without the variables that a destination would read."""
    return clean_environment("TENSORMETER_", "OTEL_", "MLFLOW_", "WANDB_")


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
    """The digests of all images in some events."""
    if isinstance(document, Mapping):
        if "digest" in document:
            yield document["digest"]
        for item in document.values():
            yield from _digests(item)
    elif isinstance(document, list):
        for item in document:
            yield from _digests(item)


class ExperimentServer(ServerProcess):
    """`tensormeter serve` as a process, and what is in it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder / "data", environment={**environment, "TENSORMETER_DIR": str(folder / "none")})

    def get(self, path: str, **query: str) -> Any:
        answer = self.http.request("GET", f"{self.url}/api/v1{path}", fields=query)
        assert answer.status in (200, 404), answer.data
        return json.loads(answer.data) if answer.status == 200 else None

    def everything(self, project: str) -> dict[str, Any]:
        """All that the API tells of a project's runs, but for when it was told."""
        runs = {}
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
                answer = self.http.request(
                    "GET", f"{self.url}/api/v1{where}/media/{digest}", fields={"project": project}
                )
                assert answer.status == 200, answer.data
                images[digest] = answer.data.hex()
            about = self.get(where, project=project)
            changing = {"created", "updated", "project"}
            runs[run["id"]] = {
                "about": {key: value for key, value in about.items() if key not in changing},
                "metrics": sorted(metrics, key=lambda metric: json.dumps(metric, sort_keys=True)),
                "series": series,
                "histograms": histograms,
                "events": sorted(({**event, "id": None} for event in events), key=_event_key),
                "images": images,
            }
        return runs


@pytest.fixture(scope="session")
def experiment_server(
    tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str]
) -> Iterator[ExperimentServer]:
    server = ExperimentServer(tmp_path_factory.mktemp("experiment"), clean_environment)
    yield server
    server.stop()
