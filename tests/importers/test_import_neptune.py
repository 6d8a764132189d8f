"""Exports that are made by the schema of neptune-exporter, and what the server exports after their import."""

import shutil
from datetime import timedelta

import pyarrow as pa
import pytest
from neptune_sample import PROJECT_2, PROJECT_3, SCHEMA, START, folder_name, make_export, row, write_run

from support.imported_runs import bits, exported_points, import_all, only_run, read_all, stored_counts
from support.servers import Server
from tensormeter.importers.neptune.export import RunExport, find_runs, micro_steps, step_multiplier
from tensormeter.importers.registry import SourceError

T0 = int(START.timestamp()) * 10**9


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    make_export(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory, export):
    """A server into which the export was imported twice."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    tally = import_all(server.url, export)
    assert tally.faults == []
    assert (tally.runs, tally.logs) == (3, 2)
    assert dict(tally.left_out) == {
        "histograms without counts": 1,
        "files that were not downloaded": 1,
        "contents of files, which are recorded by their place": 2,
    }
    counts = [stored_counts(server.url, project) for project in (PROJECT_2, PROJECT_3)]
    again = import_all(server.url, export / "data")
    assert again == tally
    assert [stored_counts(server.url, project) for project in (PROJECT_2, PROJECT_3)] == counts
    yield server.url
    server.stop()


def test_series_of_neptune_3_are_exported_with_their_steps_and_times(url, tmp_path):
    points = exported_points(only_run(url, PROJECT_3, "run-a"), tmp_path)
    values = [bits(0.1 + step) for step in range(20)] + ["nan"]  # the exporter writes NaN as null
    for name in ("loss", "metrics/acc"):
        assert [(step, value) for step, _, value in sorted(points[name])] == list(enumerate(values))
        assert [time // 10**6 for _, time, _ in sorted(points[name])] == [T0 // 10**6 + step // 4 for step in range(21)]


def test_decimal_steps_of_neptune_2_are_multiplied_and_measurements_have_none(url, tmp_path):
    run = only_run(url, PROJECT_2, "first")
    points = exported_points(run, tmp_path)
    assert points["train/loss"] == [(step * 5, T0 + step * 10**9, bits(1.5 + step)) for step in range(3)]
    assert run.config["neptune_step_multiplier"] == 10
    cpu = points["monitoring/5f3e/cpu"]
    assert [(step, time // 10**6, value) for step, time, value in cpu] == [
        (None, T0 // 10**6 + 1000 * n, bits(50.0 + n)) for n in range(3)
    ]


def test_attributes_become_fields_and_configuration(url):
    run, fork = (only_run(url, PROJECT_3, name) for name in ("run-a", "run-b"))
    assert run.config["config"] == {"lr": 0.1, "layers": 3, "on": True, "when": START.isoformat()}
    assert (sorted(run.tags), run.notes, run.group, run.state) == (["a", "b"], "a note", "experiment", "finished")
    assert run.processes()[0].resource["process.owner"] == "someone"
    assert (fork.group, fork.state) == ("experiment", "failed")
    assert fork.parent == {"run": "run-a", "step": 5}
    old = only_run(url, PROJECT_2, "first")
    assert (old.id, old.group, sorted(old.tags), old.config["parameters"]) == (
        "RUN-1",
        "sweep",
        ["a", "sweep"],
        {"lr": 0.5},
    )


def test_files_texts_and_histograms_are_kept(url):
    run, old = only_run(url, PROJECT_3, "run-a"), only_run(url, PROJECT_2, "first")
    assert {(image.key, image.step) for image in run.images()} == {("image/one", None), ("samples", 3)}
    assert {(image.key, image.step) for image in old.images()} == {("charts/image", None), ("samples", 5)}
    texts = {(text.key, text.step): text.text for text in (*run.texts(), *old.texts())}
    assert texts == {
        ("text", 1): "hello",
        ("text", 2): "world",
        ("notes", None): "text of a file",
        ("source_code/diff", None): "diff --git a b",
    }
    assert [artifact.key for artifact in run.artifacts()] == ["weights"]
    assert [(artifact.key, artifact.type) for artifact in old.artifacts()] == [("source_code/files", "file_set")]
    assert [list(counts) for counts in run.histograms("hist").counts] == [[0, 2, 5, 0]]
    assert [(line.text, line.stream) for line in run.logs()] == [("one line", "stderr")]
    assert [(line.text, line.stream) for line in old.logs()] == [("printed", "stdout")]


@pytest.mark.parametrize("path", ["../../secret.txt", "/etc/passwd", "link.txt", "a/../../../secret.txt"])
def test_files_outside_the_folder_are_never_read(tmp_path, path):
    (tmp_path / "secret.txt").write_text("secret")
    files = tmp_path / "files" / folder_name("w/p")
    files.mkdir(parents=True)
    (files / "link.txt").symlink_to(tmp_path / "secret.txt")
    write_run(tmp_path / "data", "w/p", "r", [row("stolen", "file", {"path": path})])
    bodies = []
    tally = read_all(tmp_path, bodies)
    assert tally.left_out["unreadable files"] == 1
    assert not any(b"secret" in body or b"root:" in body for body in bodies)


def test_a_damaged_part_is_reported_and_other_runs_are_imported(export, tmp_path):
    shutil.copytree(export, tmp_path / "exports")
    part = next((tmp_path / "exports" / "data").glob("*/run-a-*_part_1.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    tally = read_all(tmp_path / "exports")
    assert (tally.runs, tally.points) == (3, 42 + 1 + 6)
    assert [str(part) in fault for fault in tally.faults] == [True]


def test_a_run_without_a_readable_part_is_skipped(export, tmp_path):
    shutil.copytree(export, tmp_path / "exports")
    next((tmp_path / "exports" / "data").glob("*/run-b-*_part_0.parquet")).write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read, and was skipped"):
        read_all(tmp_path / "exports")


def test_columns_of_other_types_are_reported(tmp_path):
    (path,) = write_run(tmp_path, "w/p", "r", [row("loss", "float_series", 1.0, 1, START)])
    table = pa.parquet.read_table(path)
    index = table.schema.get_field_index("step")
    pa.parquet.write_table(table.set_column(index, "step", pa.array([1.5])), path)
    with pytest.raises(SourceError, match="cannot be read, and was skipped"):
        read_all(tmp_path)
    faults = []
    assert list(RunExport([path], tmp_path).batches(["step"], faults.append)) == []
    assert "the column step has the type double" in faults[0]


def test_steps_are_read_exactly():
    column = pa.array([None, "-0.000001", "999999999999.999999", "7"], pa.string()).cast(pa.decimal128(18, 6))
    steps, present = micro_steps(column[1:])
    assert steps.tolist() == [-1, 999_999_999_999_999_999, 7_000_000]
    assert present.all()
    assert micro_steps(column)[1].tolist() == [False, True, True, True]


@pytest.mark.parametrize(("steps", "multiplier"), [([1, 2, 300], 1), ([0.5], 10), ([1, 0.125], 1000), ([1e-6], 10**6)])
def test_the_smallest_multiplier_makes_all_steps_integers(tmp_path, steps, multiplier):
    rows = [row("loss", "float_series", 1.0, step, START) for step in steps]
    rows += [row("monitoring/cpu", "float_series", 1.0, 0.25, START + timedelta(seconds=1))]
    parts = write_run(tmp_path, "w/p", "r", rows)
    assert step_multiplier([RunExport(parts, tmp_path)]) == multiplier


def test_other_parquet_files_are_not_taken_for_an_export(tmp_path):
    folder = tmp_path / "data" / "project"
    folder.mkdir(parents=True)
    pa.parquet.write_table(pa.table({"step": [1]}), folder / "run_part_0.parquet")
    assert find_runs(tmp_path) == []
    assert {"project_id", "run_id", "attribute_path"} <= set(SCHEMA.names)
