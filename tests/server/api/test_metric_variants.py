"""Metrics of one name that differ in scope, unit or kind stay apart: in lists, series, statistics, files and charts."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from tensormeter.client import Client
from tensormeter.client.export import export_run
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge, Histogram, Scope, Sum, Temporality

T0 = 1_750_000_000_000_000_000
S = 10**9
N = 5
TIMES = np.arange(T0, T0 + N * S, S).astype(np.uint64)


def gauge(name, value, unit="", scope=""):
    return Gauge(name, TIMES, np.full(N, float(value)), unit=unit, scope=Scope(scope))


def total(name, value, temporality, unit=""):
    return Sum(
        name, TIMES, np.full(N, value), TIMES - np.uint64(1), temporality=temporality, unit=unit, scope=Scope("")
    )


def histogram(name, unit, scope):
    ones = np.ones(N)
    counts = np.ones(N, np.uint64)
    bounds, buckets = np.array([1.0]), np.tile(np.array([1, 0], np.uint64), (N, 1))
    return Histogram(name, TIMES, TIMES, counts, ones, ones, ones, bounds, buckets, unit=unit, scope=Scope(scope))


STEPS = Gauge(STEP_METRIC, TIMES, np.arange(N))


@pytest.fixture(scope="module")
def run(server_on_each, make):
    """Two libraries with a metric of one name, and two ranks that disagree about a unit."""
    first = [
        STEPS,
        gauge("requests", 1, "{request}", "liba"),
        gauge("requests", 1000, "By", "libb"),
        gauge("wait", 2, "s"),
        total("moved", 3, Temporality.DELTA),
        histogram("sizes", "By", "liba"),
        histogram("sizes", "KiBy", "libb"),
        gauge("same", 1, "s", "liba"),
        gauge("same", 2, "s", "libb"),
    ]
    second = [STEPS, gauge("wait", 2000, "ms"), total("moved", 30, Temporality.CUMULATIVE)]
    for rank, series in enumerate((first, second)):
        resource = make.resource("variants", process=f"p{rank}") | {"tensormeter.rank": rank}
        assert server_on_each.metrics(Batch(resource, series)).status == 200
    return Client(server_on_each.url).run("variants")


EXPECTED = {
    "requests": {("gauge", None, "liba", "{request}"): 1.0, ("gauge", None, "libb", "By"): 1000.0},
    "wait": {("gauge", None, "", "s"): 2.0, ("gauge", None, "", "ms"): 2000.0},
    "moved": {("sum", "delta", "", ""): 3.0, ("sum", "cumulative", "", ""): 30.0},
    "same": {("gauge", None, "liba", "s"): 1.0, ("gauge", None, "libb", "s"): 2.0},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_lists_and_series_say_which_is_which(run, server_on_each, name):
    path = "/api/v1/runs/variants"
    for listed in (server_on_each.get(f"{path}/metrics"), server_on_each.get("/api/v1/metrics", runs="variants")):
        variants = {
            (metric["kind"], metric["temporality"], metric["unit"]): (metric.get("scopes", [""]), metric["points"])
            for metric in listed["metrics"]
            if metric["name"] == name
        }
        expected = {}
        for kind, temporality, scope, unit in EXPECTED[name]:
            scopes, points = expected.get((kind, temporality, unit), ([], 0))
            expected[kind, temporality, unit] = [*scopes, scope], points + N
        assert variants == expected
    for x in ("step", "time"):
        series = run.series(name, x=x)
        labelled = {(line.kind, line.temporality, line.scope, line.unit): line.y.tolist() for line in series}
        assert labelled == {variant: [value] * N for variant, value in EXPECTED[name].items()}
        for entries in (
            server_on_each.get(f"{path}/series", metric=name, x=x)["series"],
            server_on_each.query("variants", metrics=[name], x=x)["series"],
        ):
            assert {(entry["kind"], entry["temporality"], entry["scope"], entry["unit"]) for entry in entries} == set(
                EXPECTED[name]
            )
    for _, _, scope, unit in EXPECTED[name]:
        chosen = {(series.scope, series.unit) for series in run.series(name, scope=scope, unit=unit)}
        assert chosen == {(scope, unit)}


@pytest.mark.parametrize("name", EXPECTED)
def test_statistics_over_ranks_are_of_one_of_them(run, server_on_each, name):
    path = "/api/v1/runs/variants/ranks"
    statistics = server_on_each.get(path, metric=name)
    chosen = tuple(statistics["variant"][part] for part in ("kind", "temporality", "scope", "unit"))
    value = EXPECTED[name][chosen]
    assert statistics["min"] == statistics["median"] == statistics["max"] == [value] * N
    assert statistics["processes"] == 1
    (other,) = statistics["others"]
    wanted = {part: text for part, text in other.items() if text is not None}
    again = server_on_each.get(path, metric=name, **wanted)
    assert again["variant"] == other
    assert again["max"] == [EXPECTED[name][tuple(other[part] for part in ("kind", "temporality", "scope", "unit"))]] * N


def test_summaries_do_not_mix_units(server_on_each, run):
    for document in (
        server_on_each.get("/api/v1/runs/variants"),
        server_on_each.get("/api/v1/runs", project="demo", filter='id = "variants"', fields="summary")["runs"][0],
        server_on_each.get("/api/v1/runs", filter='id = "variants"', fields="summary.requests,summary.same")["runs"][0],
    ):
        mixed, same = document["summary"]["requests"], document["summary"]["same"]
        assert (mixed["count"], mixed["min"], mixed["max"], mixed["mean"]) == (2 * N, None, None, None)
        assert mixed["last"] in (1.0, 1000.0)
        assert (same["count"], same["min"], same["max"], same["mean"]) == (2 * N, 1.0, 2.0, 1.5)


def test_distributions_say_which_they_are(run):
    assert {(distribution.scope, distribution.unit) for distribution in run.distributions("sizes")} == {
        ("liba", "By"),
        ("libb", "KiBy"),
    }
    for scope, unit in (("liba", "By"), ("libb", "KiBy")):
        histograms = run.histograms("sizes", scope=scope)
        assert (histograms.scope, histograms.unit, histograms.total) == (scope, unit, N)
        assert run.histograms("sizes", unit=unit).scope == scope


def test_files_have_columns_that_tell_them_apart(run, tmp_path):
    export_run(run, tmp_path / "all.csv", "csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, variants in EXPECTED.items():
        written = {
            (row["kind"], row["temporality"] or None, row["scope"], row["unit"]): float(row["value"])
            for row in rows
            if row["metric"] == name
        }
        assert written == variants
    sizes = {(row["kind"], row["scope"], row["unit"]) for row in rows if row["metric"] == "sizes"}
    assert sizes == {("histogram", "liba", "By"), ("histogram", "libb", "KiBy")}
    for kind in ("jsonl", "parquet"):
        assert export_run(run, tmp_path / f"all.{kind}", kind) == len(rows)


def test_frames_have_columns_that_tell_them_apart(run):
    frame = run.series("requests").to_pandas()
    assert {(row.scope, row.unit, row.value) for row in frame.itertuples()} == {
        ("liba", "{request}", 1.0),
        ("libb", "By", 1000.0),
    }
    assert "scope" not in run.series("requests", scope="liba").to_pandas()


def test_each_has_a_chart_in_the_terminal(run, server_on_each):
    command = [sys.executable, "-m", "tensormeter", "show", "variants", "--endpoint", server_on_each.url]
    done = subprocess.run(
        [*command, "--metric", "requests", "--metric", "wait"],
        capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    for title in ("requests, liba, {request}", "requests, libb, By", "wait, s", "wait, ms"):
        assert title in done.stdout
    assert "requests [liba]" in done.stdout


def test_pieces_with_different_units_are_no_line(server_on_each, make):
    """An attempt with another unit begins another line; another version of a scope goes on with the old one."""
    for attempt, unit, version in ((1, "s", "1.0"), (2, "s", "2.0"), (3, "ms", "2.0")):
        times = TIMES + np.uint64(attempt * 100 * S)
        scope = Scope("tensormeter", version)
        resource = make.resource("resumed", process=f"a{attempt}")
        resource |= {"tensormeter.run.attempt": attempt, "tensormeter.rank": 0}
        series = [
            Gauge(STEP_METRIC, times, np.arange(N) + N * attempt, scope=scope),
            Gauge("took", times, np.full(N, 1.0), unit=unit, scope=scope),
        ]
        assert server_on_each.metrics(Batch(resource, series)).status == 200
    lines = Client(server_on_each.url).run("resumed").series("took")
    assert [(line.process, line.unit, len(line)) for line in lines] == [("a2", "s", 2 * N), ("a3", "ms", N)]
