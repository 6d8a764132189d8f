"""States of runs, and senders that know nothing of tensormeter."""

import math

import numpy as np
import pytest

from tensormeter.otlp.batch import Batch, Event, Gauge

T0 = 1_750_000_000_000_000_000


def start(time, **config):
    return Event("tensormeter.run.start", T0 + time, {"config": config})


def end(time, state="finished"):
    return Event("tensormeter.run.end", T0 + time, {"state": state, "message": ""})


@pytest.mark.parametrize(
    ("processes", "state"),
    [
        ({"a": [start(0)]}, "running"),
        ({"a": [start(0), end(1)]}, "finished"),
        ({"a": [end(1), start(0)]}, "finished"),
        ({"a": [end(1)]}, "finished"),
        ({"a": [start(0), end(1)], "b": [start(0)]}, "running"),
        ({"a": [start(0), end(1)], "b": [start(0), end(2)]}, "finished"),
        ({"a": [start(0), end(1, "crashed")], "b": [start(0)]}, "crashed"),
        ({"a": [start(0), end(1, "crashed")], "b": [start(0), end(1, "failed")]}, "failed"),
        ({"a": [start(0), end(1, "crashed"), start(2)]}, "running"),
        ({"a": [start(2), start(0), end(1, "failed")]}, "running"),
        ({"a": [start(0), end(1, "failed"), start(2), end(3)]}, "finished"),
        ({"a": [start(0), end(1, "something else")]}, "failed"),
        ({"a": [start(0), end(1)], "b": [Event("other", T0)]}, "finished"),
        ({"a": [Event("other", T0)]}, "running"),
    ],
)
def test_state(server, make, request, processes, state):
    run = f"state-{request.node.callspec.indices['processes']}"
    for process, events in processes.items():
        for event in events:  # one request each: the order of arrival must not matter
            server.events(make.resource(run, process), event)
            server.events(make.resource(run, process), event)
    assert server.get(f"/api/v1/runs/{run}")["state"] == state


def test_config_and_times_come_from_the_events(server, make):
    config = {"lr": 1e-3, "layers": [1, 2], "nan": math.nan, "big": 2**62, "none": None, "deep": {"b": b"\x00\xff"}}
    server.events(make.resource("config", "b"), start(5), end(9))
    server.events(make.resource("config", "a"), start(3, **config))
    run = server.get("/api/v1/runs/config")
    assert run["config"] == config | {"nan": "NaN", "deep": {"b": "AP8="}}
    assert run["started"] == str(T0 + 3)
    assert [(process["id"], process["state"]) for process in run["processes"]] == [("b", "finished"), ("a", "running")]
    server.events(make.resource("config", "a"), start(8, lr=2e-3))
    assert server.get("/api/v1/runs/config")["config"] == {"lr": 2e-3}


def test_a_sender_that_knows_only_opentelemetry(server):
    def send(resource):
        gauge = Gauge(
            "temperature",
            np.array([T0, T0 + 1], np.uint64),
            np.array([20.5, 21.0]),
            unit="Cel",
            attributes={"room": "a"},
        )
        assert server.metrics(Batch(resource, [gauge])).status == 200

    instance = {"service.name": "plain", "service.instance.id": "i-1"}
    send(instance | {"telemetry.sdk.name": "opentelemetry"})
    send(instance | {"telemetry.sdk.name": "opentelemetry", "host.name": "h"})  # the same instance
    send({"service.name": "plain", "service.instance.id": "i-2"})
    send({"service.name": "plain", "host.name": "h1"})
    send({"service.name": "plain", "host.name": "h2"})  # another resource
    send({"host.name": "h2"})
    runs = server.get("/api/v1/runs", project="plain")["runs"]
    assert len(runs) == 4
    assert {run["name"] for run in runs} == {"plain"}
    assert all(len(run["id"]) == 16 for run in runs)
    details = [server.get(f"/api/v1/runs/{run['id']}") for run in runs]
    by_process = {run["processes"][0]["id"]: run for run in details}
    assert by_process["i-1"]["processes"][0]["resource"]["host.name"] == "h"
    run_id = by_process["i-1"]["id"]
    (series,) = server.get(f"/api/v1/runs/{run_id}/series", metric="temperature")["series"]
    assert series == {
        "process": "i-1",
        "attempt": 1,
        "kind": "gauge",
        "attributes": {"room": "a"},
        "time": [T0, T0 + 1],
        "step": [None, None],
        "value": [20.5, 21.0],
    }
    (run,) = server.get("/api/v1/runs", project="default")["runs"]
    assert run["name"] == "default"


def test_the_sdk_itself(server):
    """The SDK's own gauge, through the exporter's own encoding of it."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource.create({"service.name": "sdk", "service.instance.id": "x"}))
    provider.get_meter("m").create_gauge("g", unit="1").set(0.25, {"rank": 1})
    data = reader.get_metrics_data()
    provider.shutdown()
    resource = data.resource_metrics[0]
    metric = resource.scope_metrics[0].metrics[0]
    (point,) = metric.data.data_points
    gauge = Gauge(metric.name, np.array([point.time_unix_nano], np.uint64), np.array([point.value]), unit=metric.unit)
    assert server.metrics(Batch(dict(resource.resource.attributes), [gauge])).status == 200
    (run,) = server.get("/api/v1/runs", project="sdk", fields="summary")["runs"]
    assert run["summary"]["g"]["last"] == 0.25


def test_a_record_without_any_time(server, make):
    server.events(make.resource("timeless"), Event("", 0, "an ordinary log line"))
    assert server.get("/api/v1/runs/timeless")["started"] > str(T0)
