"""Every distribution of a run, as it was logged: by the API, in the client, and in files."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tensormeter.client import Client
from tensormeter.client.export import COLUMNS, DISTRIBUTION_COLUMNS, export_run
from tensormeter.otlp.batch import (
    STEP_METRIC,
    Batch,
    Buckets,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Summary,
    Temporality,
)

T0 = 1_750_000_000_000_000_000
S = 10**9
N = 40
SIDE = 160
"""Buckets of one side of the exponential histograms: as many as tensormeter makes."""


def exponential():
    noise = np.random.default_rng(0)
    times = np.arange(T0, T0 + N * S, S).astype(np.uint64)
    positive, negative = (noise.integers(0, 1 << 40, (N, SIDE)).astype(np.uint64) for _ in range(2))
    zeros = np.arange(N).astype(np.uint64)
    counts = positive.sum(1) + negative.sum(1) + zeros
    sums = noise.normal(size=N)
    sums[0] = math.inf
    highs = np.full(N, math.nan)  # not sent
    highs[1:] = sums[1:] * 2
    return ExponentialHistogram(
        "grads", times, times, counts, sums, -np.abs(sums), highs,
        scales=np.full(N, 3), zero_counts=zeros, zero_thresholds=np.full(N, 1e-20),
        positive=Buckets(np.full(N, -40), list(positive)), negative=Buckets(np.full(N, -50), list(negative)),
        attributes={"layer": "fc\n"}, temporality=Temporality.DELTA,
    )  # fmt: skip


def expected_of(grads):
    """Each distribution of `exponential`, as OpenTelemetry's data model defines its buckets."""
    base = 2.0 ** (np.arange(200) / 8)
    positive, negative = base[: SIDE + 1] / 2**5, -base[: SIDE + 1][::-1] / 2**6.25
    for i in range(N):
        zeros, zero_bounds = int(grads.zero_counts[i]), [-1e-20, 1e-20]
        counts = [0, *grads.negative.counts[i].tolist()[::-1], *([0, zeros, 0] if zeros else [0])]
        bounds = np.concatenate((negative, zero_bounds if zeros else [], positive))
        yield bounds, [*counts, *grads.positive.counts[i].tolist(), 0]


@pytest.fixture(scope="module")
def run(server_on_each, make):
    """A run with distributions of all kinds; only every second time has a step."""
    grads = exponential()
    few = grads.times[:3]
    ones, low = np.ones(3, np.uint64), np.zeros(3)
    buckets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], np.uint64)
    series = [
        Gauge(STEP_METRIC, grads.times[::2], np.arange(0, N, 2)),
        Gauge("loss", grads.times, np.linspace(1, 0, N)),
        grads,
        Histogram("times", few, few, ones * 3, low, low, low, np.array([1.0, 2.0]), buckets),
        Summary("old", few, few, ones, low, np.array([0.5, 1.0]), np.array([[1.0, math.inf]] * 3)),
    ]
    for process in ("p0", "p1"):
        assert server_on_each.metrics(Batch(make.resource("shapes", process=process), series)).status == 200
    return Client(server_on_each.url).run("shapes")


def check_grads(rows):
    """The rows of the exponential histograms of both processes."""
    grads = exponential()
    expected = list(expected_of(grads))
    assert [row["process"] for row in rows] == ["p0"] * N + ["p1"] * N
    for i, row in zip([*range(N)] * 2, rows, strict=True):
        bounds, counts = expected[i]
        assert row["time"] == T0 + i * S
        assert row["step"] == (i if i % 2 == 0 else None)
        assert (row["kind"], row["temporality"]) == ("exponential_histogram", "delta")
        assert (row["count"], row["sum"], row["min"]) == (grads.counts[i], grads.sums[i], grads.minima[i])
        assert row["max"] == (None if i == 0 else grads.maxima[i])
        np.testing.assert_allclose(row["bounds"], bounds, rtol=1e-14)
        assert list(row["counts"]) == counts


def test_every_distribution_in_blocks_of_any_size(run):
    for block in (2048, N, N // 2):
        rows = []
        for distribution in run.distributions("grads", start=T0, block=block):
            assert (distribution.metric, distribution.attributes, distribution.attempt) == (
                "grads",
                {"layer": "fc\n"},
                1,
            )
            for i in range(len(distribution)):
                row = {
                    "process": distribution.process,
                    "kind": distribution.kind,
                    "temporality": distribution.temporality,
                }
                row |= {
                    name: getattr(distribution, name)[i] for name in ("time", "count", "sum", "min", "bounds", "counts")
                }
                row["step"] = int(distribution.step[i]) if distribution.stepped[i] else None
                rows.append(row | {"max": None if math.isnan(distribution.max[i]) else distribution.max[i]})
        check_grads(rows)
    (few,) = run.distributions("grads", process="p1", start=T0 + S, stop=T0 + 3 * S)
    assert (few.process, few.time.tolist()) == ("p1", [T0 + S, T0 + 2 * S])
    assert list(run.distributions("loss")) == list(run.distributions("nothing")) == []


def test_exact_distributions_have_the_buckets_that_were_sent(server_on_each, run):
    grads = exponential()
    series = server_on_each.get("/api/v1/runs/shapes/distributions", metric="grads", process="p0", exact="true")[
        "series"
    ]
    (points,) = (line["points"] for line in series)
    for i, point in enumerate(points):
        assert (point["bounds"], point["counts"], point["start_time"]) == ([], [], T0 + i * S)
        assert point["exponential"] == {
            "scale": 3, "zero_count": i, "zero_threshold": 1e-20,
            "positive": {"offset": -40, "counts": grads.positive.counts[i].tolist()},
            "negative": {"offset": -50, "counts": grads.negative.counts[i].tolist()},
        }  # fmt: skip
    for metric, bounds in (("times", [1.0, 2.0]), ("old", [])):
        document = server_on_each.get("/api/v1/runs/shapes/distributions", metric=metric, exact="true")
        (first, *_) = document["series"][0]["points"]
        assert (first["bounds"], first["start_time"]) == (bounds, T0)
        assert "exponential" not in first


def test_too_many_for_one_request(run, server_on_each):
    status, document = server_on_each.ask("/api/v1/runs/shapes/distributions", metric="grads", limit=2 * N - 1)
    assert (status, document["error"]["code"]) == (413, "too_many_points")
    assert len(server_on_each.get("/api/v1/runs/shapes/distributions", metric="grads", limit=2 * N)["series"]) == 2
    for query in ({}, {"metric": "grads", "limit": 0}, {"metric": "grads", "limit": 20_001}):
        assert server_on_each.ask("/api/v1/runs/shapes/distributions", **query)[0] == 400


def rows_of_csv(path):
    def cells(row):
        for name in ("step", "time", "count"):
            row[name] = int(row[name]) if row[name] else None
        for name in ("value", "sum", "min", "max"):
            row[name] = float(row[name]) if row[name] else None
        for name in ("bounds", "counts", "quantiles"):
            row[name] = json.loads(row[name], parse_constant=pytest.fail) if row[name] else None
        return row

    with path.open(newline="", encoding="utf-8") as file:
        rows = [cells(row) for row in csv.DictReader(file)]
    assert tuple(rows[0]) == COLUMNS + DISTRIBUTION_COLUMNS
    return rows


def rows_of_jsonl(path):
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        assert tuple(row) == (COLUMNS if "value" in row else COLUMNS[:-1] + DISTRIBUTION_COLUMNS)
        for name in ("sum", "min", "max"):
            if row.get(name) is not None:
                row[name] = float(row[name])
    return rows


def rows_of_parquet(path):
    table = pq.read_table(path)
    assert tuple(table.column_names) == (*COLUMNS, "integer", *DISTRIBUTION_COLUMNS)
    assert [str(table.schema.field(name).type.value_type) for name in ("bounds", "counts")] == ["double", "uint64"]
    table = table.set_column(table.column_names.index("time"), "time", table["time"].cast("int64"))
    rows = table.to_pylist()
    for row in rows:
        if row["quantiles"] is not None:
            row["quantiles"] = [[quantile["quantile"], quantile["value"]] for quantile in row["quantiles"]]
    return rows


@pytest.mark.parametrize(
    ("format", "read", "infinity"),
    [("csv", rows_of_csv, "Infinity"), ("jsonl", rows_of_jsonl, "Infinity"), ("parquet", rows_of_parquet, math.inf)],
)
def test_files(run, tmp_path, format, read, infinity):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert export_run(run, whole, format) == 2 * (N // 2 + N + N + 3 + 3)
    export_run(run, pieces, format, block=2 * N - 1)  # process by process
    rows = read(whole)
    assert read(pieces) == rows
    by_metric = {name: [row for row in rows if row["metric"] == name] for name in {row["metric"] for row in rows}}
    check_grads(by_metric["grads"])
    assert [row["value"] for row in by_metric["loss"]] == np.linspace(1, 0, N).tolist() * 2
    assert all(row.get("bounds") is None for row in by_metric["loss"])
    assert by_metric["grads"][0]["attributes"] in ('{"layer":"fc\\n"}', {"layer": "fc\n"})
    (times_row, *_) = by_metric["times"]
    assert (times_row["kind"], times_row["temporality"], times_row["bounds"], times_row["counts"]) == (
        "histogram", "cumulative", [1.0, 2.0], [1, 0, 0],
    )  # fmt: skip
    (old_row, *_) = by_metric["old"]
    assert (old_row["kind"], old_row["bounds"], old_row["counts"]) == ("summary", [], [])
    assert old_row["quantiles"] == [[0.5, 1.0], [1.0, infinity]]


def test_pandas_reads_lists(run, tmp_path):
    export_run(run, tmp_path / "run.parquet", "parquet", choose=lambda name: name == "grads")
    frame = pd.read_parquet(tmp_path / "run.parquet")
    assert len(frame) == 2 * N
    assert (frame["counts"].map(sum) == frame["count"]).all()
    assert (frame["bounds"].map(len) == frame["counts"].map(len) - 1).all()
    assert frame["value"].isna().all()


def test_a_table_of_numbers_has_no_further_columns(run, tmp_path):
    assert export_run(run, tmp_path / "run.csv", "csv", choose=lambda name: name == "loss") == 2 * N
    with (tmp_path / "run.csv").open() as file:
        assert file.readline().rstrip() == ",".join(COLUMNS)
