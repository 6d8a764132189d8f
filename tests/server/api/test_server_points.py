"""Points as charts ask for them: axes, ranges, sampling, many series, binary columns, cursors, ranks, the stream."""

import json
import math
import struct
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.waiting import wait_for
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.server.query.points.downsampling import choose_evenly, sample
from tensormeter.server.query.points.histograms import decode_distribution
from tensormeter.server.store.models.metric_kind import Kind

T0 = 1_750_000_000_000_000_000
SECOND = 10**9


@pytest.fixture(scope="module")
def curves(server, make):
    """Two runs of two processes each; epochs are logged every tenth step."""
    for run in ("c0", "c1"):
        for rank in range(2):
            rows = []
            for step in range(100):
                values = {"loss": 100.0 - step + rank}
                if step % 10 == 0:
                    values["epoch"] = step / 10
                rows.append((T0 + step * SECOND + rank, step, values))
            server.metrics(make.rows(run, rows, process=f"p{rank}", project="curves"))
    return server


def query_loss(server, *runs, **query):
    (series,) = server.query(*runs, metrics=["loss"], process="p0", **query)["series"]
    return series


def test_many_series_of_many_runs(curves):
    lines = curves.query("c0", "c1", metrics=["loss", "epoch", "nothing"])["series"]
    named = [(series["run"], series["metric"], series["process"], series["total"]) for series in lines]
    assert named == [
        (run, metric, process, total)
        for run in ("c0", "c1")
        for metric, total in (("epoch", 10), ("loss", 100))
        for process in ("p0", "p1")
    ]
    assert lines[2]["x"] == list(range(100))
    assert lines[2]["y"] == [100.0 - step for step in range(100)]


def test_axes(curves):
    assert query_loss(curves, "c0", x="time")["x"][:2] == [T0 / 1e9, T0 / 1e9 + 1]
    assert query_loss(curves, "c0", x="relative")["x"][:2] == [0.0, 1.0]
    by_epoch = query_loss(curves, "c0", x="metric:epoch")
    assert (by_epoch["x"], by_epoch["y"][:2]) == ([float(i // 10) for i in range(100)], [100.0, 99.0])
    assert curves.query("c0", metrics=["loss"], x="metric:nothing")["series"] == []


@pytest.mark.parametrize(
    ("query", "total", "first"),
    [
        ({"start": 10}, 90, 10),
        ({"start": 10, "stop": 12}, 2, 10),
        ({"start": 9.5, "stop": 12.5}, 3, 10),
        ({"stop": 0.5}, 1, 0),
        ({"x": "relative", "start": 50, "stop": 60}, 10, 50),
        ({"x": "time", "start": T0 / 1e9 + 98}, 2, T0 / 1e9 + 98),
        ({"x": "metric:epoch", "start": 3, "stop": 5}, 20, 3),
    ],
)
def test_ranges_are_cut_before_sampling(curves, query, total, first):
    series = query_loss(curves, "c0", max_points=4, **query)
    assert (series["total"], series["x"][0]) == (total, first)
    assert len(series["x"]) <= 4
    assert curves.query("c0", metrics=["loss"], start=5, stop=2)["series"] == []


def test_an_integer_of_json_may_have_a_fraction_of_zero(curves):
    assert query_loss(curves, "c0", max_points=8.0, attempt=1.0) == query_loss(curves, "c0", max_points=8, attempt=1)


def test_numbers_that_json_lacks(server_on_each, make):
    server = server_on_each
    values = [1.0, math.nan, math.inf, -math.inf, -0.0, 5e-324]
    server.metrics(make.rows("odd-numbers", [(T0 + i, i, {"loss": value}) for i, value in enumerate(values)]))
    assert query_loss(server, "odd-numbers")["y"] == [1.0, "NaN", "Infinity", "-Infinity", -0.0, 5e-324]
    columns = read_columns(server, "odd-numbers", metrics=["loss"])["series"][0]["y"]
    assert np.array(columns).tobytes() == np.array(values).tobytes()


def read_columns(server, *runs, **query):
    answer = server.http.request(
        "POST",
        f"{server.url}/api/v1/query",
        body=json.dumps({"runs": runs} | query),
        headers={"Accept": "application/vnd.tensormeter.columns, application/json;q=0.5"},
    )
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/vnd.tensormeter.columns")
    (length,) = struct.unpack_from("<I", answer.data)
    document = json.loads(answer.data[4 : 4 + length], parse_constant=pytest.fail)
    begin, ends = 4 + length, []
    for series in document["series"]:
        for name in ("x", "y"):
            about = series[name]
            assert about["offset"] % 8 == 0
            assert about["offset"] >= begin
            assert about["type"] == "f64"
            ends.append(about["offset"] + 8 * about["length"])
            series[name] = np.frombuffer(answer.data, "<f8", about["length"], about["offset"]).tolist()
    assert not ends or max(ends) == len(answer.data)
    return document


def test_binary_columns_say_the_same(curves):
    query = {"metrics": ["loss", "epoch"], "max_points": 16}
    assert read_columns(curves, "c0", "c1", **query) == curves.query("c0", "c1", **query)
    assert read_columns(curves, "c0", metrics=["nothing"])["series"] == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"runs": [], "metrics": ["v"]},
        {"runs": ["c0"], "metrics": []},
        {"runs": "c0", "metrics": ["v"]},
        {"runs": ["c0"], "metrics": [1]},
        {"runs": ["c0"], "metrics": ["v"], "x": "epoch"},
        {"runs": ["c0"], "metrics": ["v"], "x": 1},
        {"runs": ["c0"], "metrics": ["v"], "start": "ten"},
        {"runs": ["c0"], "metrics": ["v"], "start": True},
        {"runs": ["c0"], "metrics": ["v"], "max_points": 3},
        {"runs": ["c0"], "metrics": ["v"], "max_points": 10**9},
        {"runs": ["c0"], "metrics": ["v"], "after": 5},
        {"runs": ["c0"], "metrics": ["v"], "attributes": []},
        [],
    ],
)
def test_queries_that_are_none(curves, document):
    status, answer = curves.send("POST", "/api/v1/query", document)
    assert (status, answer["error"]["code"]) == (400, "bad_request")


def test_limits_of_one_query(curves, make):
    for document in ({"runs": ["x"] * 201}, {"runs": [f"r{i}" for i in range(201)]}):
        status, answer = curves.send("POST", "/api/v1/query", {"metrics": ["v"]} | document)
        assert (status, answer["error"]["code"]) == (413, "too_large")
    assert curves.send("POST", "/api/v1/query", {"runs": ["nothing"], "metrics": ["v"]})[0] == 404
    answer = curves.http.request("POST", f"{curves.url}/api/v1/query", body=b"[" + b" " * (1 << 20))
    assert answer.status == 413


def test_only_what_arrived_since(server, make):
    def rows(first, last):
        return make.rows("since", [(T0 + i, i, {"loss": float(i)}) for i in range(first, last)])

    server.metrics(rows(0, 10))
    cursor = server.query("since", metrics=["loss"])["cursor"]
    empty = server.query("since", metrics=["loss"], after=cursor)
    assert (empty["series"], empty["reset"]) == ([], False)
    server.metrics(rows(10, 12))
    new = server.query("since", metrics=["loss"], after=cursor)
    assert (new["reset"], new["series"][0]["x"], new["series"][0]["y"]) == (False, [10, 11], [10.0, 11.0])
    server.metrics(rows(12, 13))
    assert server.query("since", metrics=["loss"], after=new["cursor"])["series"][0]["x"] == [12]
    assert server.query("since", metrics=["loss"], after=cursor, start=12)["series"][0]["x"] == [12]
    for unknown in ("nonsense", "999999.0", "-1.0", "1.x", "9" * 50):
        everything = server.query("since", metrics=["loss"], after=unknown)
        assert (everything["reset"], everything["series"][0]["total"]) == (True, 13)


def test_new_values_whose_steps_arrived_before(server, make):
    times, steps = np.arange(T0, T0 + 20).astype(np.uint64), np.arange(20)
    batch = make.rows("steps-first", [(T0, 0, {"loss": 0.0})])
    server.metrics(replace(batch, series=[Gauge(STEP_METRIC, times[:10], steps[:10])]))
    cursor = server.query("steps-first", metrics=["loss"])["cursor"]
    values = Gauge("loss", times[5:15], steps[5:15] * 2.0)
    server.metrics(replace(batch, series=[values, Gauge(STEP_METRIC, times[10:20], steps[10:20])]))
    (new,) = server.query("steps-first", metrics=["loss"], after=cursor)["series"]
    assert (new["x"], new["y"]) == ([*range(5, 15)], [2.0 * step for step in range(5, 15)])


def test_chain_of_updates_returns_each_point_once(server, make):
    """Points arrive while the queries run, for two runs at once."""
    runs, done, sent = ("chain0", "chain1"), threading.Event(), [0]

    def send():
        while not done.is_set():
            for run in runs:
                server.metrics(make.rows(run, [(T0 + sent[0], sent[0], {"loss": float(sent[0])})]))
            sent[0] += 1

    def poll(**cursor):
        answer = server.query(*runs, metrics=["loss"], max_points=0, **cursor)
        assert not answer["reset"]
        found.update((series["run"], x) for series in answer["series"] for x in series["x"])
        return answer["cursor"]

    found: Counter[tuple[str, int]] = Counter()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_for(lambda: sent[0], "both runs have points", 60)
        cursor = poll()
        for _ in range(100):
            cursor = poll(after=cursor)
    finally:
        done.set()
        sender.join()
    poll(after=cursor)
    assert found == {(run, step): 1 for run in runs for step in range(sent[0])}


def test_ranks(curves, make):
    statistics = curves.get("/api/v1/runs/c0/ranks", metric="loss")
    assert statistics["x"] == list(range(100))
    assert (statistics["min"][0], statistics["median"][0], statistics["max"][0]) == (100.0, 100.5, 101.0)
    assert (set(statistics["lowest"]), set(statistics["highest"]), statistics["processes"]) == ({"p0"}, {"p1"}, 2)
    few = curves.get("/api/v1/runs/c0/ranks", metric="loss", max_points=10, start=50)
    assert (few["x"], few["min"][0], few["max"][0]) == ([50 + 5 * i for i in range(10)], 46.0, 51.0)
    assert curves.get("/api/v1/runs/c0/ranks", metric="nothing")["x"] == []
    # A straggler that lacks steps, and one that has only NaN at one of them.
    for rank, values in enumerate(([1.0, 2.0], [5.0, math.nan], [3.0])):
        rows = [(T0 + step, step, {"v": value}) for step, value in enumerate(values)]
        curves.metrics(make.rows("stragglers", rows, process=f"p{rank}"))
    statistics = curves.get("/api/v1/runs/stragglers/ranks", metric="v")
    assert (statistics["min"], statistics["median"], statistics["max"]) == ([1.0, 2.0], [3.0, 2.0], [5.0, 2.0])
    assert (statistics["lowest"], statistics["highest"]) == (["p0", "p0"], ["p1", "p0"])


def test_the_stream_says_what_grew(server, make):
    server.metrics(make.rows("streamed", [(T0, 0, {"loss": 1.0})]))
    cursor = server.query("streamed", metrics=["loss"])["cursor"]
    answer = server.http.request(
        "GET", f"{server.url}/api/v1/stream?runs=streamed,nothing&after={cursor}", preload_content=False
    )
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    try:
        events = read_events(answer)
        first = next(event for event in events if event[0] == "update")
        assert first[1] == {"run": "streamed", "metrics": [], "state": "running"}
        server.metrics(make.rows("streamed", [(T0 + 1, 1, {"loss": 0.5, "new": 1.0})]))
        update = next(event for event in events if event[0] == "update")
        assert update[1] == {"run": "streamed", "metrics": ["loss", "new", "tensormeter.step"]}
        _, document, identifier = next(event for event in events if event[0] == "cursor")
        assert identifier == document["cursor"]
        server.events(make.resource("streamed"), Event("tensormeter.run.end", T0 + 2, {"state": "finished"}))
        update = next(event for event in events if event[0] == "update")
        assert update[1] == {"run": "streamed", "metrics": [], "state": "finished", "events": True}
    finally:
        answer.close()
    status, document = server.ask("/api/v1/stream")
    assert (status, document["error"]["code"]) == (400, "bad_request")


def read_events(answer):
    text = b""
    for part in answer.stream(1):
        text += part
        while b"\n\n" in text:
            block, _, text = text.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
            if "event" in fields:
                yield fields["event"], json.loads(fields["data"]), fields.get("id")


def test_a_stream_ends_when_the_server_stops(start, make):
    server = start()
    server.metrics(make.rows("r", [(T0, 0, {"loss": 1.0})]))
    answer = server.http.request("GET", f"{server.url}/api/v1/stream?runs=r", preload_content=False)
    next(answer.stream(1))
    assert server.stop() == 0
    assert server.stderr == ""
    answer.close()


def test_a_stream_for_pages_of_other_sites_is_refused(server):
    headers = {"Origin": "https://evil.example"}
    assert server.http.request("GET", f"{server.url}/api/v1/stream?runs=r", headers=headers).status == 403


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(-100, 100), st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=400
    ),
    st.integers(4, 60),
)
@example([1.0, 5.0, -3.0, math.nan, 2.0, 9.0, 1.5, 2.0], 4)
def test_sampling_keeps_what_matters(numbers, max_points):
    values = np.array(numbers)
    kept = sample(values, max_points)
    assert len(kept) <= max_points
    assert np.all(np.diff(kept) > 0)
    assert {0, len(values) - 1} <= set(kept.tolist())
    if len(values) <= max_points:
        assert len(kept) == len(values)
    sampled = values[kept]
    if max_points > 4:
        assert np.isnan(sampled).any() == np.isnan(values).any()
    present = values[~np.isnan(values)]
    if len(present):
        shown = sampled[~np.isnan(sampled)]
        assert (shown.min(), shown.max()) == (present.min(), present.max())
    assert sample(values, 0).tolist() == list(range(len(values)))


@given(st.integers(1, 1000), st.integers(2, 50))
def test_evenly(n, most):
    kept = choose_evenly(n, most)
    assert len(kept) == min(n, most)
    assert {0, n - 1} <= set(kept.tolist())


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-10, 20),
    st.integers(-2000, 2000),
    st.lists(st.integers(0, 1000), max_size=400),
    st.integers(-2000, 2000),
    st.lists(st.integers(0, 1000), max_size=400),
    st.integers(0, 5),
)
@example(0, 2000, [0], 2000, [], 0)
@example(20, 2000, [], -2000, [0, 0], 0)
def test_exponential_buckets_keep_every_count(scale, offset, counts, negative_offset, negatives, zeros):
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint as Point

    point = Point(count=sum(counts) + sum(negatives) + zeros, scale=scale, zero_count=zeros)
    point.positive.offset, point.negative.offset = offset, negative_offset
    point.positive.bucket_counts.extend(counts)
    point.negative.bucket_counts.extend(negatives)
    distribution = decode_distribution(Kind("exponential_histogram"), point.SerializeToString())
    assert sum(distribution.counts) == point.count
    assert list(distribution.bounds) == sorted(set(distribution.bounds))
    assert len(distribution.counts) == (len(distribution.bounds) + 1 if point.count else 0)
    assert len(distribution.bounds) <= 164
    assert all(map(math.isfinite, distribution.bounds))


def test_a_million_points_are_thinned_and_the_peak_stays(server, make):
    n = 1_000_000
    values = np.zeros(n)
    values[777_777] = 1.0
    times = (T0 + np.arange(n) * 1000).astype(np.uint64)
    for part in np.array_split(np.arange(n), 4):
        gauges = [Gauge("tensormeter.step", times[part], part), Gauge("loss", times[part], values[part])]
        assert server.metrics(Batch(make.resource("million"), gauges)).status == 200
    (series,) = server.query("million", metrics=["loss"], max_points=2000)["series"]
    assert series["total"] == n
    assert len(series["x"]) <= 2000
    assert series["x"][series["y"].index(1.0)] == 777_777
