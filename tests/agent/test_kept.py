"""Requests that a receiver has accepted but not synced: they are kept, sent again after its restart, and forgotten."""

import gzip
import sqlite3

import numpy as np
import pytest

import tensormeter.agent.delivery.delivery as delivery_module
from support.spool_version_2 import VERSION_2
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.request import Encoded, checksum
from tensormeter.agent.spool.spool import Spool
from tensormeter.exporter import Request
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics

PROCESS = "p1"


def body_of(*numbers, names=("a", "b")):
    times = np.array([number + 1 for number in numbers], np.uint64)
    series = [Gauge(name, times, np.array(numbers) * 1.0) for name in names]
    return gzip.compress(encode_metrics([Batch({"service.instance.id": PROCESS}, series)]))


@pytest.fixture
def put(spool):
    """Puts one request for each number into the spool, or one for each tuple of numbers."""

    def put(*numbers, destinations=("experiment",)):
        for each in numbers:
            rows = each if isinstance(each, tuple) else (each,)
            encoded = [Encoded("metrics", body_of(*rows), 2 * len(rows))]
            spool.put(encoded, destinations, PROCESS, {}, started=True, ended=False)

    return put


@pytest.fixture
def accepted(spool, put, deliver, receiver, wait_for):
    """Puts requests, and waits until the receiver has accepted them in its epoch "e". They are not durable yet."""

    def accepted(*numbers, **options):
        receiver.epoch = "e"
        put(*numbers, **options)
        delivery = deliver()
        wait_for(lambda: delivery.idle and spool.kept() == len(numbers), "all requests are accepted")
        return delivery

    return accepted


def ids(receiver):
    return [request.id for request in receiver.received if request.path == "/v1/metrics" and request.accepted]


def test_an_accepted_request_stays_until_it_is_durable(accepted, spool, put, receiver, wait_for):
    delivery = accepted(1, 2)
    assert spool.kept() == 2
    assert spool.read(1) is not None
    receiver.durable = 1
    put(3)
    delivery.arrived()
    wait_for(
        lambda: not spool.pending() and spool.kept() == 2, "the answer to the third says that the first is durable"
    )
    assert spool.read(1) is None
    assert receiver.asked_for_durable() == 0
    delivery.set_urgent(True)
    wait_for(lambda: spool.kept() == 0, "it asks")
    assert spool.last_sequence() == 3
    assert [spool.read(sequence) for sequence in (1, 2, 3)] == [None] * 3
    assert len(ids(receiver)) == 3


def test_it_asks_by_itself_after_a_while(spool, put, deliver, receiver, wait_for, monkeypatch):
    monkeypatch.setattr(delivery_module, "_ASK_AFTER", 0.01)
    monkeypatch.setattr(delivery_module, "_ASK_AGAIN", 0.01)
    receiver.epoch, receiver.syncs = "e", False
    put(1)
    deliver()
    wait_for(lambda: receiver.asked_for_durable() > 2, "it asks until the answer is yes")
    assert spool.kept() == 1
    receiver.syncs = True
    wait_for(lambda: spool.kept() == 0, "it is durable")


def test_after_a_restart_of_the_receiver_what_is_not_durable_is_sent_again(accepted, spool, put, receiver, wait_for):
    delivery = accepted(1, 2, 3)
    receiver.durable = 1
    put(4)
    delivery.arrived()
    wait_for(lambda: len(ids(receiver)) == 4 and not spool.pending() and spool.kept() == 3, "the first is durable")
    first, second, third, fourth = ids(receiver)
    receiver.restart("f")
    put(5)
    delivery.arrived()
    wait_for(lambda: len(ids(receiver)) == 8 and not spool.pending(), "they are sent again")
    fifth = ids(receiver)[4]
    assert ids(receiver)[5:] == [second, third, fourth]
    delivery.set_urgent(True)
    wait_for(lambda: spool.kept() == 0, "all are durable")
    assert len({first, second, third, fourth, fifth}) == 5
    assert spool.losses() == {}


def test_the_question_reveals_a_restart_too(accepted, spool, receiver, wait_for):
    delivery = accepted(1, 2)
    receiver.restart("f")
    delivery.set_urgent(True)
    wait_for(lambda: len(ids(receiver)) == 4 and spool.kept() == 0, "both are sent again, and durable")
    assert ids(receiver)[:2] == ids(receiver)[2:]


def test_the_next_agent_goes_on_with_what_is_kept(accepted, spool, deliver, receiver, wait_for):
    accepted(1, 2)
    receiver.restart("f")
    deliver(urgent=True)
    wait_for(lambda: len(ids(receiver)) == 4 and spool.kept() == 0, "another agent has sent both again")
    assert ids(receiver)[:2] == ids(receiver)[2:]


def test_a_receiver_that_says_nothing_any_more_gets_it_once_more(accepted, spool, put, receiver, wait_for):
    delivery = accepted(1, 2)
    receiver.epoch = None
    put(3)
    delivery.arrived()
    wait_for(lambda: len(ids(receiver)) == 5 and not spool.pending(), "they are sent again")
    assert spool.kept() == 0
    assert ids(receiver)[:2] == ids(receiver)[3:]


def test_a_proxy_that_passes_no_questions_on_makes_no_loop(accepted, spool, receiver, wait_for):
    delivery = accepted(1)
    receiver.epoch = None  # the question is answered 200 without a document
    delivery.set_urgent(True)
    wait_for(lambda: len(ids(receiver)) == 2 and spool.kept() == 0, "it is sent once more")
    assert receiver.asked_for_durable() == 1


def test_halves_keep_their_ids(accepted, spool, receiver, wait_for):
    receiver.limit = len(gzip.decompress(body_of(1, 2)))
    delivery = accepted((1, 2, 3, 4))
    assert len(ids(receiver)) == 2
    receiver.restart("f")
    delivery.set_urgent(True)
    wait_for(lambda: len(ids(receiver)) == 4 and spool.kept() == 0, "both are sent again")
    assert ids(receiver)[:2] == ids(receiver)[2:]


def refuse_metric(name):
    return lambda body: any(gauge.name == name for batch in decode_metrics(body) for gauge in batch.gauges)


def test_parts_of_a_refused_request_keep_their_ids(accepted, spool, receiver, wait_for):
    receiver.refuses = refuse_metric("b")
    delivery = accepted((1, 2, 3), (4, 5, 6))
    sent, before = ids(receiver), receiver.points()
    bodies = {request.id: request.body for request in receiver.received if request.accepted}
    receiver.restart("f")
    delivery.set_urgent(True)
    wait_for(lambda: len(ids(receiver)) == 2 * len(sent) and spool.kept() == 0, "the same is sent again")
    assert sorted(ids(receiver)[len(sent) :]) == sorted(sent)
    assert receiver.points() == before
    assert all(
        gzip.decompress(bodies[request.id]) == gzip.decompress(request.body)
        for request in receiver.received
        if request.accepted
    )
    assert spool.quarantined_items() == 6


def test_a_restart_between_two_parts_sends_both_again(spool, put, deliver, receiver, wait_for):
    receiver.epoch = "e"
    receiver.limit = len(gzip.decompress(body_of(1, 2)))
    put((1, 2, 3, 4))
    behaviour, accept = receiver._behaviour, []

    def restart_after_the_first(path, authorization, body):
        answer = behaviour(path, authorization, body)
        if getattr(answer, "accepts", False):
            accept.append(body)
            if len(accept) == 1:
                receiver.restart("f")
        return answer

    receiver._behaviour = restart_after_the_first
    deliver(urgent=True)
    wait_for(
        lambda: not spool.pending() and spool.kept() == 0 and receiver.durable, "all parts are durable in one epoch"
    )
    first, second, *again = ids(receiver)
    assert again == [first, second]


def test_what_was_refused_is_counted_once(spool, put, deliver, receiver, wait_for):
    receiver.epoch = "e"
    receiver.script("partial")
    put((1, 2))
    delivery = deliver()
    wait_for(lambda: not spool.pending(), "most of it is accepted")
    put(3)
    delivery.arrived()
    wait_for(lambda: delivery.idle and not spool.pending(), "the next as well")
    assert spool.losses() == {"refused": 3}


def test_a_full_spool_gives_up_what_is_accepted_first_and_counts_no_loss(tmp_path, deliver, receiver, wait_for):
    receiver.epoch = "e"
    rng = np.random.default_rng(1)
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=1 << 20)

    def put():
        spool.put(
            [Encoded("metrics", gzip.compress(rng.bytes(100_000), 0), 1)],
            ["experiment"],
            PROCESS,
            {},
            started=True,
            ended=False,
        )

    for _ in range(8):
        put()
    delivery = deliver()
    wait_for(lambda: delivery.idle and spool.kept() == 8, "all are accepted")
    delivery.stop(30)
    for _ in range(8):
        put()
    assert spool.used_bytes() <= 1 << 20
    assert spool.pending() == 8
    assert spool.kept() <= 3
    assert spool.losses() == {}
    spool.close()


def test_a_repair_keeps_what_is_accepted(accepted, spool, tmp_path):
    delivery = accepted(1, 2)
    delivery.stop(30)
    spool.close()
    repaired = open_repaired(tmp_path / "spool.sqlite", ["experiment"], damage="pretended")
    assert repaired.pending() == 2
    assert repaired.kept() == 0
    assert repaired.losses() == {}
    repaired.close()


def test_a_spool_of_version_2_is_brought_up_to_date(tmp_path):
    database = sqlite3.connect(tmp_path / "spool.sqlite")
    database.executescript(VERSION_2)
    database.execute("PRAGMA user_version = 2")
    database.execute(f"PRAGMA application_id = {0x746D7302}")
    database.execute("INSERT INTO process VALUES ('p1', 1, 0)")
    database.execute(
        "INSERT INTO request (id, signal, items, priority, checksum, body) VALUES ('b', 'metrics', 3, 2, ?, ?)",
        (checksum("b", "metrics", 3, b"body"), b"body"),
    )
    database.execute("INSERT INTO pending VALUES ('experiment', 1)")
    database.execute("INSERT INTO loss VALUES ('refused', 2)")
    database.execute(
        "INSERT INTO quarantine (destination, id, reason, signal, items, body) VALUES ('experiment', 'q', 'no', 'logs', 1, ?)",
        (b"other",),
    )
    database.commit()
    database.close()
    spool = open_repaired(tmp_path / "spool.sqlite", ["experiment"])
    assert spool.processes() == [("p1", False, "")]
    assert spool.kept() == 0
    assert spool.next("experiment") == (1, Request("b", "metrics", b"body", 3))
    assert spool.losses() == {"refused": 2}
    assert spool.quarantined_items() == 1
    spool.check()
    spool.close()


def test_other_destinations_are_forgotten(accepted, spool, deliver, wait_for):
    accepted(1, destinations=["experiment", "experiment:other"])
    spool.forget_kept(["experiment:other"])
    assert spool.kept() == 0
    assert spool.read(1) is not None
    deliver(destination="experiment:other", urgent=True)
    wait_for(lambda: not spool.pending() and not spool.kept(), "the other has it, too")
    assert spool.read(1) is None
