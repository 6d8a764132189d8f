"""`tensormeter.Client`, over a real server."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tensormeter
from support.processes import run_python
from tensormeter.client import ApiError
from tensormeter.client.connection import Connection
from tensormeter.errors import SettingsError, TensormeterError, UsageError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event
from tensormeter.otlp.media import Image, Table

T0 = 1_750_000_000_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + b"not looked at"
NUMBERS = [0.5, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1 / 3]


@pytest.fixture(scope="module")
def client(server, make):
    for rank in range(2):
        times = [T0 + 1000 * i + rank for i in range(len(NUMBERS))]
        resource = make.resource("aa01", f"p{rank}", **{"tensormeter.rank": rank})
        gauges = [
            make.gauge(STEP_METRIC, times[:-1], [10 * i for i in range(len(NUMBERS) - 1)]),
            make.gauge("loss", times, NUMBERS, split="train"),
            make.gauge("count", times, [2**62 + i for i in range(len(NUMBERS))]),
        ]
        assert server.metrics(Batch(resource, gauges)).status == 200
    start = Event("tensormeter.run.start", T0, {"config": {"lr": 0.1, "model": {"layers": 2}}})
    table = Table("errors", ["name", "share", "share"], [["a", 0.5, math.nan], ["b", None, 1]])
    image = Image("sample", PNG, "image/png", 2, 3, "a picture")
    alert = Event("tensormeter.alert", T0 + 5, {"title": "hot", "text": "", "level": "WARN"})
    server.events(
        make.resource("aa01", **{"tensormeter.rank": 0}),
        start,
        table.event(T0 + 1, 7),
        image.event(T0 + 2, None),
        alert,
    )
    for number in range(3):
        server.metrics(make.rows(f"bb0{number}", [(T0 + 10**12 + number, 1, {"loss": number / 2})], project="other"))
    with tensormeter.Client(server.url) as client:
        yield client


def test_runs(client):
    assert client.projects() == ["demo", "other"]
    assert [run.id for run in client.runs()] == ["bb02", "bb01", "bb00", "aa01"]
    runs = client.runs("other", filter="summary.loss.last > 0", sort="summary.loss.last", fields=["summary.loss"])
    assert [(run.id, run.summary["loss"].last) for run in runs] == [("bb01", 0.5), ("bb02", 1.0)]
    assert [run.id for run in client.runs(sort="id", limit=2)] == ["aa01", "bb00"]
    assert [run.id for run in client.runs(limit=0)] == []
    with pytest.raises(ApiError, match="there is no field 'nothing'") as caught:
        list(client.runs(sort="nothing"))
    assert (caught.value.status, caught.value.code) == (400, "bad_request")


def test_summaries_are_read_when_they_are_used(client, monkeypatch):
    asked = []
    get = Connection.get

    def count(connection, *path, **parameters):
        asked.append(parameters.get("fields"))
        return get(connection, *path, **parameters)

    monkeypatch.setattr(Connection, "get", count)
    runs = [*client.runs("other", sort="id"), client.run("bb00", "other")]
    assert asked == ["config", "config"]
    assert [run.summary["loss"].last for run in runs for _ in range(2)] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0, 0.0]
    assert asked[2:] == ["summary"] * 4
    assert runs[0].refresh() is runs[0].update(notes="short") is runs[0]
    assert runs[0].summary["loss"].count == 1
    assert asked[6:] == ["config", "summary"]
    assert next(client.runs("other", fields=[])).summary == {}


def test_pages(client, monkeypatch):
    monkeypatch.setattr("tensormeter.client.client._PAGE", 3)
    assert [run.id for run in client.runs(sort="id")] == ["aa01", "bb00", "bb01", "bb02"]
    assert [run.id for run in client.runs(sort="id", limit=4)] == ["aa01", "bb00", "bb01", "bb02"]


def test_a_run(client):
    run = client.run("name of aa01")
    assert (run.id, run.project, run.state, run.attempt, run.started, run.ended) == (
        ("aa01", "demo", "running", 1, T0, None)
    )
    assert run.config == {"lr": 0.1, "model": {"layers": 2}}
    loss = run.summary["loss"]
    assert (loss.last, loss.min, loss.max, loss.count, loss.last_step) == (1 / 3, -math.inf, math.inf, 14, None)
    assert run.summary["count"].last == 2**62 + 6
    assert [(process.id, process.rank) for process in run.processes()] == [("p0", 0), ("p1", 1)]
    metrics = {metric.name: metric for metric in run.metrics()}
    assert set(metrics) == {"loss", "count", STEP_METRIC}
    assert (metrics["loss"].attributes, metrics["loss"].points, metrics["loss"].kind) == (
        [{"split": "train"}],
        14,
        "gauge",
    )
    assert metrics["loss"].last_time == T0 + 6001
    assert repr(run) == "StoredRun('demo', 'aa01', name='name of aa01', state='running')"


def test_which_run(client):
    assert client.run("aa").id == "aa01"
    with pytest.raises(UsageError, match=r"3 runs match 'bb' \(other/bb0"):
        client.run("bb")
    with pytest.raises(UsageError, match="no run 'zz'"):
        client.run("zz")
    with pytest.raises(UsageError, match="no run 'aa'"):
        client.run("aa", project="other")


def test_series_are_arrays(client):
    run = client.run("aa01")
    arrays = run.series("loss", "count")
    assert [(series.metric, series.process, series.attributes) for series in arrays] == [
        ("count", "p0", {}),
        ("count", "p1", {}),
        ("loss", "p0", {"split": "train"}),
        ("loss", "p1", {"split": "train"}),
    ]
    loss = arrays[2]
    assert loss.x.tolist() == [0, 10, 20, 30, 40, 50]
    assert loss.y.tobytes() == np.array(NUMBERS[:-1]).tobytes()
    loss.y[0] = 3.0  # a copy of one's own
    (relative_series,) = run.series("loss", x="relative", process="p1", start=2.5e-6, stop=4.5e-6)
    np.testing.assert_allclose(relative_series.x, [3.001e-6, 4.001e-6], rtol=1e-6)
    assert relative_series.y.tolist() == [-math.inf, -0.0]
    assert len(run.series("loss", x="metric:count", attributes={"split": "train"})) == 2
    assert len(run.series("loss", attributes={"split": "test"})) == 0
    sampled = run.series("count", max_points=4, process="p0")[0]
    assert (sampled.y.tolist(), sampled.total) == ([2.0**62, 2.0**62], 6)


@pytest.mark.parametrize("slices", [1, 200])
def test_series_of_many_runs(client, monkeypatch, slices):
    monkeypatch.setattr("tensormeter.client.series._MAX_NAMES", slices)
    runs = list(client.runs("other", sort="id"))
    arrays = client.series(runs, ["loss", STEP_METRIC])
    assert sorted((series.run, series.metric, series.y.tolist()) for series in arrays) == sorted(
        [(f"bb0{i}", "loss", [i / 2]) for i in range(3)] + [(f"bb0{i}", STEP_METRIC, [1]) for i in range(3)]
    )


def test_frames(client):
    frame = client.run("aa01").series("loss", x="time").to_pandas()
    assert list(frame.columns) == ["run", "process", "metric", "attributes.split", "time", "value"]
    assert len(frame) == 14
    assert set(frame["process"]) == {"p0", "p1"}
    assert frame["value"].isna().sum() == 2
    assert frame[frame["process"] == "p0"]["value"].to_numpy().tobytes() == np.array(NUMBERS).tobytes()
    assert "count" in client.run("aa01").series("loss", x="metric:count").to_pandas().columns
    empty = client.run("aa01").series("nothing").to_pandas()
    assert (list(empty.columns), len(empty)) == (["run", "process", "metric", "step", "value"], 0)


@pytest.mark.parametrize("block", [2, 5, 7, 1000])
def test_points_are_exact_in_blocks_of_any_size(client, block):
    run = client.run("aa01")
    for metric, expected in [("loss", NUMBERS), ("count", [2**62 + i for i in range(7)])]:
        blocks = list(run.points(metric, process="p1", block=block))
        assert np.concatenate([block.time for block in blocks]).tolist() == [T0 + 1000 * i + 1 for i in range(7)]
        steps = [(s if known else None) for b in blocks for s, known in zip(b.step, b.stepped, strict=True)]
        assert steps == [0, 10, 20, 30, 40, 50, None]
        if metric == "loss":
            values = np.concatenate([block.value for block in blocks])
            assert values.tobytes() == np.array(expected).tobytes()
        else:
            assert np.concatenate([block.integer for block in blocks]).tolist() == expected
            assert all(block.is_integer.all() for block in blocks)
    both = list(run.points("loss", block=block))
    assert sum(map(len, both)) == 14
    some = list(run.points("loss", start=T0 + 1000, stop=T0 + 2000, block=block))
    assert sorted(time for points_block in some for time in points_block.time.tolist()) == [T0 + 1000, T0 + 1001]
    assert list(run.points("nothing", block=block)) == []


def test_a_run_that_was_resumed(server, make, client):
    """Series are what no later attempt has repeated; points, and files, are all there are."""
    for attempt, steps in [(1, range(5)), (2, range(3, 6))]:
        rows = [(T0 + 100 * attempt + step, step, {"loss": attempt + step / 10}) for step in steps]
        more = {"tensormeter.run.attempt": attempt}
        resource = make.resource("ee01", f"p{attempt}", project="resumed", **more)
        server.events(resource, Event("tensormeter.run.start", T0 + 100 * attempt, {"config": {}}))
        batch = make.rows("ee01", rows, process=f"p{attempt}", project="resumed", **more)
        assert server.metrics(batch).status == 200
    run = client.run("ee01")
    assert [process.attempt for process in run.processes()] == [1, 2]
    assert sorted(x for series in run.series("loss") for x in series.x) == [0, 1, 2, 3, 4, 5]
    assert sorted(x for series in run.series("loss", attempt="all") for x in series.x) == [0, 1, 2, 3, 3, 4, 4, 5]
    assert [series.attempt for series in run.series("loss", attempt=1)] == [1]
    blocks = list(run.points("loss"))
    assert [(block.process, block.attempt, block.step.tolist()) for block in blocks] == [
        ("p1", 1, [0, 1, 2, 3, 4]),
        ("p2", 2, [3, 4, 5]),
    ]


def test_mixed_integers_and_floats(server, make, client):
    for i, value in enumerate([1, 0.5, 2**60 + 1]):
        server.metrics(Batch(make.resource("cc01", project="mixed"), [make.gauge("g", [T0 + i], [value])]))
    (block,) = client.run("cc01").points("g")
    assert block.is_integer.tolist() == [True, False, True]
    assert block.integer.tolist() == [1, 0, 2**60 + 1]
    assert block.value.tolist() == [1.0, 0.5, float(2**60)]
    assert not block.stepped.any()


def test_histograms(server, make, client):
    from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

    data = pb.MetricsData()
    resource = data.resource_metrics.add()
    for key, value in make.resource("dd01", project="histograms").items():
        resource.resource.attributes.add(key=key).value.string_value = value
    metric = resource.scope_metrics.add().metrics.add(name="d")
    metric.histogram.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_DELTA
    for i in range(3):
        point = metric.histogram.data_points.add(time_unix_nano=T0 + i, count=6, sum=math.inf if i else 1.5)
        point.bucket_counts.extend([1, 2, 3])
        point.explicit_bounds.extend([0.0, 1.0])
    assert server.post("/v1/metrics", data.SerializeToString()).status == 200
    run = client.run("dd01")
    histograms = run.histograms("d", x="time")
    assert (len(histograms), histograms.total, histograms.kind, histograms.count.tolist()) == (
        3,
        3,
        "histogram",
        [6, 6, 6],
    )
    assert histograms.sum.tolist() == [1.5, math.inf, math.inf]
    assert np.isnan(histograms.min).all()
    assert [bounds.tolist() for bounds in histograms.bounds] == [[0.0, 1.0]] * 3
    assert [counts.tolist() for counts in histograms.counts] == [[1, 2, 3]] * 3
    assert len(run.histograms("d", x="time", max_points=2)) == 2
    assert len(run.histograms("nothing")) == 0


def test_records(client):
    run = client.run("aa01")
    (table,) = run.tables()
    assert (table.key, table.step, table.time) == ("errors", 7, T0 + 1)
    assert table.columns == ["name", "share", "share"]
    frame = table.to_pandas()
    assert list(frame.columns) == ["name", "share", "share"]
    assert frame.iloc[:, 0].tolist() == ["a", "b"]
    assert [math.isnan(value) for value in frame.iloc[:, 2]] == [True, False]
    (image,) = run.images("sample")
    assert (image.content_type, image.caption, image.step, image.read()) == ("image/png", "a picture", None, PNG)
    assert run.images("other") == []
    assert "hot" in [alert.body.get("title") for alert in run.alerts()]  # and alerts of the server itself
    assert {event.name for event in run.events("tensormeter.*")} == {
        "tensormeter.run.start",
        "tensormeter.table",
        "tensormeter.image",
        "tensormeter.alert",
    }


def test_update_and_refresh(client):
    run, same = client.run("bb00"), client.run("bb00")
    assert run.update(tags=["good"], notes="look", group="g", job_type="eval").tags == ["good"]
    assert same.tags == []
    assert (same.refresh().tags, same.notes, same.group, same.job_type) == (["good"], "look", "g", "eval")
    run.update(tags=[], notes="", group="", job_type="")


def test_one_client_on_many_threads(client):
    barrier = threading.Barrier(4)

    def read(_):
        barrier.wait(60)
        return client.run("aa01").series("loss")[0].y.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(read, range(4)))) == 1


def test_errors_say_what_to_do(client, server):
    with pytest.raises(SettingsError, match="endpoint: expected a URL"):
        tensormeter.Client("nonsense")
    with pytest.raises(SettingsError, match="token") as caught:
        tensormeter.Client(server.url, token="my secret")
    assert "my secret" not in str(caught.value)
    with pytest.raises(UsageError, match="at least one metric name"):
        client.run("aa01").series()
    with pytest.raises(UsageError, match="a list of names, got 'loss'"):
        client.series([], "loss")
    with pytest.raises(ApiError, match="x: expected step, time, relative or metric:NAME"):
        client.run("aa01").series("loss", x="steps")
    gone = client.run("bb01")
    server.send("DELETE", "/api/v1/runs/bb01")
    with pytest.raises(ApiError) as missing:
        gone.refresh()
    assert missing.value.code == "not_found"


def test_a_server_that_went_away(start, make):
    server = start()
    server.metrics(make.rows("run", [(T0, 1, {"loss": 1.0})]))
    client = tensormeter.Client(server.url)
    run = client.run("run")
    server.kill()
    with pytest.raises(TensormeterError, match=r"(no server at|no response from) http"):
        run.metrics()
    assert "http" in repr(client)


def test_pandas_is_not_needed(server, client):
    program = (
        "import sys\n"
        "sys.modules['pandas'] = None\n"
        "import tensormeter\n"
        f"series = tensormeter.Client({server.url!r}).run('aa01').series('loss')\n"
        "assert len(series) == 2\n"
        "try: series.to_pandas()\n"
        "except tensormeter.UsageError as error: print(error)\n"
    )
    done = run_python("-c", program, check=True)
    assert "pip install 'tensormeter[pandas]'" in done.stdout


def test_the_token_is_sent_and_not_shown(start, make, monkeypatch, tmp_path):
    server = start(environment={"TENSORMETER_TOKEN": "s3cret"})
    with pytest.raises(ApiError, match="401"):
        tensormeter.Client(server.url, token="wrong").projects()
    client = tensormeter.Client(server.url, token="s3cret")
    assert client.projects() == []
    assert "s3cret" not in repr(client) + repr(vars(client))
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.setenv("TENSORMETER_TOKEN_FILE", str(tmp_path / "token"))
    assert tensormeter.Client(server.url).projects() == []


def test_results_and_odd_names(client, server, make):
    odd = "a,b `c`"
    start = {"summary": {"best": 0.5, odd: "text"}, "config": {odd: 2}, "forked_from": {"run": "bb00", "step": 3}}
    definitions = [{"name": "loss", "summary": "min"}]
    for number in range(2):
        resource = make.resource(f"odd{number}", project="odd")
        config = {odd: number}
        server.events(
            resource, Event("tensormeter.run.start", T0, start | {"config": config, "definitions": definitions})
        )
    server.metrics(make.rows("odd0", [(T0, 0, {"loss": 1.0}), (T0 + 1, 1, {"loss": 2.0})], project="odd"))
    run = client.run("odd0")
    assert (run.lost, run.lag >= 0, run.definitions, run.parent) == (0, True, definitions, {"run": "bb00", "step": 3})
    assert (run.summary["best"].value, run.summary["best"].last, run.summary["best"].count) == (0.5, None, 0)
    assert (run.summary["loss"].value, run.summary["loss"].last) == (1.0, 2.0)
    quoted = f"config.{odd}".replace("`", "``")
    (found,) = client.runs(
        "odd", filter=f"`{quoted}` = 1", sort=f"-`{quoted}`", fields=[f"config.{odd}", f"summary.{odd}"]
    )
    assert (found.id, found.config, found.summary[odd].value) == ("odd1", {odd: 1}, "text")
    assert [run.id for run in client.runs("odd", sort=f"-`{quoted}`")] == ["odd1", "odd0"]
