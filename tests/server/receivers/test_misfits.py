"""Mistakes of a sender are refused with a reason, or do no harm to the rest."""

import json

import pytest

from tensormeter.client import Client

T0 = 1_750_000_000_000_000_000
YEAR_2116 = 4_607_000_000_000_000_000


def histogram(bounds, counts, time=T0):
    point = {"timeUnixNano": str(time), "count": "3", "sum": 3.0, "explicitBounds": bounds, "bucketCounts": counts}
    return {"name": "wait", "histogram": {"aggregationTemporality": 1, "dataPoints": [point]}}


def gauge(name, time):
    return {"name": name, "gauge": {"dataPoints": [{"timeUnixNano": str(time), "asDouble": 1.0}]}}


def send(server, service, *metrics):
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    document = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": list(metrics)}]}]}
    answer = server.post("/v1/metrics", json.dumps(document).encode(), Content_Type="application/json")
    assert answer.status == 200
    return json.loads(answer.data).get("partialSuccess", {})


@pytest.mark.parametrize(
    ("bounds", "counts", "reason"),
    [
        ([1.0, 2.0], ["1", "2"], "2 bucket counts and 2 bounds"),
        ([1.0], ["1", "1", "1"], "3 bucket counts and 1 bounds"),
        ([1.0], [], "0 bucket counts and 1 bounds"),
        ([2.0, 1.0], ["1", "1", "1"], "bounds do not increase"),
        ([1.0, 1.0], ["1", "1", "1"], "bounds do not increase"),
        (["NaN"], ["1", "2"], "bounds do not increase"),
    ],
)
def test_histograms_whose_buckets_cannot_be_right_are_refused(server, bounds, counts, reason):
    name = f"misfit {reason} {bounds}"
    good = [histogram([1.0, 2.0], ["1", "1", "1"]), gauge("load", T0), histogram([], [], T0 + 1)]
    answer = send(server, name, histogram(bounds, counts), *good)
    assert answer["rejectedDataPoints"] == "1"
    assert reason in answer["errorMessage"]
    (run,) = Client(server.url).runs(name)
    assert [len(distribution) for distribution in run.distributions("wait")] == [2]
    assert len(run.series("load", x="time")) == 1


def test_a_point_from_the_future_hides_no_lag(server_on_each):
    """It counts as of its arrival."""
    send(server_on_each, "future", gauge("load", T0), gauge("load", YEAR_2116))
    (run,) = server_on_each.get("/api/v1/runs", project="future")["runs"]
    assert run["lag"] == 0
    assert [run["id"] for run in server_on_each.get("/api/v1/runs", project="future", filter="lag >= 0")["runs"]] == [
        run["id"]
    ]
    send(server_on_each, "past", gauge("load", T0))
    (run,) = server_on_each.get("/api/v1/runs", project="past")["runs"]
    assert run["lag"] > 0
