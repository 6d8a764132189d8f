"""Tables of pandas, pyarrow and `tensormeter export`, imported."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from support.import_server import counted, left_out
from tensormeter.cli.export import export
from tensormeter.importers.table.files import read_blocks
from tensormeter.importers.tally import Tally

T0 = 1_750_000_000


@pytest.fixture(params=["csv", "parquet", "jsonl"])
def save(request, tmp_path):
    """Writes a frame in each format."""

    def save(frame: pd.DataFrame, name: str = "table"):
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "csv":
            frame.to_csv(path, index=False)
        elif request.param == "parquet":
            frame.to_parquet(path)
        else:
            path.write_text(
                "".join(
                    json.dumps(row) + "\n" for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
                )
            )
        return path

    save.format = request.param
    return save


def frame() -> pd.DataFrame:
    n = 5000
    values = np.random.default_rng(0).normal(size=n)
    return pd.DataFrame(
        {
            "Step": np.arange(n) * 10,
            "_timestamp": T0 + np.arange(n) * 0.5,
            "loss": np.where(np.arange(n) % 3 == 0, np.nan, values),
            "count": np.arange(n) + 2**60,
            "ok": np.arange(n) % 2 == 0,
            "phase": "warmup",
        }
    )


def test_a_wide_table_becomes_a_run(server, run_import, save):
    table = frame()
    result = run_import(save(table), "--project", f"wide-{save.format}", "--name", "wide")
    assert "step: column 'Step'; time: column '_timestamp'" in result.output
    run = server.contents(f"wide-{save.format}")["wide"]
    present = table["loss"].notna()
    (loss,) = server.series(run["run"]["id"], "loss", f"wide-{save.format}")
    assert loss["step"] == table["Step"][present].tolist()
    assert loss["value"] == table["loss"][present].tolist()
    assert run["series"]["count"][0]["value"] == table["count"].tolist()
    assert run["series"]["ok"][0]["value"][:3] == [1, 0, 1]
    assert run["run"]["started"] == str(T0 * 10**9)
    assert sum(left_out(result).values()) == len(table)
    before = server.contents(f"wide-{save.format}")
    run_import(save(table), "--project", f"wide-{save.format}", "--name", "wide")
    assert server.contents(f"wide-{save.format}") == before


def test_a_column_can_separate_runs(server, run_import, save):
    table = pd.DataFrame({"epoch": [0, 1, 0, 1], "name": ["a", "a", "b", "b"], "loss": [1.0, 2.0, 3.0, 4.0]})
    project = f"several-{save.format}"
    run_import(save(table), "--project", project, "--run-column", "name", "--step", "epoch")
    runs = server.contents(project)
    assert {name: run["series"]["loss"][0]["value"] for name, run in runs.items()} == {"a": [1, 2], "b": [3, 4]}


def test_times_may_be_texts(server, run_import, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("step;time;loss\n0;2025-01-01T00:00:00Z;1\n1;2025-01-01 01:00:01+01:00;2\n2;9999-01-01;3\n")
    run_import(path, "--project", "texts")
    run = server.contents("texts")["texts"]
    assert run["run"]["started"] == "1735689600000000000"
    assert run["series"]["loss"][0]["step"][:2] == [0, 1]


def test_a_table_without_steps_uses_row_numbers(server, run_import, tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("loss,acc\n1,NaN\n2,\n3,x\n")
    result = run_import(path, "--project", "plain")
    assert "number of the row, because no column looks like a step" in result.output
    run = server.contents("plain")["plain"]
    assert run["series"]["loss"][0]["step"] == [0, 1, 2]
    assert run["series"]["acc"][0]["value"] == ["NaN"]
    assert left_out(result) == {"cells of text": 1}


@pytest.mark.parametrize("column", ["loss", "_runtime"])
def test_rows_that_were_appended_to_a_file_without_times_are_added(server, run_import, tmp_path, column):
    path = tmp_path / f"grown{column}.csv"
    rows = ["1", "2", "3"]
    for count, modified in ((2, 1_750_000_000), (3, 1_750_000_100)):
        path.write_text("\n".join([column + ",x", *(f"{row},{row}" for row in rows[:count])]) + "\n")
        os.utime(path, (modified, modified))
        run_import(path, "--project", path.stem)
    (series,) = server.contents(path.stem)[path.stem]["series"]["x"]
    assert (series["step"], series["value"]) == ([0, 1, 2], [1, 2, 3])


def test_large_integers_next_to_floats_are_exact_in_wide_tables(server, run_import, tmp_path):
    path = tmp_path / "large.csv"
    path.write_text(f"step,x\n0,{2**60 + 1}\n1,0.5\n2,\n")
    run_import(path, "--project", "large")
    series = server.contents("large")["large"]["series"]["x"]
    assert sorted(value for part in series for value in part["value"]) == [0.5, 2**60 + 1]


def test_a_name_is_for_one_run(run_import, tmp_path):
    path = tmp_path / "named.csv"
    path.write_text("run,step,loss\na,0,1\nb,0,2\n")
    assert "--name is for one run" in run_import(path, "--project", "named", "--name", "x", status=1).output


def test_large_integers_next_to_floats_are_exact(server, run_import, tmp_path, save):
    point = {
        "project": "exact",
        "run": f"run-{save.format}",
        "process": "1",
        "rank": 0,
        "attempt": 1,
        "attributes": "{}",
    }
    values = {"tokens": [2**60 + 1, 2**60 + 3], "loss": [0.5, 0.25], "mixed": [2**53 + 1, 0.5]}
    rows = [
        point | {"metric": metric, "step": step, "time": (T0 + step) * 10**9, "value": value}
        for metric, of_metric in values.items()
        for step, value in enumerate(of_metric)
    ]
    table = pd.DataFrame(rows, dtype=object).astype({"rank": int, "attempt": int, "step": int, "time": int})
    if save.format == "parquet":
        table["integer"] = pd.array([value if isinstance(value, int) else None for value in table["value"]], "Int64")
        table["value"] = table["value"].astype(float)
    run_import(save(table, "exact"))
    run = server.contents("exact")[f"run-{save.format}"]
    assert {metric: run["series"][metric][0]["value"] for metric in ("tokens", "loss")} == {
        metric: values[metric] for metric in ("tokens", "loss")
    }
    assert sorted(value for series in run["series"]["mixed"] for value in series["value"]) == [0.5, 2**53 + 1]


def test_rows_that_do_not_fit_are_counted(server, run_import, tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("step,loss\n0,1\n1\n2,3,4\nx,5\n1.5,6\n4,7\n")
    result = run_import(path, "--project", "odd")
    assert server.contents("odd")["odd"]["series"]["loss"][0]["step"] == [0, 4]
    assert left_out(result) == {"rows with another number of cells than the header": 2, "rows without a step": 2}


def test_the_unnamed_index_of_pandas_is_no_column_of_runs(server, run_import, tmp_path):
    path = tmp_path / "indexed.csv"
    pd.DataFrame({"step": [4, 5], "loss": [1.0, 2.0]}).to_csv(path)
    run_import(path, "--project", "indexed")
    run = server.contents("indexed")["indexed"]
    assert (run["series"]["loss"][0]["step"], run["series"]["loss"][0]["value"]) == ([4, 5], [1, 2])


def test_text_of_excel_is_read_as_utf_16(server, run_import, tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("step\tl\u00f6ss\r\n0\t1\r\n1\t2\r\n".encode("utf-16"))
    run_import(path, "--project", "excel")
    assert server.contents("excel")["excel"]["series"]["l\u00f6ss"][0]["value"] == [1, 2]


def test_columns_of_parquet_with_odd_types_and_times(server, run_import, tmp_path):
    path = tmp_path / "odd.parquet"
    times = pa.array([1_750_000_000_000_000, 253_000_000_000_000_000], pa.timestamp("us"))  # the second one is in 9987
    pq.write_table(pa.table({"step": [0, 1], "time": times, "x": pa.array([1.5, 2.5]).dictionary_encode()}), path)
    run_import(path, "--project", "types")
    run = server.contents("types")["odd"]
    (x,) = run["series"]["x"]
    assert x["value"] == [1.5, 2.5]
    assert x["time"] == [1_750_000_000 * 10**9, path.stat().st_mtime_ns + 1_000_000]


def test_lines_and_headers_without_end_are_refused(run_import, tmp_path, monkeypatch):
    monkeypatch.setattr("tensormeter.importers.table.files._LONGEST_LINE", 1 << 20)
    (tmp_path / "line.csv").write_text("step,loss\n0,1\n1," + "2" * (1 << 20))
    (tmp_path / "header.csv").write_text(",".join(map(str, range(100_001))) + "\n1\n")
    result = run_import(tmp_path, "--project", "endless", status=1)
    assert "line.csv: the rest is not CSV (a line is longer than 1 MiB)" in result.output
    assert "header.csv: the rest is not CSV (more than 100,000 columns)" in result.output
    assert counted(result)["points"] == 1


def test_rows_with_different_keys_do_not_multiply(tmp_path):
    """A block has a cell for each of its rows and keys, so it must end before there are many."""
    path = tmp_path / "keys.jsonl"
    path.write_text("".join(json.dumps({f"k{row}.{key}": 1 for key in range(100)}) + "\n" for row in range(300)))
    blocks = list(read_blocks(path, Tally(), lambda size: None))
    assert max(len(block) * len(next(iter(block.values()))) for block in blocks) <= 1_010_000
    assert sum(cell is not None for block in blocks for cells in block.values() for cell in cells) == 30_000


def test_a_missing_column_is_named(run_import, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    assert "has no column 'c'; its columns are a, b" in run_import(path, "--step", "c", status=1).output


def test_a_damaged_parquet_file_is_reported(run_import, tmp_path):
    path = tmp_path / "table.parquet"
    frame().to_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "not a readable Parquet file" in run_import(path, status=1).output


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_exported_runs_can_be_imported_again(server, run_import, tmp_path, format):
    """An export has all points and distributions of a run, but not its configuration and media."""
    rows = [{"step": step, "time": T0 + step, "loss": step / 7, "n": step} for step in range(50)]
    path = tmp_path / "original.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_import(path, "--project", f"original-{format}", "--name", "original")
    (run,) = server.get("/api/v1/runs", project=f"original-{format}")["runs"]
    target = tmp_path / f"export.{format}"
    arguments = [
        run["id"],
        "--project",
        f"original-{format}",
        "--endpoint",
        server.url,
        "--format",
        format,
        "-o",
        os.fspath(target),
    ]
    assert CliRunner().invoke(export, arguments).exit_code == 0
    run_import(target, "--project", f"copy-{format}", "--name", "original")
    copy, original = server.contents(f"copy-{format}")["original"], server.contents(f"original-{format}")["original"]
    for name in ("loss", "n"):
        for key in ("step", "time", "value"):
            assert copy["series"][name][0].get(key) == original["series"][name][0].get(key)
    assert copy["run"]["id"] == original["run"]["id"]
