"""Damaged spools: losses are counted, reported to the receiver, and printed by `sync`; a run is never hidden."""

import gzip
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from support.agents import agent_lives, agents_of, kill_agents
from support.processes import run_python
from tensormeter.agent.run_directory.directory import find_runs, list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import SyncResult, sync_runs
from tensormeter.otlp.decode import decode_events

ROWS = 1500
OFFLINE = f"run = tensormeter.init('damage')\nlog(run, range({ROWS}))\nrun.finish()\n"
KILLED = f"""
run = tensormeter.init('damage')
log(run, range({ROWS}))
ready()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def waiting(train, state, receiver, wait_for):
    """A run that waits, with several requests. Returns its folder."""
    receiver.stop()
    trainer = train(OFFLINE, mode="offline", max_export_batch_size=300)
    trainer.finish()
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run) and not agents_of(state), "the agent ends")
    return run.path


@pytest.fixture
def killed(train, state, tmp_path, receiver, wait_for):
    """A run whose trainer and agent were killed at once: its folder, with rings, and SQLite's log as it was."""
    receiver.stop()
    trainer = train(KILLED, mode="offline", max_export_batch_size=300)
    trainer.ready()
    (run,) = list_runs(state)
    with closing(Spool(run.spool)) as spool:
        wait_for(lambda: spool.pending() > 5 and run.agent_pid(), "rows are in the spool")
        kill_agents(state)
        wait_for(lambda: not agent_lives(run), "the agent is gone")
        files = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}  # closing tidies up
    trainer.go()
    trainer.end()
    for path, content in files.items():
        path.write_bytes(content)
    return run.path


def only(state, **options):
    """Deliver, and what became of the only run."""
    (result,) = sync_runs(state, **options)
    assert isinstance(result, SyncResult), result
    return result


def reported_losses(receiver):
    """The losses that the receiver knows: the sum of the last reports of all processes."""
    last = {}
    for request in receiver.accepted().values():
        if request.path == "/v1/logs":
            for process, body in events(request.body):
                if "dropped" in body:
                    last[process] = body["dropped"]
    return sum(sum(counts.values()) for counts in last.values())


def events(body):
    for resource, some in decode_events(gzip.decompress(body)):
        yield from ((resource["service.instance.id"], event.body) for event in some)


def flip_in_a_body(path):
    """One bit in the middle of the largest request. Returns how many points that had."""
    with closing(sqlite3.connect(path)) as database:
        body, items = database.execute("SELECT body, items FROM request ORDER BY length(body) DESC LIMIT 1").fetchone()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[content.find(body[500:540]) + 20] ^= 1
    path.write_bytes(content)
    return items


def test_fault_95_a_damaged_request_is_counted_reported_and_kept(waiting, state, receiver, environment):
    items = flip_in_a_body(waiting / "spool.sqlite")
    receiver.start()
    sync = [sys.executable, "-m", "tensormeter", "sync"]
    first = subprocess.run(sync, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (first.returncode, f"delivered, but {items:,} points were lost: damaged {items:,}" in first.stdout) == (
        1,
        True,
    )
    assert "tensormeter spool purge faulty@" in first.stdout
    assert ROWS - len(receiver.rows()) == items / 3, "a row has a step and two values"
    assert reported_losses(receiver) == items
    assert "does not match its checksum" in first.stderr
    again = subprocess.run(sync, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (again.returncode, "as reported before" in again.stdout) == (0, True), again.stdout
    assert waiting.exists()
    purge = [sys.executable, "-m", "tensormeter", "spool", "purge", "faulty", "--yes"]
    assert subprocess.run(purge, env=environment, timeout=300, check=False).returncode == 0
    assert not waiting.exists()


def test_fault_96_a_truncated_spool_is_kept_and_missing_requests_are_reported(waiting, state, receiver):
    path = waiting / "spool.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    receiver.start()
    result = only(state)
    missing = ROWS - len(receiver.rows())
    assert missing
    assert result.leftover.unreported["damaged"] > 0
    assert not result.is_complete
    assert reported_losses(receiver) == result.leftover.losses["damaged"]
    assert list(waiting.glob("spool.sqlite.damaged-*"))
    assert receiver.events()[-1][0] == "tensormeter.run.heartbeat", "after the run's end"


def test_fault_102_a_server_shows_what_was_lost_after_the_run_ended(waiting, state, server):
    """On a real server: the run keeps its state, and its losses are those that `sync` has found."""
    items = flip_in_a_body(waiting / "spool.sqlite")
    server.start()
    only(state, endpoint=server.url)
    run = server.get("/runs/faulty")
    assert (run["state"], run["lost"], run["losses"]) == ("finished", items, {"damaged": items})


def test_losses_are_reported_to_every_destination(waiting, state, receiver, another_receiver):
    """Each of them, once, however often it is delivered to."""
    with closing(Spool(waiting / "spool.sqlite")) as spool:
        spool.count_loss("refused", 4)
    receiver.start()
    document = json.loads((waiting / "run.json").read_text())
    document["settings"] |= {
        "exporters": ["experiment", "otlp"],
        "exporter_options": {"otlp.endpoint": another_receiver.url},
    }
    document.pop("checksum")
    (waiting / "run.json").write_text(json.dumps(document))
    assert only(state).leftover.unreported == {"refused": 4}
    for destination in (receiver, another_receiver):
        bodies = [
            body for request in destination.received if request.path == "/v1/logs" for _, body in events(request.body)
        ]
        assert [body["dropped"] for body in bodies if body.get("state") == "ended"] == [{"refused": 4}]


@pytest.mark.parametrize("table", ["pending", "cursor", "process", "loss", "report"])
def test_fault_97_a_changed_row_of_a_small_table_is_found(waiting, state, receiver, table):
    """Nothing of what is intact is lost by it."""
    with closing(Spool(waiting / "spool.sqlite")) as spool:
        spool.count_loss("refused", 4)
    with closing(sqlite3.connect(waiting / "spool.sqlite", isolation_level=None)) as database:
        column = {"pending": "destination", "loss": "items"}.get(table, "checksum")
        value = "'experimenu'" if column == "destination" else f"{column} + 1"
        (key,) = database.execute(f"SELECT min({column}) FROM {table}").fetchone()
        database.execute(
            f"UPDATE {table} SET {column} = {value} WHERE {column} = ? "
            + ("AND sequence = (SELECT min(sequence) FROM pending)" if table == "pending" else ""),
            (key,),
        )
    receiver.start()
    result = only(state)
    assert result.delivered, result.message
    assert len(receiver.rows()) == ROWS
    if table == "loss":
        assert result.leftover.losses == {"damaged": 1}, "that something was lost is not forgotten"
        assert reported_losses(receiver) == 1


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_fault_98_a_damaged_log_of_sqlite_is_counted(killed, state, receiver, how):
    """SQLite silently drops everything behind the first damaged frame."""
    log = killed / "spool.sqlite-wal"
    content = bytearray(log.read_bytes())
    if how == "gone":
        log.unlink()
    else:
        content[len(content) // 3] ^= 1
        log.write_bytes(content[: len(content) // 3] if how == "cut" else content)
    receiver.start()
    result = only(state)
    assert len(receiver.rows()) < ROWS
    assert result.leftover.unreported["damaged"] > 0
    assert reported_losses(receiver) > 0


def test_a_killed_run_that_is_intact_loses_nothing(killed, state, receiver):
    receiver.start()
    result = only(state)
    assert result.is_complete, result.outcome
    assert len(receiver.rows()) == ROWS
    assert not killed.exists()


def test_fault_99_a_ring_that_is_damaged_is_kept_and_counted(killed, state, receiver, tmp_path):
    (ring,) = (tmp_path / "rings").rglob("*.ring")
    ring.write_bytes(b"x" * 100)
    receiver.start()
    result = only(state)
    assert result.leftover.unreported["damaged"] >= 1
    assert "points were lost" in result.outcome
    assert [path.name for path in result.leftover.damaged] == [f"{ring.name}.damaged"]
    assert reported_losses(receiver) >= 1


DESCRIPTIONS = {
    "missing": None,
    "empty": b"",
    "cut": lambda text: text[:100],
    "zeros": lambda text: bytes(len(text)),
    "noise": b"\xff\xfe{",
    "of another kind": b"[1, 2]",
    "deep": b"[" * 200_000,
    "changed": lambda text: text.replace(b"experiment", b"experimenu"),
    "an invalid project": lambda text: text.replace(b'"project": "damage"', b'"project": "`amage"'),
    "an invalid choice": lambda text: text.replace(b'"cumulative"', b'"cumulatiwe"'),
    "an invalid id": lambda text: text.replace(b'"run_id": "faulty"', b'"run_id": "`aulty"'),
}


@pytest.mark.parametrize("how", DESCRIPTIONS)
def test_fault_100_a_damaged_description_hides_no_run(waiting, state, receiver, environment, how):
    path = waiting / "run.json"
    content = DESCRIPTIONS[how]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))
    (run,) = list_runs(state)
    assert (run.run["run_id"], run.doubt) == ("faulty", run.damage)
    ((_, reason),) = find_runs(state, foreign=False)[1]  # as `serve` looks
    assert reason == f"{run.damage}; `tensormeter sync` delivers it"
    listed = run_python("-m", "tensormeter", "spool", "ls", environment=environment)
    assert "run.json" in listed.stdout
    receiver.start()
    done = run_python("-m", "tensormeter", "sync", environment=environment, check=True)
    assert "faulty@" in done.stdout
    assert len(receiver.rows()) == ROWS
    assert list_runs(state) == []


def test_losses_are_reported_for_the_right_run_without_its_description(waiting, state, server, environment):
    """The spool knows the process that reports them."""
    (waiting / "run.json").unlink()
    items = flip_in_a_body(waiting / "spool.sqlite")
    server.start()
    only(state, endpoint=server.url)
    run = server.get("/runs/faulty")
    assert (run["project"], run["lost"]) == ("damage", items)


def test_a_folder_that_cannot_be_told_from_others_is_named(waiting, state):
    renamed = waiting.with_name("no name of a run")
    waiting.rename(renamed)
    (renamed / "run.json").write_text("{")
    runs, refused = find_runs(state)
    assert runs == []
    assert [(path, "rename the folder" in reason) for path, reason in refused] == [(renamed, True)]


@pytest.mark.parametrize(
    "name", ["../.lock", "agent.lock", "spool.sqlite-shm", "spool.sqlite-wal", "spool.sqlite-journal"]
)
def test_a_folder_in_place_of_a_file_is_named(waiting, receiver, environment, name):
    """One line gives the remedy. After it, everything is delivered."""
    place = waiting / name
    if place.exists():
        place.unlink()
    place.mkdir()
    receiver.start()
    sync = [sys.executable, "-m", "tensormeter", "sync"]
    done = subprocess.run(sync, env=environment, capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert f"{place.name} is a folder, but must be a regular file; remove it" in done.stdout, output
    assert "Traceback" not in output
    place.rmdir()
    again = subprocess.run(sync, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(receiver.rows()) == ROWS


def test_a_link_in_place_of_the_spool_is_counted(waiting, state, receiver, tmp_path):
    """The file is gone, and the target of the link stays as it is."""
    other = tmp_path / "other"
    other.write_bytes(b"something else " * 50)
    (waiting / "spool.sqlite").unlink()
    (waiting / "spool.sqlite").symlink_to(other)
    receiver.start()
    result = only(state)
    assert (result.delivered, result.is_complete, result.leftover.unreported) == (True, False, {"damaged": 1})
    assert reported_losses(receiver) == 1
    assert other.read_bytes() == b"something else " * 50


def damage_something(folder, chance, *, deletes):
    """Damage one file of a run's folder, or delete it. Returns what was done."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".ring", ".lock"))
    path = chance.choice([*names, *[name for name in names if name.name.startswith("spool.sqlite")] * 3])
    content = bytearray(path.read_bytes())
    size = len(content)
    at = chance.randrange(max(size, 1))
    how = chance.choice(["bits", "bits", "zeros", "noise", "cut", "hole", "foreign", *(["gone"] if deletes else [])])
    match how:
        case "bits":
            for _ in range(chance.randrange(1, 4)):
                if size:
                    content[chance.randrange(size)] ^= 1 << chance.randrange(8)
        case "zeros" | "noise":
            stretch = len(content[at : at + chance.choice([1, 16, 512, 4096, 20_000])])
            content[at : at + stretch] = bytes(stretch) if how == "zeros" else chance.randbytes(stretch)
        case "cut":
            del content[at:]
        case "hole":
            start = at // 4096 * 4096
            content[start : start + 4096] = bytes(len(content[start : start + 4096]))
        case "foreign":
            content[:] = b"something else " * 50
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{how} at {at} of {size} bytes in {path.name}"


def several(rounds):
    """As many as `make chaos` wants, or a few."""
    return rounds if "CHAOS_KILLS" in os.environ else 12


@pytest.mark.parametrize("kind", ["waiting", "killed"])
def test_fault_101_random_damage_loses_nothing_in_silence(request, kind, state, tmp_path, receiver, wait_for, instants):
    """200 times in `make chaos`, half of them each: what arrives is what was recorded, and what does not is counted and said."""
    folder = request.getfixturevalue(kind)
    saved = {place: tmp_path / f"saved-{place.name}" for place in (state, tmp_path / "rings")}
    for place, copy in saved.items():
        if place.exists():
            shutil.copytree(place, copy, ignore=shutil.ignore_patterns("agent.wake"))  # a pipe
    request.getfixturevalue("monkeypatch").setenv("TENSORMETER_BUFFER_DIR", str(tmp_path / "rings"))
    expected = {step: (("loss", step / 7), ("n", float(step))) for step in range(ROWS)}
    silent = 0
    for _ in range(several(100)):
        for place, copy in saved.items():
            shutil.rmtree(place, ignore_errors=True)
            if copy.exists():
                shutil.copytree(copy, place)
        chance = random.Random(instants.randrange(1 << 32))
        # One file is deleted at most: without the spool and the files next to it, nothing shows that there was one.
        what = [damage_something(folder, chance, deletes=number == 0) for number in range(chance.randrange(1, 3))]
        receiver.received.clear()
        receiver.start()
        results = list(sync_runs(state, endpoint=receiver.url))
        receiver.stop()
        rows = receiver.rows()
        values = dict(rows)
        assert set(values.values()) <= {1}, (what, "nothing twice")
        wrong = [row for row in rows if dict([row]) and expected.get(row[0]) != row[1]]
        assert not wrong, (what, wrong[:3])
        missing = ROWS - len(rows)
        silent += not missing
        if missing:
            assert results, (what, "the run is hidden")
            outcomes = [
                result.outcome for result in results if isinstance(result, SyncResult) and not result.is_complete
            ]
            refused = [result for result in results if not isinstance(result, SyncResult)]
            assert outcomes or refused, (what, missing, results)
            assert all("lost" in line or "not delivered" in line for line in outcomes), (what, outcomes)
            delivered = [result for result in results if isinstance(result, SyncResult) and result.delivered]
            if delivered and receiver.received:
                assert reported_losses(receiver) > 0, (what, missing, outcomes)
    assert silent, "some damage does no harm"
