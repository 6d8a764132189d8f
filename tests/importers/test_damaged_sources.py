"""Sources with one invalid value: everything else is imported, and the value is counted or reported."""

import json
import math
import os
import sqlite3
import struct
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from support.import_server import counted, left_out
from support.record_logs import record_log
from tensormeter.archive.layout import references_in
from tensormeter.cli.import_ import import_
from tensormeter.conventions.semconv import RUN_ID
from tensormeter.importers.point_block import PointBlock
from tensormeter.importers.registry import Options
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.table.cells import numbers_of, times_of
from tensormeter.importers.table.files import read_blocks
from tensormeter.importers.tally import Tally
from tensormeter.importers.tensorboard.checksums import masked_checksums
from tensormeter.importers.tensorboard.messages import Event, Value
from tensormeter.importers.wandb import find as find_wandb
from tensormeter.importers.wandb.messages import HistoryItem, Record
from tensormeter.importers.wandb.output import ConsoleOutput
from tensormeter.otlp.batch import Event as RecordedEvent

T0 = 1_750_000_000
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 30


class Requests:
    """A sender that keeps the requests, and the log lines that are added to it."""

    def __init__(self):
        self.requests, self.lines = [], []

    def send(self, signal, body, items):
        self.requests.append((signal, body, items))

    def log(self, time, severity, text, **fields):
        self.lines.append(text)


@pytest.fixture
def read_only():
    """Reads a source without sending it. Returns the counts."""

    def read_only(path, *, status=0):
        result = CliRunner().invoke(import_, [os.fspath(path), "--dry-run"], env={"COLUMNS": "200"})
        assert result.exit_code == status, result.output + repr(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return counted(result), left_out(result)

    return read_only


def wandb_file(folder, *items):
    """Writes a run with a sound row, a row with these encoded items, and another sound row."""
    start = Record()
    start.run.run_id = start.run.project = "p"
    start.run.start_time.seconds = T0
    rows = []
    for step, of_row in enumerate(([item("loss", 1)], items, [item("loss", 2)])):
        row = Record()
        row.history.step.num = step
        row.history.item.extend(of_row)
        rows.append(row.SerializeToString())
    path = folder / "run-p.wandb"
    path.write_bytes(record_log([start.SerializeToString(), *rows]))
    return path


def item(key, value):
    return HistoryItem(key=key, value_json=json.dumps(value)).SerializeToString()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_step", 1.5),
        ("_step", float("nan")),
        ("_step", 1 << 63),
        ("_timestamp", float("nan")),
        ("_timestamp", 1e300),
        ("_timestamp", -5),
    ],
)
def test_a_wandb_row_with_an_invalid_step_or_time_keeps_its_values(read_only, tmp_path, key, value):
    path = wandb_file(tmp_path, item("loss", 7), item("new", 7), item(key, value))
    counts, missing = read_only(path)
    assert counts["points"] == 4
    assert missing == {"invalid steps and times, which the rest of their row replaces": 1}


def test_a_damaged_wandb_value_costs_nothing_else(read_only, tmp_path):
    counts, missing = read_only(wandb_file(tmp_path, b"\xff\xff", item("loss", 7)))
    assert (counts["points"], missing) == (3, {"damaged values in the history": 1})


def test_a_wandb_run_may_have_an_impossible_start(read_only, tmp_path):
    path = wandb_file(tmp_path)
    record = Record.FromString(Record(run={"run_id": "p", "start_time": {"seconds": 1 << 62}}).SerializeToString())
    path.write_bytes(record_log([record.SerializeToString()]))
    assert read_only(path)[0]["runs"] == 1


def test_lists_of_too_many_images_are_left_out_before_they_are_read(read_only, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "image.png").write_bytes(PNG)
    images = {"_type": "images/separated", "filenames": ["image.png"] * 257}
    counts, missing = read_only(wandb_file(tmp_path, item("i", images)), status=1)
    assert (counts["media"], missing) == (0, {"damaged W&B objects of type images/separated": 1})


class Placing:
    """Requests that note the points that they are given."""

    def __init__(self):
        self.points = []

    def place(self, steps, times):
        return times

    def placed_points(self, name, times, values, unit):
        self.points += [(name, *point) for point in zip(times.tolist(), values.tolist(), strict=True)]


def test_large_integers_next_to_floats_stay_exact():
    requests = Placing()
    block = PointBlock(requests, has_steps=True)
    texts = [b"9007199254740993", b"0.5", b"NaN", b"-9007199254740993", b"9" * 20]
    for row, text in enumerate(texts):
        block.column("x").rows.append(row)
        block.column("x").texts.append(text)
        block.end_row(row, row + 1, 1)
    block.flush()
    points = {time: value for _, time, value in requests.points}
    assert math.isnan(points.pop(3))
    assert points == {1: 9007199254740993, 2: 0.5, 4: -9007199254740993, 5: 1e20}


def test_a_metric_may_be_twice_in_a_row():
    """Both `a.b` and `{"a": {"b": ...}}` become `a.b`."""
    requests = Placing()
    block = PointBlock(requests, has_steps=True)
    column = block.column("a.b")
    column.rows += [0, 0]
    column.texts += [b"1", b"2"]
    block.end_row(0, 10, 2)
    block.end_row(1, 20, 0)
    block.flush()
    assert requests.points == [("a.b", 10, 1), ("a.b", 10, 2)]


def test_redrawn_output_does_not_pile_up():
    requests = Requests()
    output = ConsoleOutput(requests)
    for step in range(10_000):
        output.add(0, 1, f"\r{step:>1000}")
    assert len(output._pending[0]) == 1001
    output.add(0, 1, "\n")
    assert requests.lines == [f"{9999:>1000}"]


def event_file(folder, *events):
    """Writes an event file with a sound scalar before and after these encoded events."""

    def checksum(data):
        return masked_checksums(np.frombuffer(data, np.uint8), np.array([0]), np.array([len(data)])).tobytes()

    scalars = [scalar(step).SerializeToString() for step in (1, 3)]
    with (folder / "events.out.tfevents.1.host.1").open("wb") as file:
        for data in (scalars[0], *events, scalars[1]):
            length = struct.pack("<Q", len(data))
            file.write(length + checksum(length) + data + checksum(data))
    return folder


def scalar(step, wall_time=T0, tag="loss"):
    event = Event(wall_time=wall_time, step=step)
    event.summary.value.append(Value(tag=tag, simple_value=step).SerializeToString())
    return event


def plugin_value(name, **fields):
    value = Value(tag="abcd", **fields)
    value.metadata.plugin_data.plugin_name = name
    event = Event(wall_time=T0, step=2)
    event.summary.value.append(value.SerializeToString())
    return event


def test_damaged_hyperparameters_cost_nothing_else(read_only, tmp_path):
    metadata = {"plugin_data": {"plugin_name": "hparams", "content": b"\xff\xff"}}
    event = Event(wall_time=T0, step=2)
    event.summary.value.append(Value(tag="hp", metadata=metadata).SerializeToString())
    counts, missing = read_only(event_file(tmp_path, event.SerializeToString()), status=1)
    assert (counts["points"], missing) == (2, {"damaged values in event files": 1})


@pytest.mark.parametrize(
    ("event", "points", "lines"),
    [
        (Event(wall_time=T0, log_message={"message": "abcd"}), 2, 1),
        (scalar(2, tag="abcd"), 3, 0),
        (plugin_value("text", tensor={"string_val": [b"text"]}), 2, 0),
        (plugin_value("abcd", tensor={"dtype": 1}), 2, 0),
    ],
)
def test_texts_of_event_files_may_be_invalid(read_only, tmp_path, event, points, lines):
    damaged = event.SerializeToString().replace(b"abcd", b"\xff\xfe\xfd\xfc")
    counts, _ = read_only(event_file(tmp_path, damaged))
    assert (counts["points"], counts["log lines"]) == (points, lines)


def test_a_record_that_cannot_be_encoded_costs_no_others():
    sender, tally = Requests(), Tally()
    requests = RunRequests(sender, tally)
    requests.start("p", "r", started=1)
    requests.event(RecordedEvent("tensormeter.image", 1, {}, {"tensormeter.step": 1}))
    requests.event(RecordedEvent("impossible", 1 << 64, {}))
    requests.item("text", "a", 1 << 70, 1, text="x")
    requests.finish("finished", 2)
    assert [items for _, _, items in sender.requests] == [3]
    assert tally.left_out == {"records that cannot be encoded": 1, "text items that are invalid": 1}


@pytest.mark.parametrize("counts", [[1e300, 1], [float("inf"), 1], [float("nan"), 1], [[1], [2]]])
def test_histograms_with_impossible_counts_are_left_out(counts):
    tally = Tally()
    requests = RunRequests(Requests(), tally)
    requests.start("p", "r", started=1)
    requests.histogram("h", 1, 1, [0, 1, 2], counts)
    assert tally.left_out == {"histograms with invalid buckets": 1}


def test_points_of_invalid_times_are_placed_at_the_first_nanoseconds():
    """A server would refuse times before the epoch, and the other points of the request with them."""
    requests = RunRequests(Requests(), Tally())
    requests.start("p", "r", started=1)
    assert requests.place(np.array([1, 2, 3]), np.array([-5, 0, 7])).tolist() == [1, 2, 7]


POINT = {
    "project": "p", "run": "r", "process": "1", "rank": 0, "attempt": 1, "metric": "m", "attributes": {}, "step": 1,
    "time": T0 * 10**9, "value": 1.0,
}  # fmt: skip
DISTRIBUTION = POINT | {"value": None, "counts": [1, 2], "bounds": [0.5]}


@pytest.mark.parametrize(
    ("row", "points", "expected"),
    [
        ({name: POINT[name] for name in POINT if name != "step"}, 2, {}),
        (DISTRIBUTION, 2, {}),
        (DISTRIBUTION | {"bounds": ["a"]}, 1, {"distributions without buckets": 1}),
        (DISTRIBUTION | {"counts": [1, None]}, 1, {"distributions without buckets": 1}),
        (POINT | {"time": -5}, 1, {"rows without a time": 1}),
        (POINT | {"time": 1e300}, 1, {"rows without a time": 1}),
        (POINT | {"rank": "\N{SUPERSCRIPT TWO}", "attempt": "9" * 30}, 2, {}),
        (POINT | {"value": 10**400}, 1, {"rows without a value": 1}),
    ],
)
def test_rows_of_an_exported_table_may_be_damaged(read_only, tmp_path, row, points, expected):
    """The row is in another block than the sound ones."""
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [POINT] * 1000 + [row]))
    counts, missing = read_only(path)
    assert (counts["points"] - 999, missing) == (points, expected)


@pytest.mark.parametrize("row", [{"step": 1, "x": 10**400}, {"step": 10**400, "x": 1}, {}])
def test_rows_of_a_table_may_be_damaged(read_only, tmp_path, row):
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [{"step": 0, "x": 1}, row]))
    counts, missing = read_only(path)
    assert (counts["points"], sum(missing.values())) == (1, bool(row))


def test_rows_with_many_different_names_take_no_more_time(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps({f"{row}-{n}": n for n in range(100)}) + "\n" for row in range(300)))
    blocks = list(read_blocks(path, Tally(), lambda size: None))
    assert sum(map(len, blocks)) == 30_000
    assert max(len(block) * len(next(iter(block.values()))) for block in blocks) < 100_000


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["9007199254740993", "NA"], [9007199254740993, 0]),
        (pa.array([2**60 + 1, 1], pa.uint64()), [2**60 + 1, 1]),
    ],
)
def test_integers_stay_integers(cells, expected):
    values, _, _, _ = numbers_of(cells)
    assert values.tolist() == expected


def test_nanoseconds_of_texts_are_kept():
    times, _ = times_of(["2025-01-01T00:00:00.123456789Z", "2025-01-01 00:00:00.1234567", "2025-01-01"], 0)
    assert (times - 1_735_689_600_000_000_000).tolist() == [123_456_789, 123_456_700, 0]


BILLIONS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))


@pytest.fixture
def mlruns(tmp_path):
    """A store with two runs, which tensormeter's destination has written."""
    store = tmp_path / "mlruns"
    for run_id in ("first", "second"):
        run = store / "0" / run_id
        for folder in ("metrics", "tags", "artifacts"):
            (run / folder).mkdir(parents=True)
        meta = f"run_id: {run_id}\nstart_time: {T0}000\nlifecycle_stage: active\nstatus: 3\n"
        (run / "meta.yaml").write_text(meta)
        (run / "metrics" / "loss").write_text(f"{T0}000 1.5 0\n")
        (run / "tags" / RUN_ID).write_text(run_id)
    (store / "0" / "meta.yaml").write_text("experiment_id: '0'\nlifecycle_stage: active\nname: p\n")
    return store


def test_a_folder_of_artifacts_outside_the_store_costs_nothing_else(read_only, mlruns, tmp_path):
    artifacts = mlruns / "0" / "first" / "artifacts"
    artifacts.rmdir()
    artifacts.symlink_to(tmp_path)
    counts, _ = read_only(mlruns, status=1)
    assert (counts["runs"], counts["points"]) == (2, 2)


@pytest.mark.parametrize("field", ["run_name", "status", "artifact_uri"])
def test_a_description_with_aliases_does_not_expand(read_only, mlruns, field):
    with (mlruns / "0" / "first" / "meta.yaml").open("a") as file:
        file.write(f"{BILLIONS}{field}: *a11\n")
    assert read_only(mlruns)[0]["runs"] == 2


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("images/key-5/1-2.png", PNG, 0),
        ("images/key-9999999999999999999.png", PNG, 0),
        (f"images/key+step+1+timestamp+{'9' * 15}+{'0' * 36}.png", PNG, 1),
        ("alerts/a1.json", b'{"title": "a", "text": "b", "level": "INFO", "time": 1e999, "step": 1}', 0),
        ("alerts/a1.json", b'{"title": "a", "text": "b", "level": "INFO", "time": 1e30, "step": 1}', 1),
    ],
)
def test_artifacts_with_impossible_names_cost_nothing_else(read_only, mlruns, path, content, status):
    place = mlruns / "0" / "first" / "artifacts" / path
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    counts, _ = read_only(mlruns, status=status)
    assert (counts["runs"], counts["points"], counts["media"]) == (2, 2, path.startswith("images/key-"))


@pytest.fixture
def trackio_database(tmp_path):
    """Creates a database with a sound row and another one, and with an artifact."""

    def create(step, values, version=1):
        path = tmp_path / "p.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            time = "2025-01-01T00:00:00+00:00"
            connection.execute(
                "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_id, run_name, step, metrics)"
            )
            for row in ((0, {"x": 1}), (step, values)):
                connection.execute(
                    "INSERT INTO metrics (timestamp, run_id, run_name, step, metrics) VALUES (?, 'r', 'r', ?, ?)",
                    (time, row[0], json.dumps(row[1])),
                )
            connection.execute("CREATE TABLE artifacts (id, name, type)")
            connection.execute("INSERT INTO artifacts VALUES (1, 'a', 'model')")
            columns = "id, artifact_id, version, manifest, size_bytes, producer_run_id, created_at"
            connection.execute(f"CREATE TABLE artifact_versions ({columns})")
            connection.execute(
                "INSERT INTO artifact_versions VALUES (1, 1, ?, '[]', ?, 'r', ?)", (version, version, time)
            )
            connection.execute("CREATE TABLE artifact_aliases (alias, artifact_version_id)")
        return path

    return create


@pytest.mark.parametrize(
    ("step", "values", "version", "points", "kind"),
    [
        (1, {"x": 10**400, "y": 2}, 1, 2, "values of unknown types"),
        (None, {"x": 2}, 1, 1, "damaged rows"),
        (1, {"x": 2}, "12 kB", 2, None),
        (1, {"t": {"_type": "trackio.table", "_value": [{"a": {"_type": "trackio.image"}}] * 300}}, 1, 1, "tables"),
    ],
)
def test_values_of_trackio_may_be_damaged(read_only, trackio_database, step, values, version, points, kind):
    counts, missing = read_only(trackio_database(step, values, version))
    assert counts["points"] == points
    assert kind is None or any(found.startswith(kind) for found in missing)


def test_a_body_that_looks_like_a_reference_is_not_one():
    assert references_in({"digest": "0" * 64, "content_type": ["image/png"]}) == []


def test_the_attempt_of_a_wandb_run_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    for time in ("20250101_000000", "20250102_000000"):
        (tmp_path / f"run-{time}-p").mkdir()
        wandb_file(tmp_path / f"run-{time}-p")
    assert [run.attempt for run in find_wandb(os.fspath(tmp_path), Options())] == [1, 2]
    monkeypatch.chdir(tmp_path / "run-20250102_000000-p")
    assert [run.attempt for run in find_wandb("run-p.wandb", Options())] == [2]
