"""Checks of stores for damage: the command `check`, inspections, and files that are gone, cut or no store."""

import json
import os
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from damaged_stores import SERIES, T0, check, resource, times

from support.processes import run_python
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.store.sqlite.integrity.inspection import _MANY, Inspection, open_read_only
from tensormeter.server.store.sqlite.store import SqliteStore


def test_check_names_what_is_damaged(damaged_copy):
    done = check(damaged_copy("UPDATE run SET updated = updated WHERE id = 1"))
    assert (done.returncode, done.stderr, "nothing is damaged" in done.stdout) == (0, "", True)
    assert " chunk," in done.stdout


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            f"UPDATE chunk SET n = n + 1 WHERE seq = 0 AND series IN {SERIES.format('long', 'epoch')}",
            "'epoch' of run 'long'",
        ),
        (f"DELETE FROM chunk WHERE seq = 1 AND series IN {SERIES.format('long', 'epoch')}", "'epoch' of run 'long'"),
        (
            f"UPDATE chunk SET series = series + 1 WHERE series IN {SERIES.format('long', 'epoch')} AND seq = 3",
            "run 'long'",
        ),
        ("UPDATE sample SET coarse = fine, fine = coarse", "sample"),
        ("UPDATE event SET body = replace(body, '2.5', '2.6')", "event 3"),
        ("UPDATE event SET attributes = attributes || ' '", "event"),
        ("UPDATE log SET body = body || 'x'", "run 'other' (project 'demo'): log 60: the checksum"),
        ("DELETE FROM log WHERE body = 'line 7'", "it counts 41 lines, but there are 40"),
        ("UPDATE log_usage SET evicted = 7", "log_usage"),
        ("UPDATE run SET config = replace(config, '0.5', '0.6') WHERE run_id = 'long'", "run 'long'"),
        ("UPDATE run SET tags = NULL WHERE run_id = 'long'", "run 'long'"),
        ("UPDATE summary SET total = total * 2 WHERE metric = 'epoch'", "metric 'epoch'"),
        ("UPDATE series SET last_word = last_word + 1", "the checksum does not match"),
        ("UPDATE process SET losses = '{\"ring_full\":7}'", "the checksum does not match"),
        ("UPDATE process SET resource = replace(resource, 'a-host', 'b-host')", "the checksum does not match"),
        ("UPDATE media SET data = zeroblob(100)", "SHA-256"),
        ("UPDATE journal SET payload = zeroblob(20)", "journal"),
        ("UPDATE batch SET rejected = 1", "batch"),
        ("DELETE FROM process WHERE process = 'p1'", "is missing"),
    ],
)
def test_check_finds(damaged_copy, statement, words):
    done = check(damaged_copy("UPDATE run SET seal = seal", statement))
    assert (done.returncode, done.stderr) == (1, "")
    assert any(line.startswith("damaged: ") and words in line for line in done.stdout.splitlines()), done.stdout


def test_check_reports_as_json(damaged_copy):
    done = check(damaged_copy("UPDATE media SET data = zeroblob(100)"), "--json")
    *findings, last = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, last["damaged"], len(findings)) == (1, 2, 2)
    assert "run 'long'" in findings[0]["about"]


def test_check_counts_each_row_once(damaged_copy):
    folder = damaged_copy("UPDATE run SET seal = NULL, tally = NULL", "UPDATE process SET resource_seal = NULL")
    *findings, last = map(json.loads, check(folder, "--json").stdout.splitlines())
    assert findings == []
    with closing(sqlite3.connect(folder / "tensormeter.db")) as connection:
        rows = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in last["checked"]}
    assert {"run", "process", "series", "summary"} < rows.keys()
    assert last["checked"] == rows
    assert f"; {rows['run'] + rows['process']} rows from an older version have no checksum yet" in check(folder).stdout


def test_check_runs_while_a_server_does(start, make):
    server = start()
    stop = threading.Event()

    def send():
        number = 0
        while not stop.is_set():
            rows = [(T0 + 100 * number + i, i, {"v": i / 7, "w": float(i)}) for i in range(100)]
            assert server.metrics(make.rows("busy", rows)).status == 200
            number += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(3):
            done = check(server.folder)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
    finally:
        stop.set()
        sender.join()


def test_an_inspection_reads_past_what_cannot_be_read(tmp_path, image):
    content = bytearray(image.read_bytes())
    with closing(open_read_only(image)) as connection:
        assert [*Inspection(connection).all()] == []
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()
    content[(page - 1) * size] = 77
    (tmp_path / "tensormeter.db").write_bytes(content)
    with closing(open_read_only(tmp_path / "tensormeter.db")) as connection:
        inspection = Inspection(connection)
        findings = [str(finding) for finding in inspection.all()]
    assert any("event: rows after -1 cannot be read" in finding for finding in findings)
    assert inspection.counts["chunk"] > 0
    assert inspection.counts["media"] > 0


def test_an_inspection_of_batches_out_of_order_ends(tmp_path):
    """The last id that is read at once comes before all others, so the next ones that come after it are the same again."""
    store = SqliteStore(tmp_path, flush_interval=3600)
    for number in range(_MANY + 100):
        batch = Batch(resource("run"), [Gauge("loss", times(number, 1), np.array([0.5]))])
        store.append_metrics([batch], payload=encode_metrics([batch]), batch_id=f"batch-{number:04}")
    store.close()
    file = tmp_path / "tensormeter.db"
    last = f"batch-{_MANY - 1:04}".encode()
    content = file.read_bytes()
    assert content.count(last) == 1
    file.write_bytes(content.replace(last, b"A" + last[1:]))
    with closing(open_read_only(file)) as connection:
        findings = [str(finding) for finding in Inspection(connection).all()]
    assert any("out of order" in finding for finding in findings)
    assert any(f"batch 'A{last.decode()[1:]}'" in finding for finding in findings)


@pytest.mark.parametrize("state", ["empty", "missing"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_store_whose_file_is_gone_is_not_created_again(start, make, state, killed):
    """SQLite deletes the log of an empty database."""
    server = start()
    server.metrics(make.rows("log", [(T0, 0, {"v": 1.0})]))
    server.kill() if killed else server.stop()
    file = server.folder / "tensormeter.db"
    file.unlink() if state == "missing" else os.truncate(file, 0)
    kept = contents(server.folder)
    assert (kept.get("tensormeter.db-wal", b"") != b"") == killed
    done = check(server.folder)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 2)
    assert f"tensormeter.db is {state}" in done.stdout
    for command in (["serve", "--port", "0"], ["compact"], ["backup", str(server.folder.parent / "copy.db")]):
        done = run_python("-m", "tensormeter", *command, "--data", server.folder)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert f"tensormeter.db is {state}" in done.stderr
        assert "restore tensormeter.db from a backup, or move " in done.stderr
    assert contents(server.folder) == kept
    for name in ("reserve", "tensormeter.db-wal"):
        (server.folder / name).unlink(missing_ok=True)
    assert start().get("/api/v1/runs")["runs"] == []


@pytest.mark.parametrize("size", [0, 1, 2, 99, 4096])
def test_a_store_that_was_cut_is_refused(tmp_path, size):
    """SQLite takes a file of one byte for an empty one."""
    SqliteStore(tmp_path).close()
    os.truncate(tmp_path / "tensormeter.db", size)
    content = (tmp_path / "tensormeter.db").read_bytes()
    with pytest.raises(StoreError, match=r"tensormeter\.db"):
        SqliteStore(tmp_path)
    assert (tmp_path / "tensormeter.db").read_bytes() == content
    done = check(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("damaged: ")


def test_a_first_start_that_was_killed_goes_on(tmp_path):
    """It has made the empty file, or its first page, and no more."""
    for name, statements in (("file", ()), ("page", ("PRAGMA journal_mode = WAL",))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensormeter.db").touch()
        with closing(sqlite3.connect(tmp_path / name / "tensormeter.db")) as database:
            for statement in statements:
                database.execute(statement).fetchall()
        with closing(SqliteStore(tmp_path / name)) as store:
            assert store.problem() is None
            assert store.projects() == []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(
    ("at", "bit", "words"),
    [
        (47, 3, "unsupported file format"),
        (59, 1, "malformed database schema"),
        (100, 4, "malformed"),
        (103, 0, "malformed"),
        (104, 7, "its tables cannot be read"),
        (63, 2, "has schema 14, but its tables are of schema 10 (if a newer tensormeter wrote it, upgrade)"),
        (63, 0, "has schema 11, but its tables are of schema 10 (if a newer tensormeter wrote it, upgrade)"),
        (63, 1, "has schema 8, but its tables are of schema 10"),
        (63, 3, "has schema 2, but its tables are of schema 10"),
        (60, 0, "but its tables are of schema 10"),
        (71, 0, "application ID 0x746d7473, but a store's is 0x746d7472"),
        (16, 0, "file is not a database"),
    ],
)
def test_a_flipped_bit_in_the_first_page_is_damage_and_starts_no_migration(tmp_path, image, at, bit, words):
    content = bytearray(image.read_bytes())
    content[at] ^= 1 << bit
    file = tmp_path / "tensormeter.db"
    file.write_bytes(content)
    done = check(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("damaged: ") and words in line for line in lines), done.stdout
    assert lines[-1].startswith("checked ")
    assert lines[-1].endswith(" damaged")
    with pytest.raises(StoreError, match=r"tensormeter\.db"):
        SqliteStore(tmp_path)
    assert file.read_bytes() == content
