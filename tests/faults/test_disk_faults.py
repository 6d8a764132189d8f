"""Disks that are read-only, cut off or changed: faults 23, 24, 25."""

import gzip
import os
import random
import shutil
import signal
import socket

import numpy as np
import pytest

from support.agents import agent_lives
from support.spools import take_requests
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolVersionError
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs
from tensormeter.exporter import Request
from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics


def test_fault_25_a_spool_that_cannot_be_opened_at_first_is_used_later(train, receiver, state, gone, oracle, wait_for):
    """Rows wait in the ring until the disk thinks better of it."""
    run = state / "runs" / f"faulty@{socket.gethostname()}"
    (run / "spool.sqlite").mkdir(parents=True)  # SQLite cannot open that
    trainer = train(
        "run = tensormeter.init('faults')\nlog(run, range(3000))\nready()\nrun.finish()\n", finish_timeout=300
    )
    trainer.ready()
    log = run / "agent.log"
    wait_for(lambda: log.exists() and "cannot open the spool" in log.read_text(), "the agent has tried")
    (run / "spool.sqlite").rmdir()
    trainer.go()
    trainer.finish()
    gone()
    oracle.agrees(receiver, range(3000))


def metrics(numbers):
    times = np.array(numbers, np.uint64)
    return gzip.compress(
        encode_metrics([Batch({"service.instance.id": "p"}, [Gauge("n", times, times.astype(float))])])
    )


@pytest.fixture
def written(tmp_path):
    """A spool's files after each of 12 puts, with the bodies in order: what a disk may have of it."""
    folder = tmp_path / "written"
    folder.mkdir()
    spool = Spool(folder / "spool.sqlite")
    bodies = [os.urandom(random.Random(k).randrange(10, 6000)) for k in range(12)]
    for number, body in enumerate(bodies):
        spool.put([Encoded("metrics", body, 1)], ["a"], "p", {0: Cursor(8 * number + 8, 1)}, started=True, ended=False)
        if number == 5:
            spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # half is in the database, half in the log
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    spool.close()
    return files, bodies


def recover(folder, files):
    """Open what is there of a spool. Returns the bodies in it, its cursor, and what it says is lost."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    spool = open_repaired(folder / "spool.sqlite", ["a"])
    try:
        bodies = [request.body for request in take_requests(spool)]
        spool.put([Encoded("metrics", b"fresh", 1)], ["a"], "p", {}, started=True, ended=False)
        assert spool.next("a")[1].body == b"fresh", "it works again"
        return bodies, spool.cursor("p", 0).position // 8, spool.losses()
    finally:
        spool.close()


def places(size, whole):
    """All of them by command, and some of them else: every byte of the first pages, and then here and there."""
    step = 1 if os.environ.get("CHAOS_KILLS") else max(1, whole // 150)
    return sorted({*range(min(size, 40)), *range(0, size, step), size - 1})


def test_fault_23_a_spool_truncated_at_any_byte_sends_only_whole_requests(written, tmp_path):
    files, bodies = written
    log = files["spool.sqlite-wal"]
    for size in places(len(log), len(log)):
        sent, cursor, lost = recover(tmp_path / "cut", files | {"spool.sqlite-wal": log[:size]})
        assert sent == bodies[: len(sent)], f"log cut at {size}: a beginning, nothing else"
        assert 6 <= len(sent) == cursor, f"log cut at {size}: rows and cursor are of one transaction"
        assert lost == {}
    main = files["spool.sqlite"]
    for size in places(len(main), len(main)):
        sent, _, lost = recover(tmp_path / "cut", {"spool.sqlite": main[:size]})
        assert set(sent) <= set(bodies)
        assert sent == sorted(sent, key=bodies.index)
        # Below 100 bytes there is no header, and nothing that says that there ever was something.
        assert len(sent) == 6 or lost or size < 100, f"database cut at {size}: what is lost is counted"


def test_fault_24_requests_with_flipped_bits_are_never_sent(written, tmp_path, instants):
    files, bodies = written
    recovered = 0
    rounds = 60 * (10 if os.environ.get("CHAOS_KILLS") else 1)
    for _ in range(rounds):
        name = instants.choice(sorted(files))
        content = bytearray(files[name])
        for _ in range(instants.randrange(1, 4)):
            content[instants.randrange(len(content))] ^= 1 << instants.randrange(8)
        sent, _, _ = recover(tmp_path / "flipped", files | {name: bytes(content)})
        assert set(sent) <= set(bodies), "damaged requests are never sent"
        assert len(set(sent)) == len(sent)
        recovered += len(sent)
    assert recovered > rounds * 12 / 2, "most of it can be read"


@pytest.fixture
def full(tmp_path):
    """A spool with something in every table: its file, and the bodies in it."""
    path = tmp_path / "full.sqlite"
    spool = Spool(path)
    bodies = set()
    noise = random.Random(1).randbytes

    def put(*requests):
        bodies.update(request.body for request in requests)
        states = {"m{}": '{"total": 5}', "n": '{"x": [1, 2]}'}
        cursors = {0: Cursor(8 * len(bodies), 5)}
        spool.put(requests, ["a", "b:second"], "p", cursors, started=True, ended=False, aggregates=states)

    for number in range(14):
        put(Encoded("metrics", metrics(range(1 + 100 * number, 101 + 100 * number)), 100))
        if number % 3 == 0:
            put(Encoded("metrics", noise(200 + 50 * number), 7, Priority.SYSTEM))
        if number % 5 == 0:
            put(Encoded("logs", noise(6000), 3, Priority.MEDIA), Encoded("logs", noise(50), 1))
    for sequence in (2, 5, 7):
        spool.quarantine("a", sequence, "refused")
    spool.quarantine_part("b:second", Request("part", "metrics", b"part" * 50, 4), "too large")
    spool.done("a", 1)
    spool.done("b:second", 1, refused=3)
    spool.close()
    return path.read_bytes(), bodies


def deliver_all(path, damage, *, room):
    """Do with a spool as an agent does, and `tensormeter spool show`. Returns the bodies that were sent."""
    sent = []
    spool = open_repaired(path, ["a", "b:second"], max_bytes=room, damage=damage)
    try:
        spool.contents(), spool.rejections()
        assert all(0 <= items < 1 << 40 for items in spool.losses().values())
        assert all(isinstance(state, str) for state in spool.aggregates("p").values())
        spool.put([Encoded("metrics", b"fresh", 1)], ["a", "b:second"], "p", {}, started=True, ended=False)
        for destination in ("a", "b:second"):
            requests = list(take_requests(spool, destination))
            sent += [request.body for request in requests]
            assert len({request.id for request in requests}) == len(requests), "once"
        assert spool.pending() == 0 or spool.abandoned(["a", "b:second"]), (
            "the rest waits for a destination that does not exist"
        )
    finally:
        spool.close()
    return sent


def test_fault_24_an_agent_survives_any_flipped_bit(full, tmp_path, instants):
    """Damage is repaired when it is seen: at once, or by the one who comes upon it."""
    content, bodies = full
    path = tmp_path / "flipped.sqlite"
    for _ in range(2000 if os.environ.get("CHAOS_KILLS") else 40):
        flipped = bytearray(content)
        if instants.random() < 0.5:
            for _ in range(instants.randrange(1, 4)):
                flipped[instants.randrange(len(flipped))] ^= 1 << instants.randrange(8)
        else:  # where a page says what is in it, or a whole stretch
            start = 4096 * instants.randrange(len(flipped) // 4096) + instants.randrange(200)
            size = instants.choice([1, 4, 100, 4096])
            flipped[start : start + size] = instants.randbytes(len(flipped[start : start + size]))
        for file in tmp_path.glob("flipped.sqlite*"):
            file.unlink()
        path.write_bytes(flipped)
        room = instants.choice([None, 70_000])
        damage = ""
        for _ in range(4):  # as often as an agent repairs
            try:
                sent = deliver_all(path, damage, room=room)
                break
            except SpoolDamagedError as error:
                damage = str(error)
        else:
            raise AssertionError(f"damaged for good: {damage}")
        if room is None:
            assert set(sent) <= bodies | {b"fresh"}, "damaged requests are never sent"


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (18, b"\x0a\x0a"),  # SQLite does not open a file of a future format
        (18, b"\x0a"),  # or for reading only
        (44, b"\x00\x00\x00\x09"),  # nor does it open one whose schema is of such a format
        (60, b"\x00\x65\x00\x02"),  # a version of ours that never was
        (60, b"\x00\x00\x00\x00"),  # a new database that is not empty
    ],
)
def test_fault_24_a_damaged_header_is_repaired(full, tmp_path, offset, content):
    whole, bodies = full
    path = tmp_path / "flipped.sqlite"
    path.write_bytes(whole[:offset] + content + whole[offset + len(content) :])
    sent = deliver_all(path, "", room=None)
    assert len(set(sent)) == len(bodies), "all but the one that was done, and a fresh one"


def test_fault_24_damaged_tables_are_repaired(full, tmp_path):
    """A letter of a table's definition, which SQLite does not look at before it is used."""
    whole, bodies = full
    path = tmp_path / "flipped.sqlite"
    path.write_bytes(whole.replace(b"REFERENCES request (sequence)", b"REFERENCES request (sequencf)"))
    assert len(set(deliver_all(path, "", room=None))) == len(bodies)


def test_fault_24_a_spool_of_another_version_is_left_alone(tmp_path):
    path = tmp_path / "spool.sqlite"
    spool = Spool(path)
    spool._database.execute("PRAGMA user_version = 4")
    spool._database.execute(f"PRAGMA application_id = {0x746D7304}")
    spool.close()
    with pytest.raises(SpoolVersionError, match="version 4"):
        open_repaired(path, ["a"])
    assert [file.name for file in tmp_path.iterdir()] == ["spool.sqlite"]


@pytest.mark.parametrize(
    "damage",
    [f"body = CAST('{'2' * 99}3' AS BLOB)", "id = CAST(x'37ff' AS TEXT)"],
    ids=["body", "an id that is no text"],
)
def test_fault_24_a_damaged_record_is_skipped_and_counted(spool, damage):
    for body in (b"1" * 100, b"2" * 100, b"3" * 100):
        spool.put([Encoded("metrics", body, 5)], ["a"], "p", {}, started=True, ended=False)
    spool._database.execute(f"UPDATE request SET {damage} WHERE sequence = 2")
    assert [request.body[:1] for request in take_requests(spool)] == [b"1", b"3"]
    assert spool.losses() == {"damaged": 5}


def test_fault_24_an_agent_repairs_the_spool_that_it_finds(train, receiver, state, gone, wait_for):
    receiver.stop()
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish()\n", mode="offline")
    trainer.finish()
    (run,) = list_runs(state)

    wait_for(lambda: not agent_lives(run), "the agent ends")
    with run.spool.open("r+b") as file:
        file.write(b"no database")
    receiver.start()
    (result,) = sync_runs(state)
    assert result.delivered, result.message
    assert set(receiver.rows().values()) == {1}
    assert len(receiver.rows()) == 2000
    gone()


@pytest.mark.parametrize("how", ["missing", "read-only"])
def test_fault_25_a_folder_that_cannot_be_used(mount, train, receiver, state, oracle, tmp_path, wait_for, how):
    """The run is kept in memory, and delivered."""
    if how == "missing":
        (tmp_path / "file").touch()
        place = tmp_path / "file" / "state"
    else:
        place = tmp_path / "readonly"
        mount(place, "ro")
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish()\n", dir=place)
    errors = trainer.finish()
    assert errors.count("is kept in memory") == 1
    oracle.agrees(receiver, range(2000))
    runs = tmp_path / "rings" / f"tensormeter-{os.getuid()}" / "state" / "runs"
    wait_for(lambda: not list(runs.glob("[!.]*@*")), "nothing is left")


@pytest.mark.parametrize("what", ["the folder", "the spool"])
def test_fault_25_a_folder_that_is_deleted_under_a_run(train, receiver, state, oracle, gone, wait_for, what):
    receiver.stop()
    trainer = train(
        "run = tensormeter.init('faults')\nlog(run, range(1000))\nready()\nlog(run, range(1000, 2000))\nrun.finish()\n",
        finish_timeout=300,
    )
    trainer.ready()
    (run,) = list_runs(state)
    spool = Spool(run.spool)
    wait_for(lambda: spool.cursor(run.ring_files()[0].stem, 0).position > 0, "rows are in the spool")
    spool.close()
    wait_for(run.agent_pid, "an agent")
    if what == "the spool":
        run.spool.unlink()
    else:
        shutil.rmtree(state / "runs", ignore_errors=True)
    wait_for(run.spool.exists, "it is there again")
    receiver.start()
    trainer.go()
    wait_for(run.agent_pid, "an agent")
    os.kill(run.agent_pid(), signal.SIGUSR1)
    trainer.finish()
    gone()
    oracle.agrees(receiver, range(2000))


def test_a_full_spool_evicts_the_least_important_requests(tmp_path):
    """System metrics, then media, then every second row; configuration and last values never."""
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=150_000)
    config = gzip.compress(encode_events({}, [Event("tensormeter.run.start", 1, {"config": {"lr": 0.5}})]))
    spool.put([Encoded("logs", config, 1)], ["a"], "p", {}, started=True, ended=False)
    noise = random.Random(1).randbytes
    spool.put([Encoded("metrics", noise(20_000), 7, Priority.SYSTEM)], ["a"], "p", {}, started=True, ended=False)
    spool.put([Encoded("logs", noise(50_000), 3, Priority.MEDIA)], ["a"], "p", {}, started=True, ended=False)
    put = 0
    stages = []
    for start in range(1, 60_001, 1000):
        spool.put(
            [Encoded("metrics", metrics(range(start, start + 1000)), 1000)], ["a"], "p", {}, started=True, ended=False
        )
        put += 1000
        assert spool.used_bytes() <= 150_000
        if list(spool.losses()) != stages:
            stages = list(spool.losses())
    assert spool.losses()["spool_full_system"] == 7
    assert spool.losses()["spool_full_media"] == 3
    left, events = [], []
    for request in take_requests(spool):
        body = gzip.decompress(request.body)
        if request.signal == "logs":
            events += [event.body for _, some in decode_events(body) for event in some]
        else:
            (batch,) = decode_metrics(body)
            left += [value for gauge in batch.gauges for value in gauge.values.tolist()]
    assert events == [{"config": {"lr": 0.5}}]
    assert len(left) + spool.losses()["spool_full_scalars"] == put
    assert len(set(left)) == len(left)
    assert max(left) == 60_000, "the last value"
    gaps = np.diff(np.sort(left))
    assert gaps.max() <= 1000, "the history is thinned, not cut off"
    spool.close()


def test_a_spool_smaller_than_its_final_values_keeps_them(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=70_000)
    for start in range(1, 2001, 20):
        gauges = [Gauge(f"m{k}", np.array([start + k], np.uint64), np.array([float(start)])) for k in range(400)]
        body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, gauges)]))
        spool.put([Encoded("metrics", body, 400)], ["a"], "p", {}, started=True, ended=False)
    last = {}
    for request in take_requests(spool):
        for batch in decode_metrics(gzip.decompress(request.body)):
            for gauge in batch.gauges:
                last[gauge.name] = gauge.values[-1]
    assert last == {f"m{k}": 1981.0 for k in range(400)}
    spool.close()
