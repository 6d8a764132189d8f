"""Metrics of the server itself."""

import sys

import opentelemetry.sdk.environment_variables
import pytest

from tensormeter.client import Client
from tensormeter.errors import SettingsError
from tensormeter.otlp.batch import Batch
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.self_metrics import ServerMetrics
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000
PROJECT = "tensormeter-server"
OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "200"}
DURATION = "http.server.request.duration"
ITEMS = "tensormeter.server.ingest.items"


def items(client):
    """The last value of the counter by signal and outcome."""
    (run,) = client.runs(PROJECT)
    return {
        (series.attributes["tensormeter.signal"], series.attributes["tensormeter.outcome"]): series.y[-1]
        for series in run.series(ITEMS, x="time")
    }


@pytest.mark.parametrize("value", ["abc", "0", "-5", "nan"])
def test_a_server_that_keeps_its_own_metrics_starts_with_nonsense_in_opentelemetrys_variables(start, make, value):
    names = [name for name in vars(opentelemetry.sdk.environment_variables) if name.startswith("OTEL_")]
    server = start("--self-metrics", "store", environment=dict.fromkeys(names, value))
    assert server.metrics(make.rows("busy", [(T0, 0, {"v": 1.0})]), batch_id="one").status == 200


def test_a_server_keeps_its_own_metrics(start, make, eventually):
    server = start("--self-metrics", "store", environment=OFTEN)
    client = Client(server.url)
    rows = make.rows("busy", [(T0 + i, i, {"v": float(i)}) for i in range(5)])
    for _ in range(2):
        assert server.metrics(rows, batch_id="same").status == 200
    refused = make.gauge("v", [T0, 1 << 63], [1.0, 2.0])
    answer = server.metrics(make.rows("busy", []), batch_id="empty")
    assert answer.status == 200
    assert server.metrics(Batch(make.resource("busy", "p1"), [refused])).status == 200
    assert server.ask("/api/v1/runs/none-such")[0] == 404
    assert server.ask("/no/such/path")[0] == 404
    assert server.http.request("BREW", f"{server.url}/api/v1/runs").status in (403, 405)

    expected = {("metrics", "stored"): 11, ("metrics", "rejected"): 1, ("metrics", "duplicate"): 10}
    eventually(lambda: PROJECT in client.projects() and items(client) == expected)
    (run,) = client.runs(PROJECT)
    assert (run.state, run.attempt) == ("running", 1)
    posts = {"http.route": "/v1/metrics", "http.response.status_code": 200}

    def attributes(name):
        return {
            attribute_set[name]
            for metric in run.metrics()
            if metric.name == DURATION
            for attribute_set in metric.attributes
            if name in attribute_set
        }

    # A request is counted when its answer has gone, and exported after that.
    eventually(lambda: {"_OTHER", "GET", "POST"} <= attributes("http.request.method"))
    eventually(lambda: {"/v1/metrics", "/api/v1/runs/{run_id}"} <= attributes("http.route"))
    eventually(lambda: run.histograms(DURATION, x="time", attributes=posts).count[-1] == 4)
    metrics = {metric.name: metric for metric in run.metrics()}
    assert any("http.route" not in attribute_set for attribute_set in metrics[DURATION].attributes)
    assert not any("none-such" in str(attribute_set) for attribute_set in metrics[DURATION].attributes)
    assert run.histograms(DURATION, x="time", attributes=posts).bounds[-1][0] == 0.005
    assert metrics["tensormeter.server.store.size"].last > 4096
    assert metrics["tensormeter.server.store.pending"].last >= 0
    assert metrics["tensormeter.server.ingest.io"].last > len(encode_metrics([rows]))

    assert server.stop() == 0
    assert server.stderr == ""
    again = start(environment=OFTEN)
    client = Client(again.url)
    (stopped,) = client.runs(PROJECT)
    assert (stopped.state, stopped.id) == ("finished", run.id)
    again.stop()
    third = start("--self-metrics", "store", environment=OFTEN)
    (run,) = Client(third.url).runs(PROJECT)
    assert (run.id, run.state) == (stopped.id, "running")


def test_to_another_backend(start, tmp_path, eventually):
    backend = start(folder=tmp_path / "backend")
    environment = OFTEN | {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.url}
    server = start("--self-metrics", "otlp", folder=tmp_path / "server", environment=environment)
    assert server.get("/api/v1/projects") == {"projects": []}
    client = Client(backend.url)
    eventually(
        lambda: (
            PROJECT in client.projects()
            and DURATION in {metric.name for metric in next(client.runs(PROJECT)).metrics()}
        )
    )
    assert server.get("/api/v1/projects") == {"projects": []}
    assert server.stop() == 0


def test_none_unless_asked_for(start):
    server = start(environment=OFTEN | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert server.get("/api/v1/projects") == {"projects": []}
    assert server.stop() == 0
    assert server.stderr == ""


def test_without_the_exporter(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    store = SqliteStore(tmp_path / "data")
    try:
        with pytest.raises(SettingsError, match="pip install opentelemetry-exporter-otlp-proto-http"):
            ServerMetrics(store, tmp_path / "data", ["otlp"])
    finally:
        store.close()
