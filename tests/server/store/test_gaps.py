"""Points that are flagged as having no recorded value have none in any answer, and the lines of their series break there."""

import json
import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tensormeter.otlp.decode import decode_metrics
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import query_points
from tensormeter.server.store import PointRange, RunRef, Selection
from tensormeter.server.store.rules.gaps import MAX_GAPS
from tensormeter.server.store.sqlite.points.segments import SEGMENT_POINTS
from tensormeter.server.store.sqlite.retention import Retention

S = 10**9
T0 = 1_750_000_000
COLUMNS = "application/vnd.tensormeter.columns"


def body(run, points, *, name="load", process="p", total=False, project="gaps"):
    """A request; `points` are (second, value), and None is the flag."""
    listed = [
        NumberDataPoint(time_unix_nano=(T0 + second) * S, flags=1)
        if value is None
        else NumberDataPoint(
            time_unix_nano=(T0 + second) * S, **{"as_int" if type(value) is int else "as_double": value}
        )
        for second, value in points
    ]
    data = (
        {"sum": Sum(aggregation_temporality=2, data_points=listed)} if total else {"gauge": Gauge(data_points=listed)}
    )
    names = {"service.name": project, "tensormeter.run.id": run, "service.instance.id": process}
    resource = Resource(
        attributes=[KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in names.items()]
    )
    scoped = ScopeMetrics(metrics=[Metric(name=name, **data)])
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[scoped])]
    ).SerializeToString()


def send(server, run, points, **more):
    answer = server.post("/v1/metrics", body(run, points, **more))
    assert (answer.status, answer.data) == (200, b"")


def lines(server, run, **query):
    """(x, y, gaps) of each line, alike in JSON and in columns; with the cursor, and whether it is everything."""
    document = {"runs": [run], "metrics": ["load"], "x": "time"} | query
    status, document_read = server.send("POST", "/api/v1/query", document)
    assert status == 200, document_read
    answer = server.http.request(
        "POST", f"{server.url}/api/v1/query", body=json.dumps(document).encode(), headers={"Accept": COLUMNS}
    )
    header = json.loads(answer.data[4 : 4 + int.from_bytes(answer.data[:4], "little")])

    def column(place):
        return np.frombuffer(answer.data, "<f8", place["length"], place["offset"]).tolist()

    in_json = [(series["x"], series["y"], series.get("gaps", [])) for series in document_read["series"]]
    in_columns = [
        (column(series["x"]), column(series["y"]), column(series["gaps"]) if "gaps" in series else [])
        for series in header["series"]
    ]
    assert in_json == in_columns
    assert document_read["reset"] == header["reset"]
    return in_json, document_read["cursor"], document_read["reset"]


def seconds(gaps):
    return [x - T0 for x in gaps]


@pytest.mark.parametrize("total", [False, True])
def test_lines_break_where_nothing_was_recorded(server_on_each, total):
    run = f"breaks-{total}"
    send(server_on_each, run, [(1, 1.0), (2, 2.0), (3, None), (4, 4.0), (5, 5.0)], total=total)
    ((x, y, gaps),), _, _ = lines(server_on_each, run)
    assert (seconds(x), y, seconds(gaps)) == ([1, 2, 4, 5], [1, 2, 4, 5], [2])
    ((x, _, gaps),), _, _ = lines(server_on_each, run, start=T0 + 4)
    assert (seconds(x), gaps) == ([4, 5], [])


def test_a_gap_has_no_value_in_any_answer(server_on_each):
    run, server = "no-value", server_on_each
    send(server, run, [(1, 1.0), (2, 2.0), (3, None), (4, 4.0)])
    send(server, run, [(1, None), (2, None)], name="only gaps")
    at = f"/api/v1/runs/{run}"
    (metric,) = server.get(f"{at}/metrics")["metrics"]
    assert (metric["name"], metric["points"], metric["last"]) == ("load", 3, 4.0)
    summary = server.get(at)["summary"]["load"]
    assert {key: summary[key] for key in ("count", "last", "min", "max", "mean")} == {
        "count": 3, "last": 4.0, "min": 1.0, "max": 4.0, "mean": pytest.approx(7 / 3)
    }  # fmt: skip
    (series,) = server.get(f"{at}/series", metric="load", x="time")["series"]
    assert series["value"] == [1.0, 2.0, 4.0]
    assert series["gaps"] == [(T0 + 3) * S]
    (series,) = server.get(f"{at}/series", metric="load", x="time", start=(T0 + 3) * S)["series"]
    assert (series["value"], series["gaps"]) == ([4.0], [(T0 + 3) * S])
    assert server.get(f"{at}/ranks", metric="load", x="time")["max"] == [1.0, 2.0, 4.0]
    assert server.get(f"{at}/series", metric="only gaps", x="time")["series"] == []


def test_gaps_by_step_are_at_the_step_before(server_on_each):
    run = "by-step"
    send(server_on_each, run, [(1, 10), (2, 20), (4, 40)], name="tensormeter.step")
    send(server_on_each, run, [(1, 1.0), (2, 2.0), (3, None), (4, 4.0)])
    assert lines(server_on_each, run, x="step")[0] == [([10, 20, 40], [1, 2, 4], [20])]


def test_breaks_outlast_sampling(server_on_each):
    run = "sampled"
    points = [(i, math.sin(i)) for i in range(1, 1000)]
    points[499] = (500, None)
    send(server_on_each, run, points)
    ((x, _, gaps),), _, _ = lines(server_on_each, run, max_points=20)
    assert len(x) <= 20
    assert seconds(gaps) == [499]


def test_new_gaps_reach_those_who_follow(server_on_each):
    """A gap changes what is known already, so that what follows a cursor is everything once; then it goes on with what is new."""
    run, server = "followed", server_on_each
    send(server, run, [(1, 1.0), (2, 2.0)])
    _, cursor, _ = lines(server, run)
    send(server, run, [(3, None)])
    send(server, run, [(4, 4.0)])
    ((x, _, gaps),), cursor, reset = lines(server, run, after=cursor)
    assert (seconds(x), seconds(gaps), reset) == ([1, 2, 4], [2], True)
    send(server, run, [(5, 5.0)])
    ((x, _, gaps),), cursor, reset = lines(server, run, after=cursor)
    assert (seconds(x), gaps, reset) == ([5], [], False)
    send(server, run, [(1, None)])  # late
    ((x, _, gaps),), _, reset = lines(server, run, after=cursor)
    assert (seconds(x), seconds(gaps), reset) == ([1, 2, 4, 5], [1, 2], True)


def test_gaps_count_among_the_points_of_a_request(server_on_each):
    run, server = "counted", server_on_each
    send(server, run, [(1, 1.0), (2, None), (3, None), (4, 4.0)])
    at = f"/api/v1/runs/{run}/series"
    assert server.ask(at, metric="load", x="time", limit=4)[0] == 200
    status, document = server.ask(at, metric="load", x="time", limit=3)
    assert (status, document["error"]["code"]) == (413, "too_many_points")


def test_gaps_of_processes_are_their_own(server_on_each):
    run = "processes"
    send(server_on_each, run, [(1, 1.0), (2, None), (3, 3.0)], process="a")
    send(server_on_each, run, [(1, 1.0), (3, 3.0)], process="b")
    assert [seconds(gaps) for _, _, gaps in lines(server_on_each, run)[0]] == [[1], []]


def test_gaps_outlive_the_server_and_go_with_their_run(start_on_each, eventually):
    run, server = "kept", start_on_each()
    send(server, run, [(1, 1.0), (2, None), (3, 3.0)])
    send(server, run, [(2, None)])  # again, as senders do
    server.kill()
    server = start_on_each()
    assert [seconds(gaps) for _, _, gaps in lines(server, run)[0]] == [[1]]
    assert server.send("DELETE", f"/api/v1/runs/{run}")[0] == 204
    send(server, run, [(5, None)])  # for a run that is gone
    if server.clickhouse is None:
        with closing(sqlite3.connect(server.folder / "tensormeter.db")) as database:
            eventually(lambda: database.execute("SELECT count(*) FROM gap").fetchone() == (0,))


def append(store, points, **more):
    payload = body("r", points, **more)
    store.append_metrics(decode_metrics(payload), payload=payload)


def line(store, **query):
    (only_line,) = query_points(store, [RunRef("r")], RunQuery(("load",), Axis.parse("time"), **query)).series
    return only_line


def test_the_newest_gaps_of_a_series_are_kept(open_store, query):
    store = open_store()
    append(store, [(0, 1.0)])
    append(store, [(second, None) for second in range(1, MAX_GAPS + 1)])
    append(store, [(MAX_GAPS + 1, None), (MAX_GAPS + 2, None), (MAX_GAPS + 3, 1.0)])
    assert query("SELECT count(*), min(time) FROM gap") == [(MAX_GAPS, (T0 + 3) * S)]
    assert seconds(line(store).gaps) == [0]


def test_lines_made_of_samples_break(open_store, monkeypatch):
    monkeypatch.setattr("tensormeter.server.query.points.sampled.WHOLE_POINTS", 1000)
    store = open_store()
    n = 4 * SEGMENT_POINTS
    for part in np.array_split(np.arange(1, n + 1), 4):
        append(store, [(int(second), float(second)) for second in part if second != n // 2])
    append(store, [(n // 2, None)])
    store.flush()
    blocks = [rollup.blocks for rollup in store.read_rollups(RunRef("r"), Selection(["load"]), PointRange(), 50)]
    assert all(block is not None for block in blocks)
    sampled = line(store, max_points=100)
    (gap,) = sampled.gaps
    assert sampled.total == n - 1
    assert len(sampled.x) <= 100
    after = sampled.x[np.searchsorted(sampled.x, gap, "right")]
    assert gap < T0 + n // 2 < after


def test_retention_removes_gaps(open_store, query):
    store = open_store()
    append(store, [(1, 1.0), (2, None), (3, 3.0)])
    store.close()
    store = open_store(retention=Retention(max_age=3600))
    store._expire()
    assert query("SELECT count(*), min(time) FROM gap") == [(0, None)]


def test_a_store_of_version_5_keeps_gaps_from_now_on(open_store, query):
    store = open_store()
    append(store, [(1, 1.0), (3, 3.0)])
    store.close()
    query("DROP TABLE gap", "PRAGMA user_version = 5")
    store = open_store()
    append(store, [(2, None)])
    assert seconds(line(store).gaps) == [1]
