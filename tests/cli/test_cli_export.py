"""`tensormeter export`: every point, in files that are whole."""

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import urllib3

from tensormeter.client import Client, StoredRun
from tensormeter.client.connection import Connection
from tensormeter.client.export import COLUMNS, export_run
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge, Histogram, Temporality
from tensormeter.otlp.encode import encode_metrics

T0 = 1_750_000_000_000_000_000
TOKEN = "token-of-the-test"  # as in `conftest`
LOSSES = [math.nan, *(1 / (1 + step) for step in range(1, 499)), math.inf]


def number(text):
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(text, text)


def rows_of_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    return [{**row, "step": int(row["step"]), "time": int(row["time"]), "value": float(row["value"])} for row in rows]


def rows_of_jsonl(path):
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(tuple(row) == COLUMNS for row in rows)
    return [{**row, "value": float(number(row["value"]))} for row in rows]


def rows_of_parquet(path):
    table = pq.read_table(path)
    assert tuple(table.column_names) == (*COLUMNS, "integer")
    assert str(table.schema.field("time").type) == "timestamp[ns, tz=UTC]"
    table = table.set_column(table.column_names.index("time"), "time", table["time"].cast("int64"))
    return table.to_pylist()


@pytest.mark.parametrize(
    ("format", "read"), [("csv", rows_of_csv), ("jsonl", rows_of_jsonl), ("parquet", rows_of_parquet)]
)
def test_every_point_is_exported(run_cli, tmp_path, format, read):
    done = run_cli("export", "first", "--format", format)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote 1,500 rows to abc123.{format}\n", "")
    assert os.listdir(tmp_path) == [f"abc123.{format}"]
    rows = read(tmp_path / f"abc123.{format}")
    assert len(rows) == 1500
    loss = [row for row in rows if row["metric"] == "train/loss"]
    assert [row["time"] for row in loss] == list(range(T0, T0 + 500))
    assert [row["step"] for row in loss] == list(range(500))
    assert np.array([row["value"] for row in loss]).tobytes() == np.array(LOSSES).tobytes()
    attributes = {"csv": '{"split":"train"}', "jsonl": {"split": "train"}, "parquet": '{"split":"train"}'}[format]
    rank = "" if format == "csv" else None
    (about,) = {
        json.dumps([row[name] for name in ("project", "run", "process", "rank", "attempt", "attributes")])
        for row in loss
    }
    assert json.loads(about) == ["demo", "abc123", "abc123-0", rank, "1" if format == "csv" else 1, attributes]
    assert {row["metric"] for row in rows} == {"train/loss", "acc", STEP_METRIC}


def test_chosen_metrics_are_written_to_standard_output(run_cli, tmp_path):
    done = run_cli("export", "abc123", "--metric", "acc", "--metric", "zzz*", "-o", "-")
    assert done.returncode == 0
    assert done.stderr == "wrote 500 rows\n"
    header, *lines = done.stdout.splitlines()
    assert header == ",".join(COLUMNS)
    assert lines[0] == f'demo,abc123,abc123-0,,1,acc,"{{""split"":""train""}}",0,{T0},0.25'
    assert len(lines) == 500
    assert os.listdir(tmp_path) == []


def test_a_reader_may_close_the_pipe_early(url, run_cli, tmp_path):
    command = [sys.executable, "-m", "tensormeter", "export", "abc123", "--endpoint", url, "-o", "-"]
    variables = os.environ | {"TENSORMETER_TOKEN": "token-of-the-test"}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, env=variables, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_hostile_names_are_exported_as_text(run_cli, tmp_path):
    assert run_cli("export", "abd456", "--format", "jsonl").returncode == 0
    (row, *_) = rows = rows_of_jsonl(tmp_path / "abd456.jsonl")
    assert (row["metric"], len(rows), row["step"]) == ("loss\x1b[2J[bold red]\u202e", 2, None)


@pytest.fixture
def formulas(url):
    """A run whose sender has chosen names that a spreadsheet would run; it is gone again afterwards."""
    names = ["=cmd|' /C calc'!A0", "@SUM(A1)", "+1", "-1+1", "\t=1", "\r=1", "train/loss"]
    times, counts = np.array([T0], np.uint64), np.array([1], np.uint64)
    resource = {"service.name": "=1+1", "service.instance.id": "@process", "tensormeter.run.id": "formulas"}
    series = [
        *(Gauge(name, times, np.array([-1.5])) for name in names),
        Gauge("endless", times, np.array([-math.inf])),
        Histogram(
            *("=histogram", times, times - counts, counts, np.array([-2.0]), np.array([-2.0]), np.array([-2.0])),
            *(np.array([-1.0]), np.array([[1, 0]], np.uint64)),
            temporality=Temporality.DELTA,
        ),
    ]
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}
    with urllib3.PoolManager(retries=False) as http:
        body = encode_metrics([Batch(resource, series)])
        assert http.request("POST", f"{url}/v1/metrics", body=body, headers=headers).status == 200
        yield names
        assert http.request("DELETE", f"{url}/api/v1/runs/formulas", headers=headers).status == 204


def test_no_cell_of_a_csv_is_a_formula(formulas, run_cli, tmp_path):
    done = run_cli("export", "formulas", "--format", "csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "formulas.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    cells = [cell for row in [header, *rows] for cell in row if cell[:1] in tuple("=+-@\t\r")]
    assert set(cells) == {"-1.5", "-2", "-2.0", "-Infinity"} & set(cells)  # numbers stay numbers
    assert cells.count("-1.5") == len(formulas)
    assert "-Infinity" in cells
    metrics = {row[header.index("metric")] for row in rows}
    assert metrics == {*(f"'{name}" for name in formulas[:-1]), "train/loss", "endless", "'=histogram"}
    assert {row[header.index("project")] for row in rows} == {"'=1+1"}
    assert {row[header.index("process")] for row in rows} == {"'@process"}


def test_a_file_is_not_replaced_unless_asked(run_cli, tmp_path):
    (tmp_path / "abc123.csv").write_text("mine")
    done = run_cli("export", "abc123")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--force" in done.stderr
    assert (tmp_path / "abc123.csv").read_text() == "mine"
    assert run_cli("export", "abc123", "--force", "--metric", "acc").returncode == 0
    assert len(rows_of_csv(tmp_path / "abc123.csv")) == 500


def test_a_failed_export_leaves_no_file(run_cli, tmp_path):
    done = run_cli("export", "abc123", "-o", str(tmp_path / "no" / "such" / "folder.csv"))
    assert done.returncode == 1
    assert "cannot write the file (No such file or directory)" in done.stderr
    assert "no run 'zzz'" in run_cli("export", "zzz").stderr
    assert os.listdir(tmp_path) == []


def test_parquet_names_the_missing_package(run_cli, tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text("import sys; sys.modules['pyarrow'] = None")
    done = run_cli("export", "abc123", "--format", "parquet", PYTHONPATH=str(tmp_path / "blocked"))
    assert done.returncode == 1
    assert "pip install 'tensormeter[parquet]'" in done.stderr
    assert os.listdir(tmp_path) == ["blocked"]


def test_ctrl_c_in_between_leaves_the_old_file(url, tmp_path):
    run = Client(url, token="token-of-the-test").run("abc123")
    target = tmp_path / "out.csv"
    target.write_text("old")

    def fail(rows):
        assert rows
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(run, target, "csv", on_rows=fail)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_blocks_of_any_size_give_the_same_file(url, tmp_path):
    run = Client(url, token="token-of-the-test").run("abc123")
    whole, pieces = tmp_path / "whole.csv", tmp_path / "pieces.csv"
    export_run(run, whole, "csv")
    assert export_run(run, pieces, "csv", block=64) == 1500
    assert whole.read_bytes() == pieces.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["pieces.csv", "whole.csv"]


def test_a_metric_of_many_series_is_exported(url, tmp_path):
    """Each has one point: what a server reads for them is series, and hardly any points."""
    resource = {"service.name": "many", "tensormeter.run.id": "series", "service.instance.id": "p"}
    series = [
        Gauge("m", np.array([T0 + number], np.uint64), np.array([number / 2]), attributes={"number": number})
        for number in range(5000)
    ]
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}
    with urllib3.PoolManager(retries=False) as http:
        body = encode_metrics([Batch(resource, series)])
        assert http.request("POST", f"{url}/v1/metrics", body=body, headers=headers).status == 200
        try:
            run = Client(url, token=TOKEN).run("series", project="many")
            assert export_run(run, tmp_path / "all.jsonl", "jsonl") == 5000
            assert export_run(run, tmp_path / "blocks.jsonl", "jsonl", block=1000) == 5000
        finally:
            http.request("DELETE", f"{url}/api/v1/runs/series?project=many", headers=headers)
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    numbers = [(line["attributes"]["number"], line["value"]) for line in map(json.loads, lines)]
    assert sorted(numbers) == [(number, number / 2) for number in range(5000)]
    assert sorted((tmp_path / "blocks.jsonl").read_text().splitlines()) == sorted(lines)


ODD = ['a,b\n"c"', "a\x00b", "日本\x1b[31m", "x" * 900, "%2e/?&=#", "layer/0000/grads", " "]


@pytest.fixture(scope="module")
def wide(url):
    """A run with many names of a few points, one with many points, and distributions; it is gone again afterwards."""
    names = [*(f"layer/{number:04}/norm" for number in range(300)), *ODD]
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}

    def batches(attempt, rank):
        process = f"p{attempt}{rank}"
        resource = {"service.name": "wide", "tensormeter.run.id": "wide", "service.instance.id": process}
        resource |= {"tensormeter.run.attempt": attempt, "tensormeter.rank": rank}
        first = T0 + attempt * 10**9 + rank
        times = np.arange(first, first + 3000, 1000).astype(np.uint64)
        series = [Gauge(STEP_METRIC, times[:-1], np.arange(2) + 10 * attempt)]  # the last point has no step
        for index, name in enumerate(names):
            values = np.array([index / 3, math.nan, -math.inf]) if index % 3 else np.array([index, 2**62 + 1, -1])
            some = slice(index % 2, None)
            series.append(Gauge(name, times[some], values[some], attributes={"layer": index} if index % 5 else {}))
        series += [
            Gauge("layer/0007/norm", times[:1], np.array([number]), attributes={"head": number}) for number in range(3)
        ]
        many = np.arange(first, first + 6000).astype(np.uint64)
        series.append(Gauge("layer/0150/many", many, np.sqrt(np.arange(6000.0))))
        counts = np.array([3], np.uint64)
        series += [
            Histogram(
                *(name, times[:1], times[:1] - counts, counts, np.array([1.5]), np.array([0.0]), np.array([1.0])),
                *(np.array([0.5]), np.array([[1, 2]], np.uint64)),
                temporality=Temporality.DELTA,
            )
            for name in ("layer/0200/grads", ODD[5])
        ]
        return Batch(resource, series)

    with urllib3.PoolManager(retries=False) as http:
        for attempt, rank in ((1, 0), (1, 1), (2, 0)):
            body = encode_metrics([batches(attempt, rank)])
            answer = http.request("POST", f"{url}/v1/metrics", body=body, headers=headers)
            assert answer.status == 200, answer.data
        yield Client(url, token=TOKEN).run("wide", project="wide")
        assert http.request("DELETE", f"{url}/api/v1/runs/wide?project=wide", headers=headers).status == 204


def one_by_one(self, metrics, *, block):
    """`StoredRun.points_of` with requests for each name."""
    stops = {}
    for metric in metrics:
        stops[metric.name] = max(stops.get(metric.name, 0), metric.last_time + 1)
    for name, stop in stops.items():
        yield from self.points(name, stop=stop, block=block)


@pytest.mark.parametrize(("format", "block"), [("csv", None), ("csv", 2000), ("jsonl", None), ("parquet", None)])
def test_metrics_that_are_read_together_are_written_as_if_read_one_by_one(wide, tmp_path, monkeypatch, format, block):
    requests = []
    columns = Connection.columns

    def count(self, *path, **query):
        requests.append(path)
        return columns(self, *path, **query)

    monkeypatch.setattr(Connection, "columns", count)
    monkeypatch.setattr("tensormeter.client.points._GROUP_NAMES", 100)
    monkeypatch.setattr("tensormeter.client.points._GROUP_POINTS", 5000)
    together, each = tmp_path / "together", tmp_path / "each"
    rows = export_run(wide, together, format, block=block)
    assert rows == 3 * (154 * 3 + 153 * 2 + 3 + 6000 + 2 + 2)
    assert block or len(requests) < 10
    monkeypatch.setattr(StoredRun, "points_of", one_by_one)
    assert export_run(wide, each, format, block=block) == rows
    assert len(requests) > 300
    if format != "parquet":
        assert together.read_bytes() == each.read_bytes()
        return
    assert pq.ParquetFile(together).num_row_groups < 10
    tables = pq.read_table(together), pq.read_table(each)
    assert tables[0].schema == tables[1].schema
    for name in tables[0].column_names:
        assert len({str(table[name].to_pylist()) for table in tables}) == 1, name  # NaN is not equal to itself


def test_points_that_arrive_meanwhile_are_left_out(url, tmp_path):
    """As if each metric were read alone: up to its latest point in the list of metrics."""
    resource = {"service.name": "late", "tensormeter.run.id": "late", "service.instance.id": "p"}
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {TOKEN}"}
    with urllib3.PoolManager(retries=False) as http:

        def send(*gauges):
            body = encode_metrics(
                [Batch(resource, [Gauge(n, np.array([t], np.uint64), np.array([0.5])) for n, t in gauges])]
            )
            assert http.request("POST", f"{url}/v1/metrics", body=body, headers=headers).status == 200

        send(("a", T0), ("b", T0 + 10), ("c", T0 + 5))
        try:
            run = Client(url, token=TOKEN).run("late", project="late")
            metrics = run.metrics()
            send(("a", T0 + 1), ("b", T0 + 9), ("b", T0 + 11), ("new", T0))
            blocks = [(block.metric, block.time.tolist()) for block in run.points_of(metrics)]
            assert blocks == [("a", [T0]), ("b", [T0 + 9, T0 + 10]), ("c", [T0 + 5])]
            assert list(run.points_of([])) == []
        finally:
            http.request("DELETE", f"{url}/api/v1/runs/late?project=late", headers=headers)


def test_media_are_exported_to_files_inside_the_folder(run_cli, tmp_path):
    done = run_cli("export", "abd456", "--media", "media", "-o", "-")
    assert done.returncode == 0
    assert done.stderr.endswith("wrote 9 media files to media\n")
    folder = tmp_path / "media"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    png = b"\x89PNG\r\n\x1a\n"
    table = json.loads(files.pop("tables/t-4.json"))
    chart = {"kind": "bar", "x": "i", "y": "n"}
    assert table == {"columns": ["i", "n"], "data": [["tables/t-4-0-0.png", 1]], "chart": chart}
    assert files == {
        "images/grid-0.png": png,
        "images/grid-0-2.png": png,
        "videos/v-1.webm": b"\x1aE\xdf\xa3",
        "html/v-2.html": b"<p>",
        "figures/v-3.plotly.json": b"{}",
        "tables/t-4-0-0.png": png,
        "texts/phase-5.txt": b"warmup",
        "texts/phase-6.txt": b"decay\x1b[2J",
    }
