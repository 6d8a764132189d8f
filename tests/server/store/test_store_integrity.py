"""Damage at rest: bits, holes and cuts in what a store keeps. Nothing wrong is served, and nothing is missing without a word."""

import hashlib
import os
import random
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from damaged_stores import JOURNAL, PNG, SERIES, T0, N, ask, check, send_metrics, times

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Gauge
from tensormeter.server.app import create_app
from tensormeter.server.config import ServerConfig
from tensormeter.server.store import DamagedError, NotFoundError, RunRef, Selection
from tensormeter.server.store.models.event_query import EventQuery
from tensormeter.server.store.sqlite.integrity.inspection import open_read_only
from tensormeter.server.store.sqlite.store import SqliteStore

MANY = bool(os.environ.get("TENSORMETER_TEST_KILLS"))
MOVES = {("event", "id"), ("event", "run"), ("log", "id"), ("log", "run"), ("media", "run")}
"""Columns whose change, made by SQLite, moves a row in its tree and indexes; a disk does not do that."""


def answers(store, digest):
    """The answers of the API, by request."""
    app = create_app(store, ServerConfig())
    documents = {"runs": ask(app, "/api/v1/runs?sort=id")}
    runs = ["long", "other", JOURNAL]
    for x in ("step", "time"):
        for most in (12, 2000):
            query = {"runs": runs, "metrics": ["loss", "epoch"], "x": x, "max_points": most}
            documents[f"query {x} {most}"] = ask(app, "/api/v1/query", query)
    for run in runs:
        for what in (
            "",
            "/metrics",
            "/events",
            "/logs",
            "/series?metric=loss&x=time",
            "/ranks?metric=loss",
            "/histograms?metric=weights",
        ):
            documents[run + what] = ask(app, f"/api/v1/runs/{run}{what}")
        documents[f"{run} media"] = ask(app, f"/api/v1/runs/{run}/media/{digest}")
    return documents


def differences(documents, expected, problem):
    """The answers that are neither right, nor an error, nor reported as missing."""
    wrong = []
    is_journal_damaged = "journal row" in (problem or "")
    for request, (status, document) in documents.items():
        known_status, known = expected[request]
        if (status, document) == (known_status, known) or status >= 500 or (status == 404 and known_status == 200):
            continue
        if known_status != 200 or status != 200:
            wrong.append((request, status, document))
            continue
        if is_journal_damaged and request.startswith(JOURNAL):
            continue  # its points are said to be missing; that none is wrong is looked at in another request
        damaged = document.get("damaged")
        parts = without_journal if is_journal_damaged else dict
        ours, theirs = parts(document), parts(known)
        lists = [name for name in ("series", "runs", "lines") if name in known]
        for name in lists:
            left = [entry for entry in ours.pop(name) if entry not in theirs[name]]
            if left or (len(document[name]) < len(known[name]) and not damaged and not is_journal_damaged):
                wrong.append((request, name, left, document[name]))
            theirs.pop(name)
        for name in ("damaged", "cursor", "total"):
            ours.pop(name, None)
            theirs.pop(name, None)
        if ours != theirs:
            wrong.append((request, ours, theirs))
    return wrong


def without_journal(document):
    """Without the run that is said to lack points."""
    return {
        name: [entry for entry in value if JOURNAL not in (entry.get("run"), entry.get("id"))]
        if name in ("series", "runs")
        else value
        for name, value in document.items()
    }


def damage(content, instants):
    """Bits, a hole or a cut."""
    content = bytearray(content)
    match instants.randrange(3):
        case 0:
            for _ in range(instants.randrange(1, 4)):
                content[instants.randrange(len(content))] ^= 1 << instants.randrange(8)
        case 1:
            first = instants.randrange(len(content))
            length = min(instants.randrange(1, 200), len(content) - first)
            content[first : first + length] = bytes(length)
        case 2:
            del content[instants.randrange(len(content)) :]
    return bytes(content)


def damage_a_row(file, instants):
    """Change one value of the store in the way of a disk; says which."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.text_factory = bytes
        tables = {
            table: [row[1].decode() for row in database.execute(f"PRAGMA table_info({table})")]
            for table in ("chunk", "sample", "journal", "media", "event", "log", "run", "process", "series", "summary")
        }
        table = instants.choice([*tables])
        column = instants.choice(tables[table])
        if (table, column) in MOVES:
            return None
        keys = "run, metric" if table == "summary" else "rowid"
        *key, value = instants.choice(database.execute(f"SELECT {keys}, {column} FROM {table}").fetchall())
        if value is None or value in (b"", 0):
            return None
        if isinstance(value, bytes):
            kind = database.execute(f"SELECT DISTINCT typeof({column}) FROM {table} LIMIT 1").fetchone()[0]
            new = damage(value, instants)
            expression = "CAST(? AS TEXT)" if kind == b"text" else "?"
        elif isinstance(value, int):
            new, expression = value ^ 1 << instants.randrange(62), "?"
        else:
            (word,) = np.array([value]).view(np.int64)
            new, expression = float(np.array([word ^ 1 << instants.randrange(63)]).view(np.float64)[0]), "?"
        if new == value or new != new:
            return None
        where = " AND ".join(f"{name} = ?" for name in keys.split(", "))
        try:
            database.execute("PRAGMA foreign_keys = OFF")
            database.execute(f"UPDATE {table} SET {column} = {expression} WHERE {where}", [new, *key])
        except sqlite3.IntegrityError:
            return None
        return f"{table}.{column} of {key}: {value[:40] if isinstance(value, bytes) else value!r}"


@pytest.mark.parametrize("kind", ["rows", "pages"])
def test_damage_at_rest_is_an_error_or_changes_no_answer(tmp_path, image, small_chunks, kind):
    """`make chaos` tries hundreds; this one some dozens."""
    seed = random.SystemRandom().randrange(1 << 32) if MANY else 3
    print(f"seed {seed}")
    instants = random.Random(seed)
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(image, whole / "tensormeter.db")
    store = SqliteStore(whole, flush_interval=3600)
    digest = store.events(RunRef("long"), EventQuery(name="tensormeter.media"))[0].body["x"]["digest"]
    expected = answers(store, digest)
    assert {status for status, _ in expected.values()} == {200, 404}  # one run has no picture
    store.close()
    tried = 0
    for number in range(4000):
        if tried == (300 if MANY else 25):
            break
        folder = tmp_path / f"damaged-{number}"
        folder.mkdir()
        file = folder / "tensormeter.db"
        shutil.copy(image, file)
        what = "pages"
        if kind == "rows":
            what = damage_a_row(file, instants)
            if what is None:
                continue
        else:
            file.write_bytes(damage(image.read_bytes(), instants))
        tried += 1
        try:
            store = SqliteStore(folder, flush_interval=3600)
        except StoreError:
            continue
        try:
            store._start_check.wait()
            documents = answers(store, digest)
            wrong = differences(documents, expected, store.problem())
            assert not wrong, f"{number}: {what}: {store.problem()}: {str(wrong[0])[:1500]}"
        finally:
            store.close()
        shutil.rmtree(folder)


def test_a_damaged_chunk_is_left_out_of_charts_and_named(damaged_copy, small_chunks):
    folder = damaged_copy(
        f"UPDATE chunk SET t_max = t_max + 1 WHERE seq = 1 AND series IN {SERIES.format('long', 'epoch')}"
    )
    store = SqliteStore(folder, flush_interval=3600)
    app = create_app(store, ServerConfig())
    query = {"runs": ["long", "other"], "metrics": ["loss", "epoch"], "x": "time", "max_points": 2000}
    status, document = ask(app, "/api/v1/query", query)
    assert status == 200
    lines = [(series["run"], series["metric"], series["process"]) for series in document["series"]]
    assert lines == [
        ("long", "loss", "p0"),
        ("long", "loss", "p1"),
        ("other", "epoch", "p0"),
        ("other", "loss", "p0"),
        ("other", "loss", "p1"),
    ]
    (text,) = document["damaged"]
    assert "metric 'epoch' of run 'long'" in text
    status, document = ask(app, "/api/v1/runs/long/series?metric=epoch")
    assert (status, document["error"]["code"]) == (500, "store_damaged")
    assert "tensormeter check" in document["error"]["message"]
    assert ask(app, "/api/v1/runs/long/series?metric=loss")[0] == 200
    assert "metric 'epoch' of run 'long'" in ask(app, "/healthz")[1]["error"]["message"]
    store.close()


def test_a_damaged_run_is_left_out_of_lists_and_named(damaged_copy, small_chunks):
    store = SqliteStore(damaged_copy("UPDATE run SET notes = 'other' WHERE run_id = 'long'"), flush_interval=3600)
    app = create_app(store, ServerConfig())
    status, document = ask(app, "/api/v1/runs?sort=id")
    assert (status, [run["id"] for run in document["runs"]]) == (200, [JOURNAL, "other"])
    assert "'long'" in document["damaged"][0]
    store.close()


def test_damaged_log_lines_are_left_out_and_counted(damaged_copy, small_chunks):
    def of(text):
        return f"body = '{text}' AND run = (SELECT id FROM run WHERE run_id = 'long')"

    folder = damaged_copy(
        f"UPDATE log SET body = CAST(x'ff41' AS TEXT) WHERE {of('line 7')}",  # not UTF-8
        f"UPDATE log SET severity = 3 WHERE {of('line 8')}",
        f"UPDATE log SET process = 99 WHERE {of('line 39')}",
        "UPDATE log_usage SET lines = lines + 5",
    )
    store = SqliteStore(folder, flush_interval=3600)
    app = create_app(store, ServerConfig())
    bodies = [*(f"line {number}" for number in range(40) if number not in (7, 8, 39)), '{"a":1}']
    for first, step, place in (("", "older", "before"), ("&after=0-0", "newer", "after")):
        options, texts, damaged, pages = first, [], 0, 0
        while True:
            status, page = ask(app, f"/api/v1/runs/long/logs?limit=4{options}")
            assert (status, page["usage"]["lines"]) == (200, 41)
            found = [line["text"] for line in page["lines"]]
            texts = [*found, *texts] if step == "older" else [*texts, *found]
            damaged += page.get("damaged", 0)
            pages += 1
            if page[step] is None:
                break
            options = f"&{place}={page[step]}"
        assert (texts, damaged, pages) == (bodies, 3, 11)
    arrived = ask(app, "/api/v1/runs/long/logs?since=0")[1]
    assert ([line["text"] for line in arrived["lines"]], arrived["damaged"]) == (bodies, 3)
    assert "log line" in store.problem()
    assert ask(app, "/api/v1/runs/other/logs")[1].get("damaged") is None
    store.close()


def test_points_go_on_behind_a_damaged_chunk(damaged_copy, small_chunks):
    where = f"series IN {SERIES.format('long', 'loss')}"
    folder = damaged_copy(
        f"UPDATE chunk SET words = zeroblob(9) WHERE {where} AND seq = (SELECT max(seq) FROM chunk WHERE {where})"
    )
    store = SqliteStore(folder, flush_interval=3600)
    for first in (N, N + 1000):
        fresh = Gauge("fresh", times(first, 1000), np.ones(1000))
        send_metrics(store, "long", fresh, Gauge("loss", times(first, 1000), np.arange(1000) / 7))
        store.flush()
    assert store.pending_points() == 0
    assert "'loss' of run 'long'" in store.problem()
    ref = RunRef("long", "demo")
    assert len(store.read(ref, Selection(["fresh"])).series[0].points) == 2000
    (series,) = store.read(ref, Selection(["loss"], process="p0", start=T0 + N)).series
    assert series.points.values() == [*(np.arange(1000) / 7)] * 2
    with pytest.raises(StoreError, match="damaged"):
        store.read(ref, Selection(["loss"], process="p0"))
    store.close()
    assert check(folder).returncode == 1


def test_a_damaged_request_in_the_journal_does_not_keep_the_server_from_starting(damaged_copy, small_chunks, image):
    folder = damaged_copy("UPDATE journal SET payload = zeroblob(30) WHERE seq = (SELECT min(seq) + 1 FROM journal)")
    store = SqliteStore(folder, flush_interval=3600)
    assert "journal row" in store.problem()
    (series,) = store.read(RunRef(JOURNAL), Selection(["loss"])).series
    assert len(series.points) == 70
    store.flush()
    store.close()
    done = check(folder)
    assert (done.returncode, "damaged: damaged " in done.stdout) == (1, True)


def test_missing_requests_in_the_journal_are_said(damaged_copy, small_chunks):
    folder = damaged_copy("DELETE FROM journal WHERE seq = (SELECT min(seq) + 1 FROM journal)")
    store = SqliteStore(folder, flush_interval=3600)
    assert "missing" in store.problem()
    store.close()


def test_damage_of_a_row_is_kept_when_the_row_is_written(damaged_copy, small_chunks):
    folder = damaged_copy(
        f"UPDATE series SET last_word = last_word + 1 WHERE id IN {SERIES.format('long', 'epoch')}",
        "UPDATE run SET created = created - 1000 WHERE run_id = 'long'",
        "UPDATE summary SET total = 1e9 WHERE metric = 'epoch'",
    )
    store = SqliteStore(folder, flush_interval=3600)
    send_metrics(store, "long", Gauge("epoch", times(N, 10), np.ones(10)))
    store.flush()
    for call in (store.run, store.metrics):
        with pytest.raises(StoreError, match="damaged"):
            call(RunRef("long", "demo"))
    store.close()
    assert check(folder).stdout.count("the checksum does not match") >= 3


def test_retention_deletes_nothing_because_of_a_flipped_bit(damaged_copy, small_chunks):
    from tensormeter.server.store.sqlite.retention import Retention

    folder = damaged_copy(
        "UPDATE run SET updated = 1 WHERE run_id = 'long'", "UPDATE run SET deleted = 1 WHERE run_id = 'other'"
    )
    store = SqliteStore(folder, flush_interval=3600, retention=Retention(max_age=3600 * 24 * 365 * 200))
    store._work_in_background()
    store.close()
    with closing(open_read_only(folder / "tensormeter.db")) as connection:
        assert connection.execute("SELECT count(*) FROM run WHERE run_id IN ('long', 'other')").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM event").fetchone() == (10,)


def test_a_damaged_write_ahead_log_is_said_at_the_start(start, make):
    """SQLite drops what follows a damaged frame without a word."""
    server = start()
    log = server.folder / "tensormeter.db-wal"

    def send(first):
        for number in range(first, first + 30):
            server.metrics(make.rows("log", [(T0 + number, number, {"v": float(number)})]))

    send(0)
    server.kill()
    assert log.stat().st_size > 0
    server = start()
    assert server.get("/healthz") == {"status": "ok"}  # a kill leaves a log behind of which nothing is missing
    assert server.get("/api/v1/runs/log")["points"] == 60
    send(30)
    server.kill()
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    server = start()
    status, document = server.ask("/healthz")
    assert (status, "later transactions were committed" in document["error"]["message"]) == (503, True)
    assert (server.folder / "tensormeter.db-wal.damaged").read_bytes() == bytes(content)
    assert (server.folder / "tensormeter.db-wal.damaged").stat().st_mode & 0o777 == 0o600
    assert server.metrics(make.rows("log", [(T0 + 100, 100, {"v": 1.0})])).status == 200


def test_a_log_that_a_loss_of_power_has_left_is_no_damage(start, make):
    """The end of the log may have any contents: unsynced data is lost, and agents resend it."""
    server = start()
    log = server.folder / "tensormeter.db-wal"
    for number in range(30):
        server.metrics(make.rows("log", [(T0 + number, number, {"v": float(number)})]))
    server.kill()
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    os.utime(log, (1_000_000_000, 1_000_000_000))  # before the machine was started
    server = start()
    assert server.get("/healthz") == {"status": "ok"}
    assert "data that was not synced is lost" in server.stderr


def test_a_store_is_checked_when_it_is_opened(tmp_path, image, small_chunks):
    content = bytearray(image.read_bytes())
    with closing(sqlite3.connect(image)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event_by_run'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    content[(page - 1) * size + 3 : (page - 1) * size + 5] = bytes(2)  # the index has no entries any more
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "tensormeter.db").write_bytes(content)
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    store._start_check.wait()
    assert "SQLite's integrity check" in store.problem()
    with pytest.raises(StoreError, match="events may be missing"):
        store.events(RunRef("long"))
    store.close()


@pytest.mark.parametrize("statement", ["UPDATE media SET digest = 'f' || substr(digest, 2)", "DELETE FROM media"])
def test_an_image_that_an_event_names_and_that_is_gone_is_damage(damaged_copy, statement):
    digest = hashlib.sha256(PNG).hexdigest()
    store = SqliteStore(damaged_copy(f"{statement} WHERE run = (SELECT id FROM run WHERE run_id = 'long')"))
    with pytest.raises(DamagedError, match=f"media {digest} of run 'long' is missing, although an event refers to it"):
        store.media(RunRef("long"), digest)
    for other in ("0" * 64, "x", digest[1:], "%"):
        with pytest.raises(NotFoundError):
            store.media(RunRef("long"), other)
    with pytest.raises(NotFoundError):
        store.media(RunRef(JOURNAL), digest)
    assert store.media(RunRef("other"), digest) == ("image/png", PNG)
    store.close()
