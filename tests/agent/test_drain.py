"""Draining a ring into a spool: from the first row to the news of the end, also when the disk is full meanwhile."""

import gzip
import random
import time

import pytest

from support.spools import take_requests
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.ring.file import documents_file
from tensormeter.ring.format import HeaderWord, State


def take(spool):
    """Take everything out of the spool: (steps of the rows, names and bodies of the events)."""
    steps, events = [], []
    for request in take_requests(spool):
        body = gzip.decompress(request.body)
        if request.signal == "logs":
            events += [(event.name, event.body) for _, some in decode_events(body) for event in some]
        else:
            gauges = decode_metrics(body)[0].gauges
            steps += next(gauge.values.tolist() for gauge in gauges if gauge.name == "tensormeter.step")
            assert request.items == sum(len(gauge.times) for gauge in gauges)
    return steps, events


def test_rows_wait_until_they_are_due_or_wanted(source, spool, open_drain):
    drain = open_drain(source)
    source.log({"a": 1.0}, 7)
    assert not drain.advance(flush=False)
    steps, events = take(spool)
    assert steps == []
    assert [name for name, _ in events] == ["tensormeter.run.start"]
    assert not drain.advance(flush=True)
    assert take(spool) == ([7], [])
    assert spool.take_fresh() == {"logs", "metrics"}
    assert not spool.take_fresh()


def test_a_configuration_that_changes_is_told_once(new_source, spool, open_drain):
    source = new_source({"config": {"lr": 1}, "tags": ["a"], "group": "g", "job_type": "eval"})
    drain = open_drain(source)
    drain.advance(flush=False)
    assert take(spool)[1] == [
        ("tensormeter.run.start", {"config": {"lr": 1}, "tags": ["a"], "group": "g", "job_type": "eval"})
    ]
    before = time.time_ns()
    source.ring.write_documents({"config": {"lr": 2}}, {"config": {"lr": 2}})
    for _ in range(2):
        drain.advance(flush=False)
    _, request = spool.next("a")
    (event,) = next(iter(decode_events(gzip.decompress(request.body))))[1]
    assert (event.name, event.body) == ("tensormeter.run.config", {"config": {"lr": 2}})
    assert before <= event.time <= time.time_ns()
    assert len(take(spool)[1]) == 1
    # An agent after this one does not know whether that has been told, and says the same again.
    source.ring.write_documents({"config": {"lr": 3}}, {"config": {"lr": 3}})
    source.recorder.close(State.FINISHED)
    open_drain(source).advance(flush=False)
    config, end = take(spool)[1]
    assert config == ("tensormeter.run.config", {"config": {"lr": 3}})
    assert end[0] == "tensormeter.run.end"


def test_the_summary_and_definitions_travel_with_the_configuration(new_source, spool, open_drain):
    source = new_source({"config": {}})
    drain = open_drain(source)
    drain.advance(flush=False)
    take(spool)
    documents = {
        "summary": {"best": 0.5, "test": {"acc": 1, "deep": {"note": "good"}, "empty": {}}},
        "definitions": {"loss": {"summary": "min"}, "eval/*": {"step_metric": "epoch"}},
    }
    source.ring.write_documents(documents, documents)
    drain.advance(flush=False)
    assert take(spool)[1] == [
        (
            "tensormeter.run.config",
            {
                "summary": {"best": 0.5, "test/acc": 1, "test/deep/note": "good"},
                "definitions": [{"name": "loss", "summary": "min"}, {"name": "eval/*", "step_metric": "epoch"}],
            },
        )
    ]


def test_what_the_spool_dropped_is_told_by_one_process(new_source, spool, open_drain):
    """All processes of a node have one spool. One of them reports its losses, and leaves that to another when it ends."""
    sources = [new_source() for _ in range(2)]
    first, second = [open_drain(source, heartbeat_interval=1e-9) for source in sources]
    for drain in (first, second):
        drain.advance(flush=False, last=False)
    take(spool)
    spool.count_loss("damaged", 3)
    first.beat(["a"], speaks=True)
    second.beat(["a"], speaks=False)
    assert [body["dropped"] for _, body in take(spool)[1]] == [{"damaged": 3}, {}]
    sources[0].recorder.close(State.FINISHED)
    first.advance(flush=False, last=False)
    second.beat(["a"], speaks=True)
    assert [body["dropped"] for _, body in take(spool)[1]] == [{}, {"damaged": 3}]
    sources[1].recorder.close(State.FINISHED)
    second.advance(flush=False, last=True)
    assert [body["dropped"] for _, body in take(spool)[1]] == [{"damaged": 3}]


def test_a_writer_that_finishes_and_then_leaves(source, spool, open_drain):
    drain = open_drain(source)
    for step in range(10):
        source.log({"a": 1.0, "bad": 1j}, step)
    source.recorder.close(State.FINISHED)
    assert not drain.advance(flush=False)
    assert source.ring.words[HeaderWord.ENDED] == 1
    assert source.ring.words[HeaderWord.PENDING_REQUESTS] == 3
    steps, events = take(spool)
    assert steps == list(range(10))
    assert events[-1] == (
        "tensormeter.run.end",
        {"state": "finished", "message": "", "dropped": {"unsupported_value": 10}},
    )
    source.ring.release()
    assert drain.advance(flush=False)
    assert take(spool) == ([], [])


def test_a_writer_that_vanishes_has_crashed(source, spool, open_drain):
    source.log({"a": 1.0}, 3)
    source.ring.release()
    assert open_drain(source).advance(flush=False)
    steps, events = take(spool)
    assert steps == [3]
    assert events[-1][1]["state"] == "crashed"


def test_another_drain_goes_on_and_says_nothing_twice(source, spool, open_drain):
    source.log({"a": 1.0}, 0)
    open_drain(source).advance(flush=True)
    source.log({"a": 1.0}, 1)
    source.recorder.close(State.FINISHED)
    open_drain(source).advance(flush=True)
    source.ring.release()
    assert open_drain(source).advance(flush=False)
    steps, events = take(spool)
    assert steps == [0, 1]
    assert [name for name, _ in events] == ["tensormeter.run.start", "tensormeter.run.end"]


def test_a_flush_takes_everything_however_small_the_batches(source, spool, open_drain):
    """An agent that is told to stop has one go at it: the machine may be about to reboot."""
    for step in range(2000):
        source.log({"a": 1.0}, step)
    open_drain(source, max_export_batch_size=10).advance(flush=True)
    assert take(spool)[0] == list(range(2000))


def test_documents_that_the_spool_refuses_are_sent_later(source, spool, open_drain, wait_for):
    drain = open_drain(source)
    drain.advance(flush=False)
    take(spool)
    config = {"noise": random.Random(1).randbytes(100_000).hex()}
    source.ring.write_documents({"config": config}, {"config": config})
    (pages,) = spool._database.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages + 3}")
    drain.advance(flush=False)
    assert drain.refusal is not None
    spool._database.execute("PRAGMA max_page_count = 1000000")
    wait_for(lambda: not drain.advance(flush=False) and drain.refusal is None, "the spool works again")
    assert take(spool)[1] == [("tensormeter.run.config", {"config": config})]


def test_documents_that_cannot_be_read_are_reported_once(source, spool, open_drain, caplog):
    drain = open_drain(source)
    source.ring.write_documents({"config": {"lr": 2}}, {"config": {"lr": 2}})
    documents_file(source.path).write_bytes(b"damaged\n")
    for _ in range(2):
        drain.advance(flush=False)
    (record,) = caplog.records
    assert "cannot read the changed configuration" in record.getMessage()
    assert [name for name, _ in take(spool)[1]] == ["tensormeter.run.start"]


@pytest.mark.parametrize("alive", [True, False])
def test_a_full_disk_loses_nothing(source, spool, open_drain, wait_for, alive):
    for step in range(3000):
        source.log({"a": step / 7}, step)
    source.recorder.close(State.FINISHED)
    if not alive:
        source.ring.release()
    drain = open_drain(source, max_export_batch_size=1000)
    (pages,) = spool._database.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages + 3}")
    assert not drain.advance(flush=False)
    assert source.ring.words[HeaderWord.ENDED] == 0
    spool._database.execute("PRAGMA max_page_count = 1000000")
    wait_for(lambda: drain.advance(flush=False) or source.ring.words[HeaderWord.ENDED], "the end is in the spool")
    steps, events = take(spool)
    assert steps == list(range(3000))
    assert [name for name, _ in events] == ["tensormeter.run.start", "tensormeter.run.end"]
