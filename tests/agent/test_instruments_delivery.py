"""Measurements of a program with plain `opentelemetry.metrics`, as they arrive at a receiver, through agents that die."""

import gzip
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.agents import kill_agents
from support.processes import clean_environment
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.instruments.streams import Streams
from tensormeter.instruments.views import InstrumentIdentity, ScopeIdentity, Template, Views
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import State
from tensormeter.settings import Settings


@pytest.fixture
def environment(tmp_path, receiver):
    inherited = clean_environment()
    return inherited | {
        "OTEL_PYTHON_METER_PROVIDER": "tensormeter",
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
        "OTEL_SERVICE_NAME": "trainer",
        "TENSORMETER_DIR": str(tmp_path / "state"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_ENDPOINT": receiver.url,
        "TENSORMETER_RUN_ID": "measured",
    }


@pytest.fixture
def trainer(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("measuring_trainer.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def tell(command):
        process.stdin.write(command + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ok\n"

    assert process.stdout.readline() == "ok\n"
    process.tell = tell
    yield process
    process.kill()
    process.wait(300)
    process.stdin.close()
    process.stdout.close()
    kill_agents(tmp_path / "state")


def arrived(receiver):
    """Every series of every accepted request, in order of the requests, by metric."""
    found = {}
    for request in receiver.accepted().values():
        if request.path == "/v1/metrics":
            for batch in decode_metrics(gzip.decompress(request.body)):
                for series in batch.series:
                    found.setdefault(series.name, []).append(series)
    return found


def test_it_arrives_through_agents_that_are_killed(trainer, receiver, tmp_path, wait_for):
    killed = set()
    for begin in range(0, 4000, 1000):
        trainer.tell(f"measure {begin} {begin + 1000}")
        (run,) = list_runs(tmp_path / "state")
        wait_for(lambda run=run: run.agent_pid() not in killed | {None}, "an agent that handles signals")
        if begin < 3000:
            killed.add(run.agent_pid())
            os.kill(run.agent_pid(), signal.SIGKILL)
    trainer.stdin.close()
    trainer.wait(300)
    wait_for(lambda: any(name == "tensormeter.run.end" for name, _ in receiver.events()), "the end of the run")
    wait_for(lambda: not [*(tmp_path / "state" / "runs").glob("*@*")], "everything is delivered")
    assert len(killed) == 3
    found = arrived(receiver)
    samples = [(int(series.values[0]), int(series.times[0])) for series in found["samples"]]
    assert samples == sorted(samples)
    assert samples[-1][0] == sum(range(4000))
    (series, *_) = found["samples"]
    assert (series.unit, series.description, series.attributes) == ("{sample}", "seen so far", {"split": "train"})
    assert (series.scope.name, series.scope.version) == ("trainer", "1.0")
    assert len({int(series.start_times[0]) for series in found["samples"]}) == 1
    last = found["duration"][-1]
    assert last.buckets[0].tolist() == [2667, 1333, 0]
    assert last.sums[0] == sum(i % 3 / 2 for i in range(4000))
    assert Counter(value for series in found["loss"] for value in series.values.tolist()) == Counter(
        i / 7 for i in range(4000)
    )
    assert found["total"][-1].values[-1] == sum(range(4000))


def test_a_full_disk_counts_nothing_twice(source, tmp_path, wait_for):
    """The same rows are folded again and again until the spool takes them."""
    spool = Spool(tmp_path / "spool.sqlite")
    streams = Streams(Views(()), lambda: source.recorder, lambda: 2000)
    identity = InstrumentIdentity("counter", "a", "", "", ScopeIdentity("s"))
    stream = streams.writer(identity, Template("a", "counter", "", ""), ())
    drain = RingDrainer(RingFile.open(source.path), spool, ("d",), Settings(schedule_delay=0.01))
    for _ in range(1000):
        stream.record(1)
    drain.advance(flush=False)
    (pages,) = spool._database.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages}")
    for i in range(3000):
        stream.record(1)
        source.log({"filling": i / 7}, i)
    before = spool.cursor(source.ring.process, 0)
    drain.advance(flush=True)
    drain.advance(flush=True)
    assert spool.cursor(source.ring.process, 0) == before
    spool._database.execute("PRAGMA max_page_count = 1000000")
    wait_for(lambda: drain.advance(flush=True) or spool.cursor(source.ring.process, 0) != before, "the disk is mended")
    values = []
    while found := spool.next("d"):
        sequence, request = found
        if request.signal == "metrics":
            for batch in decode_metrics(gzip.decompress(request.body)):
                values += [int(series.values[-1]) for series in batch.series if series.name == "a"]
        spool.done("d", sequence)
    assert values[-1] == 4000
    spool.close()


def test_a_batch_of_refused_values_moves_on_and_sends_nothing(source, tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    streams = Streams(Views(()), lambda: source.recorder, lambda: 2000)
    identity = InstrumentIdentity("gauge", "a", "", "", ScopeIdentity("s"))  # whose NaN only the agent can refuse
    stream = streams.writer(identity, Template("a", "histogram", "", "", (1.0,)), ())
    stream._finite = False
    stream.record(float("nan"))
    drain = RingDrainer(RingFile.open(source.path), spool, ("d",), Settings(schedule_delay=3600))
    drain.advance(flush=True)
    assert source.ring.tail_positions()[0] > 0
    assert [spool.next("d")[1].signal] == ["logs"]
    assert spool.pending() == 1
    again = RingDrainer(RingFile.open(source.path), spool, ("d",), Settings(schedule_delay=3600))
    assert again._processor.refused == 1
    spool.done("d", spool.next("d")[0])
    source.recorder.close(State.FINISHED)
    again.advance(flush=True)
    ((_, (event,)),) = decode_events(gzip.decompress(spool.next("d")[1].body))
    assert event.body["dropped"] == {"unsupported_value": 1}
    spool.close()
