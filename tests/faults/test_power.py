"""Power fails: what a disk may hold afterwards, made of a record of everything that was written, and what is promised of that.

`make power` tries a hundred cuts of each record; the test run tries a few. Each cut is tried with disks that hold nothing, some or all
of what was not synced; see `recorded_disk`.
"""

import os
import random
from collections import Counter

import pytest

from support.fuse_disk import Unavailable
from support.processes import run_python
from support.recorded_disk import Leniency, RecordedDisk, State, cuts, each_state, operations
from support.servers import RestartableServer
from tensormeter.agent.sync import sync_runs
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.server.store import RunRef, Selection
from tensormeter.server.store.sqlite.store import SqliteStore

CUTS = int(os.environ.get("TENSORMETER_TEST_CUTS", "4"))
"""Cuts of each record: `make power` asks for many more."""

MARKING = """
import os
def mark(text):
    descriptor = os.open(os.environ["MARK"], os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)
"""

TEXTS = """
import random
def text_of(step):
    return random.Random(step).randbytes(100_000).hex()
"""
"""Texts that make SQLite carry its log over into the spool now and then."""

TRAINING = f"""{MARKING}{TEXTS}
pause = threading.Event()
run = tensormeter.init("power", config={{"lr": 0.1}})
process = run._process
for step in range(400):
    log(run, [step])
    mark(f"logged {{step}}")
    if step % 10 == 9:
        run.log({{"text": tensormeter.Text(text_of(step))}}, step)
    if step % 25 == 24:
        assert process.wait_for_flush(process.request_flush(), 300)
        mark(f"spooled {{step}}")
    pause.wait(0.01)
run.update_config({{"late": 1}})
run.finish()
mark("ended 0")
"""

WRITING = f"""{MARKING}
import random, sys
from pathlib import Path
import numpy as np
from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Image
from tensormeter.server.store.sqlite.store import SqliteStore

store = SqliteStore(Path(sys.argv[1]), flush_points=600, flush_interval=0.2, durability=sys.argv[2])
for number in range(int(sys.argv[3])):
    times = np.arange(number * 20 + 1, number * 20 + 21)
    gauge = Gauge("v", times.astype(np.uint64), times.astype(np.float64))
    payload = encode_metrics([Batch({{"tensormeter.run.id": "r"}}, [gauge])])
    store.append_metrics(decode_metrics(payload), payload=payload, batch_id=f"m{{number}}")
    event = Image("i", b"\\x89PNG\\r\\n\\x1a\\n" + bytes([number % 256]) * 3000, "image/png", 1, 1).event(number + 1, number)
    payload = encode_events({{"tensormeter.run.id": "r"}}, [event])
    store.append_events(decode_events(payload), payload=payload, batch_id=f"e{{number}}")
    progress = store.syncer.progress()
    mark(f"answered {{number}} {{progress.committed}} {{progress.durable}}")
    if number % 50 == 49:
        store.syncer.sync(300)
store.close()
"""


@pytest.fixture
def recorded_disk(tmp_path):
    try:
        disk = RecordedDisk(_made(tmp_path / "disk"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield disk
    disk.close()


def _made(folder):
    folder.mkdir()
    return folder


def promised(state, word):
    """The highest number of a kind of mark so far; -1 if there is none."""
    return max((int(text.split()[1]) for _, text in state.marks if text.split()[0] == word), default=-1)


def promised_before(state, word, seconds):
    """The same, of marks that are that old."""
    old = (text for at, text in state.marks if at <= state.time - seconds)
    return max((int(text.split()[1]) for text in old if text.split()[0] == word), default=-1)


def leniencies(chance):
    """A disk that holds nothing of what was not synced, and one that holds something."""
    return [Leniency.NOTHING, chance.choice([Leniency.SOME, Leniency.SOME, Leniency.SOME, Leniency.ALL])]


def text_of(step):
    return random.Random(step).randbytes(100_000).hex()


def report(request, counts):
    """Prints the results of a hundred cuts, if they were asked for."""
    if CUTS > 50:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{request.node.name}: {dict(counts)}")


@pytest.mark.parametrize("durability", ["fsync", "flush", "none"])
def test_fault_108_a_run_is_found_and_missing_rows_are_reported(
    durability, recorded_disk, train, oracle, receiver, instants, tmp_path, wait_for, request, caplog
):
    settings = {"dir": recorded_disk.path / "state", "mode": "offline", "durability": durability, "schedule_delay": 1}
    trainer = train(f"os.environ['MARK'] = {str(recorded_disk.path / '.mark')!r}\n{TRAINING}", **settings)
    trainer.finish()
    (folder,) = (recorded_disk.path / "state" / "runs").glob("[!.]*@*")
    wait_for(lambda: not (folder / "agent.lock").read_bytes(), "the agent has ended")
    recorded_disk.close()
    record = operations(recorded_disk.record)
    counts: Counter[str] = Counter()
    right = [text_of(step) for step in range(9, 400, 10)]
    for state in each_state(record, cuts(record, CUTS, instants)):
        for leniency in leniencies(instants):
            state.make(tmp_path / "cut", leniency, instants)
            receiver.received.clear()
            caplog.clear()
            results = list(sync_runs(tmp_path / "cut" / "state", endpoint=receiver.url))
            steps = sorted(step for step, _ in receiver.rows())
            texts = [body["text"] for name, body in receiver.events() if name == "tensormeter.text"]
            counts["texts"] += len(texts)
            assert len({*texts}) == len(texts)
            assert {*texts} <= {*right}
            assert durability == "none" or texts == right[: len(texts)]
            events = dict(receiver.events())
            ended = events.get("tensormeter.run.end", {})
            reports = [words for result in results for words in result.cut]
            spooled, logged = promised(state, "spooled"), promised(state, "logged")
            assert receiver.rows() == oracle.rows(steps)
            assert [result.message for result in results if not result.delivered] == []
            if spooled >= 0:
                assert results, "the run is not found"
            if spooled >= 0 and durability != "none":
                assert events["tensormeter.run.start"]["config"] == {"lr": 0.1}
            if durability == "fsync":
                assert steps[-1:] >= [spooled][: spooled + 1]
                counts["after two seconds"] += len(steps) > promised_before(state, "logged", 2)
            if durability != "none":
                assert steps == list(range(len(steps)))
            damaged = any("is damaged" in line or "malformed" in line for line in caplog.messages)
            counts["damaged"] += damaged
            assert durability == "none" or not damaged
            if len(steps) <= logged and results:
                assert reports or ended.get("dropped") or damaged
                assert not events or damaged or ended.get("state") == "crashed"
            counts["states"] += 1
            counts["found"] += bool(results)
            counts["whole"] += len(steps) > logged
            counts["told"] += bool(reports)
            counts["rows"] += len(steps)
            counts["rows logged"] += logged + 1
    report(request, counts)
    assert counts["found"]


def payload_of(number):
    """The two requests of a number, as the writer makes them."""
    import numpy as np

    from tensormeter.otlp.batch import Batch, Gauge
    from tensormeter.otlp.encode import encode_events, encode_metrics
    from tensormeter.otlp.media import Image

    resource = {"tensormeter.run.id": "r"}
    times = np.arange(number * 20 + 1, number * 20 + 21)
    gauge = Gauge("v", times.astype(np.uint64), times.astype(np.float64))
    image = Image("i", b"\x89PNG\r\n\x1a\n" + bytes([number % 256]) * 3000, "image/png", 1, 1)
    return encode_metrics([Batch(resource, [gauge])]), encode_events(resource, [image.event(number + 1, number)])


def stored(store):
    """The numbers of requests of points and of events in the store. They must be the first ones, and right."""
    try:
        series = store.read(RunRef("r"), Selection(["v"])).series
        events = store.events(RunRef("r"))
    except Exception as error:
        if type(error).__name__ != "NotFoundError":
            raise
        return 0, 0
    points = series[0].points if series else None
    times = points.times.tolist() if points is not None else []
    assert times == list(range(1, len(times) + 1))
    assert points is None or points.values() == times
    assert len(times) % 20 == 0
    numbers = sorted(event.time - 1 for event in events)
    assert numbers == list(range(len(numbers)))
    for event in events[:3] + events[-3:]:
        store.media(RunRef("r"), event.body["digest"])
    return len(times) // 20, len(numbers)


@pytest.mark.parametrize("durability", ["group", "always"])
def test_a_store_keeps_everything_that_it_called_durable(durability, recorded_disk, instants, tmp_path, request):
    requests = 150
    environment = os.environ | {"MARK": str(recorded_disk.path / ".mark")}
    run_python("-c", WRITING, recorded_disk.path / "data", durability, requests, environment=environment, check=True)
    recorded_disk.close()
    record = operations(recorded_disk.record)
    counts: Counter[str] = Counter()
    for state in each_state(record, cuts(record, CUTS, instants)):
        for leniency in leniencies(instants):
            state.make(tmp_path / "cut", leniency, instants)
            answers = [[int(word) for word in text.split()[1:]] for _, text in state.marks]
            answered = len(answers)
            durable = max((durable for _, _, durable in answers), default=0)
            kept = sum(committed <= durable for _, committed, _ in answers)
            store = SqliteStore(tmp_path / "cut" / "data")
            points, events = stored(store)
            counts["answered"] += answered
            counts["there"] += events
            counts["two seconds"] += events > promised_before(state, "answered", 2)
            assert points >= events >= (answered if durability == "always" else kept)
            for number in range(answered):
                metrics, logs = payload_of(number)
                store.append_metrics(decode_metrics(metrics), payload=metrics, batch_id=f"m{number}")
                store.append_events(decode_events(logs), payload=logs, batch_id=f"e{number}")
            points, events = stored(store)
            assert points >= events >= answered
            store.close()
            store = SqliteStore(tmp_path / "cut" / "data")
            assert stored(store) == (points, events)
            store.close()
            counts["states"] += 1
    report(request, counts)


def test_fault_109_power_fails_at_the_server_alone_and_everything_arrives_once(
    recorded_disk, train, oracle, environment, tmp_path, instants, wait_for, state, gone
):
    """The trainer goes on; the server starts again with what its disk may hold; agents send again what it has lost."""
    place = recorded_disk.path / "server-folder"
    place.mkdir()
    server = RestartableServer(place, environment)
    server.start()
    trainer = train(
        """
run = tensormeter.init("power")
for part in range(4):
    log(run, range(100 * part, 100 * part + 100))
    if part < 3:
        ready()
run.finish()
""",
        endpoint=server.url,
        linger_timeout=3000,
        finish_timeout=300,
        schedule_delay=0.05,
    )
    for part in range(3):
        trainer.ready()
        count = 100 * part + 100
        wait_for(
            lambda count=count: server.points("faulty")[("loss", count - 1, ((count - 1) / 7).hex())], "it has arrived"
        )
        server.kill()
        disk = State(operations(recorded_disk.record))
        disk.advance(1 << 60)
        leniency = instants.choice([Leniency.NOTHING, Leniency.SOME])
        disk.make(tmp_path / "cut", leniency, instants)
        data = place / "server"
        for path in sorted(data.iterdir()):
            path.unlink()
        for path in sorted((tmp_path / "cut" / "server-folder" / "server").iterdir()):
            (data / path.name).write_bytes(path.read_bytes())
        server.start()
        trainer.go()
    trainer.finish()
    gone()
    wait_for(lambda: server.state("faulty") == "finished", "the run has ended")
    expected = Counter({("loss", step, (step / 7).hex()): 1 for step in range(400)})
    expected.update({("n", step, float(step).hex()): 1 for step in range(400)})
    assert server.points("faulty", "loss", "n") == expected
    server.stop()


LOGGED = "run = tensormeter.init('power')\nlog(run, range(100))\nrun.finish()\n"


def test_finish_does_not_wait_for_the_receivers_disk_and_the_agent_does(train, receiver, oracle, state, wait_for, gone):
    receiver.epoch, receiver.syncs = "e", False
    trainer = train(LOGGED, linger_timeout=3000, finish_timeout=300)
    assert trainer.end() == (0, "")
    wait_for(lambda: receiver.asked_for_durable() > 1, "the agent asks again and again")
    receiver.restart("f")
    receiver.syncs = True
    gone()
    oracle.agrees(receiver, range(100))
    assert receiver.commits == len(receiver.accepted())


def test_fault_112_accepted_requests_that_are_not_durable_are_left_to_sync(
    train, receiver, oracle, state, wait_for, gone, monkeypatch
):
    monkeypatch.setattr("tensormeter.agent.agent._DURABLE_WAIT", 0.2)
    receiver.epoch, receiver.syncs = "e", False
    assert train(LOGGED, linger_timeout=0, finish_timeout=300).end() == (0, "")
    (folder,) = (state / "runs").glob("[!.]*@*")
    wait_for(lambda: not (folder / "agent.lock").read_bytes(), "the agent has given up waiting")
    (result,) = sync_runs(state, endpoint=receiver.url)
    assert (result.delivered, result.accepted) == (False, True)
    assert "has not confirmed durable storage" in result.message
    assert folder.exists()
    receiver.syncs = True
    (result,) = sync_runs(state, endpoint=receiver.url)
    assert (result.delivered, result.cut) == (True, [])
    gone()
    oracle.agrees(receiver, range(100))


def test_sync_sends_again_what_a_stopped_server_has_lost(train, receiver, oracle, state, wait_for, gone):
    """The agent has given up; power failed at the server meanwhile; `sync` sends it again."""
    receiver.epoch, receiver.syncs = "e", False
    assert train(LOGGED, linger_timeout=0, finish_timeout=300).end() == (0, "")
    (folder,) = (state / "runs").glob("[!.]*@*")
    wait_for(lambda: not (folder / "agent.lock").read_bytes(), "the agent has given up waiting")
    sent = {*receiver.accepted()}
    receiver.received.clear()
    receiver.restart("f")
    receiver.syncs = True
    (result,) = sync_runs(state, endpoint=receiver.url)
    assert result.delivered
    assert {*receiver.accepted()} == sent
    oracle.agrees(receiver, range(100))
    gone()
