"""Disks that others fill, or we: fault 21."""

import contextlib
import gzip
import itertools
import os
import resource
import shutil
import signal
from contextlib import closing

import numpy as np
import pytest

from support.spools import take_requests
from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.errors import SpoolFullError
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord


def test_fault_21_training_goes_on_while_the_disk_is_full(mount, train, receiver, state, gone, wait_for):
    """The disk is full while the receiver is away: training goes on, one warning, and what is missing is counted."""
    mount(state, "size=3m")
    receiver.stop()
    trainer = train(
        "run = tensormeter.init('faults')\nready()\nlog(run, range(150_000))\nready()\nrun.finish()\n",
        finish_timeout=300,
        durability="none",
        buffer_bytes=4 << 20,
    )
    trainer.ready()
    (run,) = list_runs(state)
    ballast = state / "ballast"
    with ballast.open("wb") as file:  # all that is left, but for a little
        file.write(bytes(max(0, shutil.disk_usage(state).free - (600 << 10))))
    trainer.go()
    trainer.ready()
    assert trainer.returned == 150_000
    (ring,) = [RingFile.open(path) for path in run.ring_files()]
    log = run.agent_log
    ballast.unlink()
    receiver.start()
    wait_for(run.agent_pid, "an agent")
    trainer.go()

    def woken():
        if run.agent_pid():
            os.kill(run.agent_pid(), signal.SIGUSR1)
        return ring.words[HeaderWord.ENDED] and ring.words[HeaderWord.PENDING_REQUESTS] == 0

    wait_for(woken, "everything is delivered")
    assert (log.read_text() if log.exists() else "").count("cannot write to the spool") <= 3
    errors = trainer.finish()
    gone()
    (end,) = [body for name, body in receiver.events() if name == "tensormeter.run.end"]
    dropped = end["dropped"]
    ring_full, spool_full = dropped.pop("ring_full", 0), dropped.pop("spool_full_scalars", 0)
    assert dropped == {}
    assert ring_full or spool_full, "the disk was not full: make it smaller"
    # A row has two values, and its step.
    assert sum(receiver.points().values()) + spool_full + 3 * ring_full // 2 == 3 * 150_000
    assert set(receiver.points().values()) == {1}
    assert any(f"{count:,} points: " in errors for count in (ring_full, spool_full))


def fill_spool(spool, sizes):
    """Requests that compression does nothing for."""
    for number, size in enumerate(sizes, 1):
        cursors = {0: Cursor(number, number)}
        spool.put([Encoded("metrics", os.urandom(size), 1)], ["there"], "p", cursors, started=True, ended=False)


def deliver(spool):
    """Mark everything as delivered; returns how many requests that were."""
    return len(list(take_requests(spool, "there")))


def fill_disk(folder):
    """To the last byte."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


@pytest.mark.parametrize("when", ["at once", "when the log is empty", "after the next start"])
@pytest.mark.parametrize("sizes", [[100] * 40, [8_000] * 60, [60_000] * 10, [5_000] * 100], ids=lambda sizes: sizes[0])
def test_fault_21_there_is_room_for_marking_all_that_waits_in_the_log(mount, state, sizes, when):
    """Others fill the disk: what is kept is enough for SQLite's log, which goes into the database first."""
    mount(state, "size=12m")
    path = state / "spool.db"
    log = state / "spool.db-wal"
    with closing(Spool(path)) as spool:
        fill_spool(spool, sizes)
        assert path.stat().st_size < log.stat().st_size, "nothing was carried over yet"
        assert spool.keep_room()
        if when == "when the log is empty":
            spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert log.stat().st_size == 0
        if when != "after the next start":
            fill_disk(state)
            assert deliver(spool) == len(sizes)
    if when == "after the next start":  # SQLite cannot even open a database on a full disk
        fill_disk(state)
        with closing(Spool(path)) as spool:
            assert deliver(spool) == len(sizes)


@pytest.mark.parametrize("size", [100, 4_000, 30_000, 100_000])
@pytest.mark.parametrize("disk", ["2m", "5m"])
def test_fault_21_we_leave_room_for_marking_ourselves(mount, state, disk, size):
    """The requests themselves fill the disk, up to the room that marking needs; and again when there is room."""
    mount(state, f"size={disk}")
    path = state / "spool.db"
    with closing(Spool(path)) as spool:

        def sizes(given):
            while True:
                spool.keep_room()
                given.append(size)
                yield size

        for _ in range(3):
            given = []
            with pytest.raises(SpoolFullError):
                fill_spool(spool, sizes(given))
            assert sum(given) > shutil.disk_usage(state).total / (20 if size == 100 else 3)
            assert deliver(spool) == len(given) - 1


@pytest.mark.parametrize("answer", ["halved", "rejected"])
def test_fault_21_requests_are_divided_on_a_full_disk(mount, state, answer):
    """The disk has no room for how they are divided, so the agent remembers it and goes on."""
    mount(state, "size=4m")
    with closing(Spool(state / "spool.db")) as spool:
        for number in range(3):
            steps = np.arange(number * 400, number * 400 + 400)
            times = (steps + 1).astype(np.uint64)
            gauges = [Gauge(STEP_METRIC, times, steps), Gauge("a", times, steps * 0.37), Gauge("b", times, steps * 1.0)]
            body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, gauges)]))
            spool.put([Encoded("metrics", body, 1200)], ["jsonl"], "p", {}, started=True, ended=False)
        assert spool.keep_room()
        fill_disk(state)
        pieces = RequestPieces("jsonl")
        accepted = []
        while (request := pieces.next(spool)) is not None:
            series = [each for batch in decode_metrics(gzip.decompress(request.body)) for each in batch.series]
            if answer == "halved" and request.items > 30:
                pieces.halved(spool, "too large")
            elif answer == "rejected" and "b" in {each.name for each in series}:
                pieces.rejected(spool, "no b", divide=True)
            else:
                accepted += [time for each in series if each.name == "a" for time in each.times.tolist()]
                pieces.accepted(spool, 0)
        assert accepted == list(range(1, 1201))
        assert spool.pending() == 0


def test_fault_21_a_quota_is_a_full_disk(tmp_path):
    """A file that may not grow: SQLite calls it an error of input and output, and not a full disk."""
    path, log = tmp_path / "spool.db", tmp_path / "spool.db-wal"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Spool(path)) as spool:
        fill_spool(spool, [8_000] * 20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
        try:
            with pytest.raises(SpoolFullError):
                fill_spool(spool, [200])
            assert deliver(spool) == 20
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_fault_21_deliveries_are_marked_on_a_full_disk(mount, train, receiver, state, gone, oracle, wait_for):
    """Others have filled the disk to the last byte: room that was kept for it takes the news that requests are delivered, and
    what comes then goes through it.
    """
    mount(state, "size=6m")
    receiver.stop()
    trainer = train(
        "run = tensormeter.init('faults')\nlog(run, range(20_000))\nready()\n"
        "log(run, range(20_000, 40_000))\nready()\nrun.finish()\n",
        finish_timeout=300,
        max_export_batch_size=500,
        buffer_bytes=8 << 20,
    )
    trainer.ready()
    (run,) = list_runs(state)
    reserve = run.path / "reserve"
    ring = RingFile.open(run.ring_files()[0])
    spool = Spool(run.spool)
    wait_for(lambda: spool.pending_items() >= 3 * 20_000, "all rows are in the spool")
    spool.close()
    wait_for(lambda: reserve.exists() and reserve.stat().st_size, "room is kept")
    fill_disk(state)
    receiver.start()

    looks = itertools.count()

    def woken():
        # Once a second: an agent that is woken all the time may come to nothing on a busy machine.
        if next(looks) % 100 == 0 and (agent := run.agent_pid()) is not None:
            os.kill(agent, signal.SIGUSR1)
        return ring.words[HeaderWord.PENDING_REQUESTS] == 0

    wait_for(woken, "everything is delivered, and known to be")
    trainer.go()
    trainer.ready()
    wait_for(lambda: sum(receiver.points().values()) == 3 * 40_000, "the later rows are delivered")
    assert len(receiver.received) == len(receiver.accepted()), "nothing was sent twice"
    (state / "ballast").unlink()
    wait_for(lambda: reserve.exists() and reserve.stat().st_size, "room is kept again")
    trainer.go()
    trainer.finish()
    gone()
    oracle.agrees(receiver, range(40_000))
