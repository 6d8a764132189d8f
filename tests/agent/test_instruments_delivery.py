"""Measurements of a program with plain `opentelemetry.metrics`, as they arrive at a receiver, through agents that die."""

import gzip
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from support.agents import kill_agents
from support.processes import clean_environment
from support.spools import take_requests
from support.trainers import TrainingProcess
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.instruments.streams import Streams
from tensormeter.instruments.views import InstrumentIdentity, ScopeIdentity, Template, Views
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.ring.format import State


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
    trainer = TrainingProcess([str(Path(__file__).with_name("measuring_trainer.py"))], environment)
    trainer.expect("ok")
    yield trainer
    trainer.kill()
    kill_agents(tmp_path / "state")


def test_it_arrives_through_agents_that_are_killed(trainer, receiver, tmp_path, wait_for):
    killed = set()
    for begin in range(0, 4000, 1000):
        trainer.write(f"measure {begin} {begin + 1000}")
        trainer.expect("ok")
        (run,) = list_runs(tmp_path / "state")
        wait_for(lambda run=run: run.agent_pid() not in killed | {None}, "an agent that handles signals")
        if begin < 3000:
            killed.add(run.agent_pid())
            os.kill(run.agent_pid(), signal.SIGKILL)
    trainer.end()
    wait_for(lambda: any(name == "tensormeter.run.end" for name, _ in receiver.events()), "the end of the run")
    wait_for(lambda: not [*(tmp_path / "state" / "runs").glob("*@*")], "everything is delivered")
    assert len(killed) == 3
    series_by_name = {}
    for batch in receiver.batches():
        for series in batch.series:
            series_by_name.setdefault(series.name, []).append(series)
    samples = [(int(series.values[0]), int(series.times[0])) for series in series_by_name["samples"]]
    assert samples == sorted(samples)
    assert samples[-1][0] == sum(range(4000))
    (series, *_) = series_by_name["samples"]
    assert (series.unit, series.description, series.attributes) == ("{sample}", "seen so far", {"split": "train"})
    assert (series.scope.name, series.scope.version) == ("trainer", "1.0")
    assert len({int(series.start_times[0]) for series in series_by_name["samples"]}) == 1
    last = series_by_name["duration"][-1]
    assert last.buckets[0].tolist() == [2667, 1333, 0]
    assert last.sums[0] == sum(i % 3 / 2 for i in range(4000))
    assert Counter(value for series in series_by_name["loss"] for value in series.values.tolist()) == Counter(
        i / 7 for i in range(4000)
    )
    assert series_by_name["total"][-1].values[-1] == sum(range(4000))


def test_a_full_disk_counts_nothing_twice(source, spool, open_drain, wait_for):
    """The same rows are folded again and again until the spool takes them."""
    streams = Streams(Views(()), lambda: source.recorder, lambda: 2000)
    identity = InstrumentIdentity("counter", "a", "", "", ScopeIdentity("s"))
    stream = streams.writer(identity, Template("a", "counter", "", ""), ())
    drain = open_drain(source, schedule_delay=0.01)
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
    for request in take_requests(spool):
        if request.signal == "metrics":
            for batch in decode_metrics(gzip.decompress(request.body)):
                values += [int(series.values[-1]) for series in batch.series if series.name == "a"]
    assert values[-1] == 4000


def test_a_batch_of_refused_values_moves_on_and_sends_nothing(source, spool, open_drain):
    streams = Streams(Views(()), lambda: source.recorder, lambda: 2000)
    identity = InstrumentIdentity("gauge", "a", "", "", ScopeIdentity("s"))  # whose NaN only the agent can refuse
    stream = streams.writer(identity, Template("a", "histogram", "", "", (1.0,)), ())
    stream._finite = False
    stream.record(float("nan"))
    drain = open_drain(source)
    drain.advance(flush=True)
    assert source.ring.tail_positions()[0] > 0
    assert [spool.next("a")[1].signal] == ["logs"]
    assert spool.pending() == 1
    again = open_drain(source)
    assert again._processor.refused == 1
    spool.done("a", spool.next("a")[0])
    source.recorder.close(State.FINISHED)
    again.advance(flush=True)
    ((_, (event,)),) = decode_events(gzip.decompress(spool.next("a")[1].body))
    assert event.body["dropped"] == {"unsupported_value": 1}
