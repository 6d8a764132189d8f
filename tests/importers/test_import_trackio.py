"""Databases and Parquet files that trackio itself has written, and what the server exports after their import."""

import json
import math
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from support.imported_runs import bits, exported_points, import_all, only_run, read_all, stored_counts
from support.processes import clean_environment, run_python
from support.servers import Server

SAMPLE = Path(__file__).with_name("trackio_sample.py")
ROWS = 40


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of trackio with one project: a database, Parquet files, and media."""
    folder = tmp_path_factory.mktemp("trackio")
    environment = clean_environment() | {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    run_python(SAMPLE, folder=tmp_path_factory.mktemp("work"), environment=environment, check=True)
    return folder


@pytest.fixture(scope="module", params=["database", "parquet"])
def project(request, folder, url, tmp_path_factory):
    """Project with the imported runs."""
    copy = tmp_path_factory.mktemp("copy") / "trackio"
    shutil.copytree(folder, copy)
    if request.param == "parquet":
        (copy / "myproject.db").unlink()
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    tally = import_all(url, copy, project=request.param)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert tally.faults == []
    assert tally.runs == 2
    expected = {"traces": 1, "lists in the history": 1}
    if request.param == "parquet":
        expected["artifacts"] = 1
    else:
        expected["contents of artifacts, which are recorded by their place"] = 1
    assert dict(tally.left_out) == expected
    counts = stored_counts(url, request.param)
    import_all(url, copy, project=request.param)
    assert stored_counts(url, request.param) == counts
    return request.param


def test_all_points_are_exported_with_their_steps_times_and_bits(project, folder, url, tmp_path):
    points = exported_points(only_run(url, project, "first"), tmp_path)
    with closing(sqlite3.connect(folder / "myproject.db")) as connection:
        rows = connection.execute("SELECT step, timestamp, metrics FROM metrics WHERE run_name = 'first' ORDER BY id")
        logged = [(step, timestamp, json.loads(values)) for step, timestamp, values in rows]
    columns = {
        "loss": [(step, values["loss"]) for step, _, values in logged if "loss" in values],
        "count": [((step * 10), (1 << 53) + step) for step in range(ROWS)],
        "train/acc": [(step, values["train"]["acc"]) for step, _, values in logged if "train" in values],
        "done": [(step * 10, int(step > 3)) for step in range(ROWS)],
    }
    for name, expected in columns.items():
        assert len(expected) == ROWS
        assert [(step, value) for step, _, value in sorted(points[name])] == [(s, bits(v)) for s, v in expected]
    assert [(step, value) for step, _, value in points["odd"] + points["odder"]] == [(20, "nan"), (20, "-inf")]
    moments = {step: timestamp for step, timestamp, values in logged if "loss" in values}
    for step, time, _ in points["loss"]:
        seconds = float(moments[step][17:-6])
        assert math.isclose(time / 1e9 % 60, seconds, abs_tol=1e-3)  # rows of a batch have one time in trackio
    assert [(step, value) for step, _, value in points["system/gpu"]] == [(None, bits(0.5))]
    run = only_run(url, project, "first")
    (counts,) = run.points("count")
    assert counts.integer.tolist() == [(1 << 53) + step for step in range(ROWS)]


def test_configurations_groups_and_media_are_kept(project, url):
    run = only_run(url, project, "first")
    assert run.config == {"lr": 0.1, "model": {"layers": 3}}
    assert (run.group, run.state) == ("sweep", "finished")
    (image,) = run.images()
    assert (image.key, image.step, image.caption, image.content_type) == ("image", 5, "a caption", "image/png")
    assert {(text.key, text.step): text.text for text in run.texts()} == {("note", 8): "# hi", ("phase", 20): "warm-up"}
    assert [(page.key, page.step) for page in run.html()] == [("page", 8)]
    (sound,) = run.audio()
    assert (sound.key, sound.step, sound.content_type) == ("sound", 9, "audio/wav")
    (table,) = run.tables()
    assert table.columns == ["a", "picture"]
    assert [row[0] for row in table.rows] == [1.0, 2.5]
    assert {row[1]["content_type"] for row in table.rows} == {"image/png"}
    histograms = run.histograms("histogram")
    assert [sum(counts) for counts in histograms.counts] == [6]


def test_alerts_and_artifacts_of_databases_are_kept(folder, url):
    import_all(url, folder / "myproject.db", project="records")
    run = only_run(url, "records", "first")
    (alert,) = run.alerts()
    assert (alert.body["title"], alert.body["text"], alert.body["level"], alert.step) == (
        "too slow",
        "look",
        "WARN",
        390,
    )
    (artifact,) = run.artifacts()
    assert (artifact.key, artifact.type, artifact.files, artifact.aliases) == ("weights", "model", 1, ["v0", "latest"])


def test_missing_numbers_of_tables_are_numbers_and_texts_stay_texts(folder, url, tmp_path):
    path = tmp_path / "cells.db"
    shutil.copy(folder / "myproject.db", path)
    rows = [{"a": 1, "b": "NaN", "c": [1, 2]}, {"a": "NaN", "b": "x", "c": None}, {"a": "-Infinity"}]
    table = json.dumps({"table": {"_type": "trackio.table", "_value": rows}})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE metrics SET metrics = ? WHERE step = 7", (table,))
    import_all(url, path, project="cells")
    (found,) = only_run(url, "cells", "first").tables()
    assert found.columns == ["a", "b", "c"]
    assert found.rows == [[1, "NaN", "[1, 2]"], ["NaN", "x", None], ["-Infinity", None, None]]
    frame = found.to_pandas()
    assert frame["a"].tolist()[2] == -math.inf
    assert frame["b"].tolist()[0] == "NaN"


def test_a_database_is_preferred_to_the_parquet_files_that_were_made_of_it(folder):
    assert read_all(folder).runs == 2


def test_databases_from_before_trackio_had_run_ids_are_read(folder, tmp_path):
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(folder / "myproject.db")) as connection:
        metrics = connection.execute("SELECT timestamp, run_name, step, metrics FROM metrics").fetchall()
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics)")
        connection.executemany("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)", metrics)
    tally = read_all(old)
    assert (tally.runs, tally.points) == (2, 4 * ROWS + 2 + 1 + 1)


def test_damaged_rows_are_counted_and_skipped(folder, tmp_path):
    path = tmp_path / "project.db"
    shutil.copy(folder / "myproject.db", path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE metrics SET metrics = '{\"loss\":' WHERE step = 0 AND run_name = 'first'")
        connection.execute("UPDATE metrics SET timestamp = 'then' WHERE step = 10")
        connection.execute("UPDATE metrics SET metrics = ? WHERE step = 20", ("[" * 100_000,))
        connection.execute("UPDATE configs SET config = 'x' WHERE run_name = 'second'")
    tally = read_all(path)
    assert (tally.left_out["damaged rows"], tally.left_out["damaged configurations"]) == (3, 1)
    assert tally.runs == 2


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "link.png", "", "a\\..\\..\\..\\secret.png"])
def test_media_outside_the_folder_are_never_read(folder, tmp_path, path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    base = tmp_path / "trackio"
    (base / "media").mkdir(parents=True)
    (base / "media" / "link.png").symlink_to(secret)
    shutil.copy(folder / "myproject.db", base / "myproject.db")
    with closing(sqlite3.connect(base / "myproject.db")) as connection, connection:
        image = json.dumps({"image": {"_type": "trackio.image", "file_path": path, "caption": None}})
        connection.execute("UPDATE metrics SET metrics = ? WHERE step = 5", (image,))
    bodies = []
    tally = read_all(base, bodies)
    assert tally.left_out["unreadable image files"] >= 1
    assert not any(b"secret" in body or b"root:" in body for body in bodies)


def test_views_are_not_read_as_tables(tmp_path):
    path = tmp_path / "project.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE VIEW metrics AS WITH RECURSIVE n(timestamp, run_name, step, metrics) AS"
            " (SELECT 1, 2, 3, 4 UNION ALL SELECT 1, 2, 3, 4 FROM n) SELECT * FROM n"
        )
    with pytest.raises(Exception, match="found no runs"):
        read_all(path)
