"""Upkeep of the SQLite store: older versions, retention, deletion, compacting, backups."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from support.stores import append_batches, append_events, append_values
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.store import NotFoundError, RunChanges, RunRef, Selection
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.sqlite import migration, retention
from tensormeter.server.store.sqlite.maintenance import back_up, compact
from tensormeter.server.store.sqlite.points.segments import encode_segment
from tensormeter.server.store.sqlite.retention import Retention
from tensormeter.server.store.sqlite.store import SqliteStore

VERSION_1 = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, project TEXT NOT NULL, run_id TEXT NOT NULL, name TEXT NOT NULL,
    config TEXT NOT NULL DEFAULT '{}', config_time INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL, updated INTEGER NOT NULL,
    series INTEGER NOT NULL DEFAULT 0, points INTEGER NOT NULL DEFAULT 0, UNIQUE (project, run_id)
);
CREATE INDEX run_by_run_id ON run (run_id);
CREATE INDEX run_by_created ON run (created);
CREATE TABLE process (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, process TEXT NOT NULL, resource TEXT NOT NULL,
    started INTEGER, ended INTEGER, end_state TEXT, UNIQUE (run, process)
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, process INTEGER NOT NULL REFERENCES process, metric TEXT NOT NULL,
    attributes TEXT NOT NULL, unit TEXT NOT NULL, description TEXT NOT NULL,
    points INTEGER NOT NULL DEFAULT 0, last_time INTEGER, last_word INTEGER, last_integer INTEGER,
    UNIQUE (process, metric, attributes)
);
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL REFERENCES series, seq INTEGER NOT NULL, n INTEGER NOT NULL,
    t_min INTEGER NOT NULL, t_max INTEGER NOT NULL, kind INTEGER NOT NULL,
    times BLOB NOT NULL, words BLOB NOT NULL, integers BLOB NOT NULL
);
CREATE UNIQUE INDEX chunk_by_series ON chunk (series, seq, n, t_min, t_max);
CREATE TABLE event (
    id INTEGER PRIMARY KEY, process INTEGER NOT NULL REFERENCES process, time INTEGER NOT NULL, name TEXT NOT NULL,
    digest BLOB NOT NULL, body TEXT NOT NULL, attributes TEXT NOT NULL, UNIQUE (process, time, name, digest)
);
CREATE TABLE batch (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, received INTEGER NOT NULL, rejected INTEGER NOT NULL, message TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL);
PRAGMA application_id = 1953330290;
PRAGMA user_version = 1;
"""


def resource_of(run):
    return {"tensormeter.run.id": run, "service.instance.id": "p"}


def values(store, run="r", name="v"):
    return [v for series in store.read(RunRef(run), Selection([name])).series for v in series.points.values()]


def write_version_1(file):
    import zstandard

    from tensormeter.server.store.rules.batch_digest import digest

    file.parent.mkdir()
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.executescript(VERSION_1)
        old.execute("INSERT INTO run VALUES (7, 'default', 'r', 'a run', '{\"lr\":1}', 5, 5, 99, 2, 8)")
        old.execute("INSERT INTO process VALUES (3, 7, 'p', '{\"host.name\":\"h\"}', 5, 50, 'crashed')")
        steps = encode_segment(Points.of(np.arange(10, 14), np.arange(4)))
        numbers = encode_segment(Points.of(np.arange(10, 14), np.array([4.0, np.nan, 1.0, 2.0])))
        last = np.array([2.0]).view(np.int64)[0]
        for series, metric, chunk, word, integer in ((1, STEP_METRIC, steps, 3, 1), (2, "v", numbers, int(last), 0)):
            old.execute(
                "INSERT INTO series VALUES (?, 3, ?, '{}', '1', 'd', 4, 13, ?, ?)", (series, metric, word, integer)
            )
            row = (chunk.n, chunk.t_min, chunk.t_max, chunk.kind, chunk.times, chunk.words, chunk.integers)
            old.execute("INSERT INTO chunk VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?)", (series, series, *row))
        old.execute("INSERT INTO event VALUES (4, 3, 5, 'tensormeter.run.start', x'00', '{\"config\":{}}', '{}')")
        waiting = encode_metrics([Batch(resource_of("r"), [Gauge("v", np.array([14], np.uint64), np.array([9.0]))])])
        old.execute("INSERT INTO journal VALUES (40, ?)", (zstandard.compress(waiting),))
        old.execute("INSERT INTO batch VALUES ('b', ?, 1, 0, '')", (digest("metrics", waiting),))


def test_a_store_of_version_1_is_brought_up_to_date(tmp_path, open_store, query, caplog):
    write_version_1(tmp_path / "store" / "tensormeter.db")
    store = open_store()
    assert "from version 1 to" in caplog.text
    run = store.run(RunRef("r"))
    assert (run.name, run.state, run.config, run.started, run.ended) == ("a run", "crashed", {"lr": 1}, 5, 50)
    summary = run.summary["v"]
    assert (summary.last, summary.min, summary.max, summary.count) == (9.0, 1.0, 9.0, 5)
    assert summary.mean == (4 + 1 + 2 + 9) / 4
    assert [value for value in values(store) if value == value] == [4.0, 1.0, 2.0, 9.0]
    assert [event.name for event in store.events(RunRef("r"))] == ["tensormeter.run.start"]
    assert append_values(store, [14], [9.0], batch_id="b").duplicate
    append_values(store, [15], [10.0])
    assert query("SELECT max(seq) FROM journal") == [(41,)]
    store.flush()
    assert store.run(RunRef("r")).summary["v"].count == 6
    assert query("PRAGMA foreign_key_check") == []
    assert query("PRAGMA integrity_check") == [("ok",)]
    store.close()
    SqliteStore(tmp_path / "fresh").close()

    def tables(folder):
        rows = query("SELECT type, name, sql FROM sqlite_master ORDER BY name", folder=folder)
        return [(kind, name, " ".join(re.sub(r"--.*", "", sql or "").split())) for kind, name, sql in rows]

    assert tables("store") == tables("fresh")


def test_a_migration_that_fails_leaves_the_old_store(tmp_path, open_store, query, monkeypatch):
    write_version_1(tmp_path / "store" / "tensormeter.db")
    before = query("SELECT name FROM sqlite_master ORDER BY name")
    with monkeypatch.context() as patch:
        patch.setattr(migration, "_summaries", lambda _: (_ for _ in ()).throw(sqlite3.OperationalError("disk full")))
        with pytest.raises(StoreError, match="disk full"):
            open_store()
    assert query("PRAGMA user_version") == [(1,)]
    assert query("SELECT name FROM sqlite_master ORDER BY name") == before
    assert 9.0 in values(open_store())


def test_retention_by_age(open_store, query, caplog):
    store = open_store()
    append_values(store, [1, 2], [1.0, 2.0], run="old")
    append_values(store, [1, 2], [1.0, 2.0], run="kept")
    store.update(RunRef("kept"), RunChanges(tags=["keep"]))
    append_values(store, [1, 2], [1.0, 2.0], run="live")
    store.close()
    store = open_store(retention=Retention(max_age=3600))
    query("UPDATE run SET updated = 1, tally = NULL WHERE run_id IN ('old', 'kept')")
    append_values(store, [2**62], [3.0], run="live")
    store.flush()
    store._work_in_background()
    assert "retention is deleting run 'old' (project 'default')" in caplog.text
    with pytest.raises(NotFoundError):
        store.run(RunRef("old"))
    assert values(store, "kept") == [1.0, 2.0]
    assert 3.0 in values(store, "live")
    assert query("SELECT count(*) FROM run WHERE deleted") == [(0,)]
    assert query("SELECT count(*) FROM series") == [(2,)]


def test_retention_by_size_takes_the_oldest_that_ended(open_store):
    store = open_store(retention=Retention(max_bytes=1))
    for index, run in enumerate(("first", "second", "running")):
        append_values(store, [1], [1.0], run=run)
        if run != "running":
            end = Event("tensormeter.run.end", 10 + index, {"state": "finished"})
            append_events(store, resource_of(run), end)
    store._work_in_background()
    runs = [store.runs(store.table(None, ["id"]).runs)]
    assert [run.run_id for run in runs[0]] == ["second", "running"]
    store._work_in_background()
    store._work_in_background()
    assert [run.run_id for run in store.runs(store.table(None, ["id"]).runs)] == ["running"]


def test_deleting_while_points_are_in_memory_and_in_chunks(open_store, query, monkeypatch):
    monkeypatch.setattr(retention, "_SEGMENTS", 1)
    store = open_store()
    for i in range(1, 6):
        append_values(store, [i], [float(i)], name=f"m{i}")
        store.flush()
    append_values(store, [9], [9.0])
    append_events(store, resource_of("r"), Event("x", 5, {"a": 1}))
    store.delete(RunRef("r"))
    assert append_values(store, [10], [10.0]).rejected == 1
    append_values(store, [1], [1.0], run="other")
    store.flush()
    for table in ("chunk", "series", "process", "summary", "run"):
        assert query(f"SELECT count(*) FROM {table}")[0][0] == (1 if table != "event" else 0)
    assert query("SELECT count(*) FROM event") == [(0,)]
    assert values(store, "other") == [1.0]


def test_compacting_and_backing_up(open_store, query, tmp_path):
    store = open_store()
    for i in range(1, 40):
        append_values(store, [i], [float(i)])
        store.flush()
        append_values(store, [i], [float(i)], name=f"m{i}", run="big")
    store.delete(RunRef("big"))
    store.flush()
    append_values(store, [100], [100.0])
    copy = tmp_path / "copy"
    copy.mkdir()
    size = back_up(tmp_path / "store", copy / "tensormeter.db")  # with the store open, and one point in its journal
    assert size == (copy / "tensormeter.db").stat().st_size
    append_values(store, [101], [101.0])
    with pytest.raises(StoreError, match="in use by process"):
        compact(tmp_path / "store")
    store.close()
    expected = [*map(float, range(1, 40)), 100.0, 101.0]
    done = compact(tmp_path / "store")
    assert done.segments_after == 1 < done.segments_before
    assert done.bytes_after <= done.bytes_before
    assert query("SELECT n FROM chunk") == [(41,)]
    assert values(open_store()) == expected
    restored = SqliteStore(copy)
    assert values(restored) == expected[:-1]
    restored.close()
    with pytest.raises(StoreError, match="does not exist yet"):
        back_up(tmp_path / "store", copy / "tensormeter.db")
    with pytest.raises(StoreError, match="no store"):
        compact(tmp_path / "nothing")


def test_the_commands(open_store, tmp_path):
    store = open_store()
    append_values(store, [1], [1.0])
    command = [sys.executable, "-m", "tensormeter"]
    data = ["--data", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "backup", str(tmp_path / "b.db"), *data], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert oct((tmp_path / "b.db").stat().st_mode & 0o777) == "0o600"
    done = subprocess.run([*command, "compact", *data], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "in use by process" in done.stderr) == (1, True)
    store.close()
    done = subprocess.run([*command, "compact", *data], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "segments" in done.stdout


WITHOUT_SEALS = [
    *(f"ALTER TABLE {table} DROP COLUMN {column}" for table, columns in migration._SEALS.items() for column in columns),
    "DROP TABLE damaged",
]
"""Removes the additions of version 7."""


def test_rows_of_a_store_of_version_6_get_their_seals_when_they_are_written(open_store, query):
    store = open_store()
    append_values(store, [1, 2], [1.0, 2.0])
    append_events(store, resource_of("r"), Event("tensormeter.run.start", 5, {"config": {"lr": 1}}))
    store.close()
    query(*WITHOUT_SEALS, "PRAGMA user_version = 6")
    store = open_store()
    assert query("SELECT count(*) FROM chunk WHERE seal IS NULL") == [(1,)]
    assert (values(store), store.run(RunRef("r")).config) == ([1.0, 2.0], {"lr": 1})
    append_values(store, [3], [3.0])
    append_values(store, [1], [1.0], name="other")
    store.flush()
    assert (values(store), store.run(RunRef("r")).summary["v"].count) == ([1.0, 2.0, 3.0], 3)
    for table, column in (("run", "tally"), ("series", "seal"), ("series", "directory"), ("summary", "seal")):
        assert query(f"SELECT count(*) FROM {table} WHERE {column} IS NULL") == [(0,)]
    append_values(store, [4, 5], [4.0, 5.0])
    store.flush()
    assert query("SELECT count(*) FROM chunk WHERE seal IS NULL") == [(0,)]
    store.close()


def test_events_of_a_store_of_version_4_are_read_and_stored_once(open_store, query):
    """Those had neither severity nor ids."""
    event = Event("tensormeter.alert", 5, {"title": "t", "text": "", "level": "WARN"})
    resource = {"service.name": "p", "tensormeter.run.id": "r", "service.instance.id": "i"}
    store = open_store()
    store.append_events([(resource, [event])], payload=b"1")
    store.close()
    query("ALTER TABLE event DROP COLUMN record", *WITHOUT_SEALS, "PRAGMA user_version = 4")
    store = open_store()
    store.append_events([(resource, [event])], payload=b"2")
    (event_read,) = store.events(RunRef("r"))
    assert (event_read.body["level"], event_read.record.get("severity_number")) == ("WARN", None)
    assert query("PRAGMA foreign_key_check") == []


def test_a_store_of_version_8_gets_first_steps_of_metrics_and_results(open_store, query, tmp_path):
    """Metrics of later attempts shadow from the first step of their process on, as they did in that version."""

    def send(store, process, attempt, start, steps, **columns):
        times = (np.arange(len(steps)) + start).astype(np.uint64)
        gauges = [Gauge(STEP_METRIC, times, np.array(steps))]
        gauges += [Gauge(name, times[-len(column) :], np.array(column)) for name, column in columns.items()]
        resource = {"tensormeter.run.id": "r", "service.instance.id": process, "tensormeter.run.attempt": attempt}
        append_batches(store, Batch(resource, gauges))

    def first_steps(store):
        return store.read(RunRef("r"), Selection([], shadowing=["v", "late", "new"])).attempts["q"].first_steps

    store = open_store()
    send(store, "p", 1, 1, [0, 1, 2, 3], v=[1.0, 2.0, 3.0, 4.0])
    send(store, "q", 2, 100, [1, 2, 3], v=[5.0, 6.0, 7.0], late=[8.0])
    store.close()
    query("DROP TABLE result", "DROP TABLE first_step", "PRAGMA user_version = 8")
    store = open_store()
    assert first_steps(store) == {"v": 1, "late": 1}
    send(store, "q", 2, 200, [4, 5], v=[9.0], new=[1.0])
    assert first_steps(store) == {"v": 1, "late": 1, "new": 5}
    body = {"summary": {"best": 1}, "definitions": [{"name": "v", "summary": "max"}]}
    append_events(store, resource_of("r"), Event("tensormeter.run.start", 5, body))
    run = store.run(RunRef("r"))
    assert (run.results.values, run.results.part("v"), run.parent) == ({"best": 1}, "max", None)
    assert query("SELECT count(*) FROM first_step WHERE seal IS NULL") == [(3,)]  # those of the migration
    store.close()
    with closing(sqlite3.connect(tmp_path / "store" / "tensormeter.db")) as database:
        database.execute("UPDATE first_step SET step = 7 WHERE metric = 'new'")
        database.commit()
    store = open_store()
    with pytest.raises(DamagedError, match="first step of metric 'new'"):
        first_steps(store)
    store.delete(RunRef("r"))
    store.flush()
    assert query("SELECT count(*) FROM first_step") == query("SELECT count(*) FROM result") == [(0,)]
    store.close()


def test_a_store_of_version_9_gets_job_types_and_keeps_its_rows(open_store, query, tmp_path):
    """The migration adds columns only: it neither changes rows nor looks for first steps and lines, as those of older files do."""
    store = open_store()
    gauges = [Gauge(name, np.array([5, 6], np.uint64), np.array([1, 2])) for name in (STEP_METRIC, "v")]
    append_batches(store, Batch({**resource_of("r"), "tensormeter.run.attempt": 2}, gauges))
    append_events(store, resource_of("r"), Event("tensormeter.run.start", 5, {"group": "g"}))
    store.close()
    query("DELETE FROM first_step")  # a migration must not bring it back
    query(*(f"ALTER TABLE run DROP COLUMN {name}" for name in ("job_type", "job_type_seal")), "PRAGMA user_version = 9")
    before = [query(f"SELECT * FROM {table}")[0] for table in ("run", "process", "series")]
    store = open_store()
    after = [query(f"SELECT * FROM {table}")[0] for table in ("run", "process", "series")]
    assert [new[: len(old)] for new, old in zip(after, before, strict=True)] == before
    assert (query("PRAGMA user_version"), query("SELECT count(*) FROM first_step")) == ([(10,)], [(0,)])
    assert (store.run(RunRef("r")).group, store.run(RunRef("r")).job_type) == ("g", "")
    append_events(store, resource_of("r"), Event("tensormeter.run.start", 9, {"group": "other", "job_type": "eval"}))
    assert (store.run(RunRef("r")).group, store.run(RunRef("r")).job_type) == ("g", "eval")
    store.update(RunRef("r"), RunChanges(job_type="train"))
    append_events(store, resource_of("r"), Event("tensormeter.run.start", 10, {"job_type": "late"}))
    assert store.table(None, ["job_type"]).columns == {"job_type": ["train"]}
    store.close()
    query("UPDATE run SET job_type = 'drain'")
    with pytest.raises(DamagedError, match="job type of run 'r'"):
        open_store().run(RunRef("r"))
