"""Values come back from a real server bit for bit."""

import gzip
import math
import struct

import numpy as np
import pytest

from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

SECOND = 1_000_000_000
T0 = 1_750_000_000 * SECOND


def bits(value):
    return struct.pack("<d", value)


def test_a_row_of_every_kind_of_value(server_on_each, make, decode_number):
    server = server_on_each
    values = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, -2.2250738585072009e-308, 0.1, 1.7976931348623157e308]
    rows = [(T0 + i, i, {"x": value}) for i, value in enumerate(values)]
    assert server.metrics(make.rows("bits", rows)).status == 200
    (series,) = server.get("/api/v1/runs/bits/series", metric="x")["series"]
    assert series["time"] == [T0 + i for i in range(len(values))]
    assert series["step"] == list(range(len(values)))
    assert [bits(decode_number(value)) for value in series["value"]] == [bits(value) for value in values]


def test_integers_are_exact_and_may_mix_with_floats(server_on_each, make):
    server = server_on_each
    integers = [2**53 + 1, -(2**63), 2**63 - 1, 0]
    assert server.metrics(make.rows("ints", [(T0 + i, i, {"n": n}) for i, n in enumerate(integers)])).status == 200
    assert server.metrics(make.rows("ints", [(T0 + 9, 9, {"n": 0.5})])).status == 200
    assert server.metrics(make.rows("ints", [(T0 + 10, 10, {"n": 7})])).status == 200
    (series,) = server.get("/api/v1/runs/ints/series", metric="n")["series"]
    assert series["value"] == [*integers, 0.5, 7]
    assert [type(value) for value in series["value"]] == [int] * 4 + [float, int]


def test_steps_in_any_order_several_times_and_not_at_all(server, make):
    rows = [(T0, 5, {"a": 1.0}), (T0 + 1, 2, {"a": 2.0, "b": 9.0}), (T0 + 2, 5, {"a": 3.0}), (T0 + 3, -1, {"b": 8.0})]
    batch = make.rows("order", rows)
    unstepped = Batch(batch.resource, [make.gauge("a", [T0 + 4], [4.0])])
    assert server.metrics(batch).status == server.metrics(unstepped).status == 200

    (a,) = server.get("/api/v1/runs/order/series", metric="a", x="step")["series"]
    assert a["step"] == [2, 5, 5, None]
    assert a["value"] == [2.0, 1.0, 3.0, 4.0]
    assert a["time"] == [T0 + 1, T0, T0 + 2, T0 + 4]
    (a,) = server.get("/api/v1/runs/order/series", metric="a", x="time")["series"]
    assert a["step"] == [5, 2, 5, None]
    assert a["value"] == [1.0, 2.0, 3.0, 4.0]
    (b,) = server.get("/api/v1/runs/order/series", metric="b")["series"]
    assert (b["step"], b["value"]) == ([-1, 2], [8.0, 9.0])


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ({"start": 3}, [3.0, 4.0, 5.0]),
        ({"stop": 3}, [0.0, 1.0, 2.0]),
        ({"start": 2, "stop": 4}, [2.0, 3.0]),
        ({"start": 4, "stop": 2}, None),
        ({"x": "time", "start": T0 + 4}, [4.0, 5.0]),
        ({"x": "time", "start": T0 + 1, "stop": T0 + 3}, [1.0, 2.0]),
        ({"x": "time", "stop": T0}, None),
        ({"start": -(10**18), "stop": 2**63 - 1}, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
)
def test_ranges_are_half_open(server, make, query, values):
    server.metrics(make.rows("range", [(T0 + i, i, {"v": float(i)}) for i in range(6)]), batch_id="range")
    lines = server.get("/api/v1/runs/range/series", metric="v", **query)["series"]
    assert [value for series in lines for value in series["value"]] == (values or [])


def test_listing(server, make):
    rows = [(T0 - SECOND, 0, {"loss": 2.0, "acc": 0.1}), (T0, 1, {"loss": math.nan})]
    gauge = Gauge(
        "gpu",
        np.array([T0 + 5], np.uint64),
        np.array([61]),
        unit="Cel",
        description="how hot",
        attributes={"gpu": "0", "ids": [1, 2]},
    )
    resource = make.resource("listed", project="lists", extra="kept")
    server.metrics(make.rows("listed", rows, project="lists"))
    server.metrics(Batch(resource, [gauge]))

    projects = {project["name"]: project for project in server.get("/api/v1/projects")["projects"]}
    assert projects["lists"]["runs"] == 1
    listed = server.get("/api/v1/runs", project="lists", fields="config,summary")
    assert listed["total"] == 1
    (run,) = listed["runs"]
    assert run["started"] == str(T0 - SECOND)
    assert int(run["last_time"]) > T0
    assert (run["id"], run["name"], run["state"], run["points"]) == ("listed", "name of listed", "running", 6)
    assert run["processes"] == 1
    assert run["summary"]["acc"] == {
        "value": 0.1,
        "last": 0.1,
        "min": 0.1,
        "max": 0.1,
        "mean": 0.1,
        "count": 1,
        "last_step": 0,
        "last_time": str(T0 - SECOND),
    }
    loss = run["summary"]["loss"]
    assert [loss[key] for key in ("last", "min", "max", "mean", "count", "last_step")] == ["NaN", 2.0, 2.0, 2.0, 2, 1]

    details = server.get("/api/v1/runs/listed")
    process = {"id": "p0", "attempt": 1, "rank": None, "host": None, "state": None, "resource": resource}
    assert details == run | {"processes": [process], "environment": resource, "losses": {}, "results": {}}
    assert (details["lost"], details["lag"] > 0) == (0, True)
    metrics = {metric["name"]: metric for metric in server.get("/api/v1/runs/listed/metrics")["metrics"]}
    assert list(metrics) == ["acc", "gpu", "loss", "tensormeter.step"]
    assert [metrics["loss"][key] for key in ("last", "last_step", "last_time")] == ["NaN", 1, str(T0)]
    assert metrics["gpu"] == {
        "name": "gpu",
        "kind": "gauge",
        "unit": "Cel",
        "description": "how hot",
        "temporality": None,
        "monotonic": None,
        "attributes": [{"gpu": "0", "ids": [1, 2]}],
        "points": 1,
        "processes": 1,
        "last": 61,
        "last_step": None,
        "last_time": str(T0 + 5),
    }


def test_pages_newest_first(server, make):
    for i in range(5):
        server.metrics(make.rows(f"page-{i}", [(T0 + i, 0, {"v": 1.0})], project="pages"))
    page = server.get("/api/v1/runs", project="pages", limit=2, offset=1)
    assert page["total"] == 5
    assert [run["id"] for run in page["runs"]] == ["page-3", "page-2"]


def test_one_run_id_in_two_projects_and_two_processes_of_one_run(server, make):
    server.metrics(make.rows("twice", [(T0, 0, {"v": 1.0})], project="one"))
    server.metrics(make.rows("twice", [(T0, 0, {"v": 2.0})], project="two"))
    server.metrics(make.rows("twice", [(T0, 7, {"v": 3.0})], project="two", process="p1"))
    status, document = server.ask("/api/v1/runs/twice")
    assert (status, document["error"]["code"]) == (409, "ambiguous")
    assert "'one', 'two'" in document["error"]["message"]
    lines = server.get("/api/v1/runs/twice/series", metric="v", project="two")["series"]
    assert [(s["process"], s["step"], s["value"]) for s in lines] == [("p0", [0], [2.0]), ("p1", [7], [3.0])]
    (series,) = server.get("/api/v1/runs/twice/series", metric="v", project="two", process="p1")["series"]
    assert series["process"] == "p1"


def test_odd_names_are_only_names(server_on_each, make):
    server = server_on_each
    names = ["'; DROP TABLE run; --", "<script>alert(1)</script>", "a/b?c=d&e", "日本\x00\x1b[31m", "%2e%2e/"]
    rows = [(T0, 0, dict.fromkeys(names, 1.0))]
    server.metrics(make.rows("odd", rows, project=names[0]))
    assert server.get("/api/v1/runs", project=names[0])["total"] == 1
    for name in names:
        (series,) = server.get("/api/v1/runs/odd/series", metric=name)["series"]
        assert series["value"] == [1.0]


def test_large_answers_are_cut_into_pieces_that_fit(server, make):
    n = 50_000
    rows = np.arange(n)
    gauges = [
        Gauge("tensormeter.step", (T0 + rows).astype(np.uint64), rows),
        Gauge("v", (T0 + rows).astype(np.uint64), np.sqrt(rows)),
    ]
    body = gzip.compress(encode_metrics([Batch(make.resource("large"), gauges)]), 1)
    assert server.post("/v1/metrics", body, Content_Encoding="gzip").status == 200
    (series,) = server.get("/api/v1/runs/large/series", metric="v")["series"]
    assert series["step"] == rows.tolist()
    assert series["value"] == np.sqrt(rows).tolist()
    assert series["time"] == (T0 + rows).tolist()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/runs/nothing", 404, "not_found"),
        ("/api/v1/runs/nothing/metrics", 404, "not_found"),
        ("/api/v1/runs/nothing/series?metric=x", 404, "not_found"),
        ("/api/v1/runs/..%2f..%2fetc", 404, "not_found"),
        ("/api/v1/nothing", 404, "not_found"),
        ("/api/v1/runs?limit=0", 400, "bad_request"),
        ("/api/v1/runs?limit=x", 400, "bad_request"),
        ("/api/v1/runs?offset=-1", 400, "bad_request"),
        ("/api/v1/runs?limit=" + "9" * 5000, 400, "bad_request"),
        ("/api/v1/runs/x/series", 400, "bad_request"),
        ("/api/v1/runs/x/series?metric=v&x=epoch", 400, "bad_request"),
        ("/api/v1/runs/x/series?metric=v&start=1.5", 400, "bad_request"),
    ],
)
def test_errors_have_one_shape(server, path, status, code):
    answered, document = server.ask(path)
    assert (answered, document["error"]["code"]) == (status, code)
    assert document["error"]["message"]


def test_service_document_and_health(server):
    assert server.get("/")["name"] == "tensormeter"
    assert server.get("/healthz") == {"status": "ok"}
    assert server.http.request("POST", f"{server.url}/api/v1/runs").status == 405
