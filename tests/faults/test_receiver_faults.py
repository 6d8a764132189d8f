"""Receivers that are away, slow, wrong or against us: faults 1 to 14."""

import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from support.agents import agent_lives
from support.receiver import BEHAVIOURS
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.sync import sync_runs
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

ONE, TWO = gzip.compress(b""), gzip.compress(encode_metrics([]))
RUN = "run = tensormeter.init('faults')\nlog(run, range(3000))\nrun.finish()\n"


def ids(receiver):
    return [request.id for request in receiver.received]


def commit_and(receiver, end):
    """The behaviour of a receiver that stores a request, and whose answer is lost."""

    def behave(handler):
        end(handler)

    behave.accepts = True
    return behave


def close(handler):
    handler.close_connection = True  # nothing was answered


def hang(handler):
    """No answer, until the other side leaves."""
    handler.connection.settimeout(300)
    handler.rfile.read(1)
    handler.close_connection = True


def test_fault_01_server_down_the_whole_run(train, receiver, state, gone, oracle, wait_for):
    receiver.stop()
    trainer = train(RUN, finish_timeout=0.2, linger_timeout=0)
    errors = trainer.finish()
    assert "`tensormeter sync`" in errors
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run), "the agent gives up")
    receiver.start()
    (result,) = sync_runs(state)
    assert result.delivered, result.message
    gone()
    oracle.agrees(receiver, range(3000))


def test_fault_02_refused_then_up(put, deliver, receiver, spool, wait_for):
    receiver.stop()
    put(ONE, TWO)
    delivery = deliver()
    wait_for(lambda: len(delivery.delays) > 8, "several failures")
    assert max(delivery.delays) == 60, "the longest wait until delivery resumes"
    receiver.start()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert len(receiver.accepted()) == 2


def test_fault_03_accepts_and_never_answers(put, deliver, receiver, spool, wait_for):
    receiver.script(hang, "ok")
    put(ONE)
    deliver(export_timeout=0.3)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert ids(receiver) == [ids(receiver)[0]] * 2


@pytest.mark.parametrize("how", ["drip", "drip_headers"])
def test_fault_04_answers_a_byte_at_a_time(put, deliver, receiver, spool, wait_for, how):
    receiver.script(how, "ok")
    put(ONE)
    deliver(export_timeout=0.3)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert ids(receiver) == [ids(receiver)[0]] * 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_fault_05_server_errors(put, deliver, receiver, spool, answering, wait_for, status):
    receiver.script(*[answering(status)] * 8)
    put(ONE, TWO)
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert delivery.delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(set(ids(receiver)[:9])) == 1
    assert len(receiver.accepted()) == 2


@pytest.mark.parametrize(
    ("retry_after", "floor"),
    [("17", 17), ("date", 1000), ("garbage", 0), ("1000000000", 3600), ("-3", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_fault_06_429_with_retry_after(put, deliver, receiver, spool, answering, wait_for, caplog, retry_after, floor):
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    receiver.script(answering(429, Retry_After=at if retry_after == "date" else retry_after))
    put(ONE)
    caplog.set_level("WARNING", "tensormeter.agent")
    delivery = deliver()
    wait_for(lambda: caplog.messages, "the failure")
    waits = float(caplog.messages[0].rpartition(" in ")[2].removesuffix(" s"))
    assert (floor * 0.7 if retry_after == "date" else floor) <= waits <= floor + 0.1
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")


def test_fault_07_413_halves_and_an_oversize_point_is_quarantined(put, deliver, receiver, spool, wait_for):
    times = np.arange(1, 65, dtype=np.uint64)
    small = Gauge("small", times, times.astype(np.float64))
    huge = Gauge("huge", times[:1], np.array([1.0]), attributes={"text": "x" * 3000})
    put(gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, [small, huge])])), ONE)
    receiver.limit = 700
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert sorted(value for _, name, _, value in receiver.points() if name == "small") == times.tolist()
    assert set(receiver.points().values()) == {1}
    assert spool.quarantined_items() == 1


@pytest.mark.parametrize("status", [400, 422])
def test_fault_08_a_bad_request_is_quarantined_and_the_next_flows(
    put, deliver, receiver, spool, answering, wait_for, status
):
    receiver.script(answering(status))
    put(ONE, TWO)
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert len(receiver.accepted()) == 1
    assert spool.quarantined_items() == 1
    assert delivery.delays == []


def test_fault_09_a_refused_token_parks_until_there_is_another(
    put, deliver, receiver, spool, tmp_path, wait_for, caplog
):
    caplog.set_level("WARNING", "tensormeter.agent")
    receiver.token = "new"
    file = tmp_path / "token"
    file.write_text("old")
    put(ONE, TWO)
    delivery = deliver(token=None, token_file=file)
    wait_for(lambda: delivery.parked, "the destination is parked")
    assert spool.pending() == 2
    attempts = len(receiver.received)
    file.write_text("new")
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert attempts == 1
    assert len(caplog.messages) == 1
    assert len(receiver.accepted()) == 2


def test_fault_10_a_redirect_takes_no_token_elsewhere(
    put, deliver, receiver, another_receiver, spool, answering, wait_for
):
    elsewhere = another_receiver.url + "/v1/metrics"
    receiver.script(*(answering(status, Location=elsewhere) for status in (301, 302, 303, 307, 308)))
    put(ONE)
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert len(receiver.received) == 6
    assert another_receiver.connections == 0


@pytest.mark.parametrize("fault", [11, 12])
def test_fault_11_12_the_answer_is_lost_after_the_commit(train, receiver, gone, oracle, fault):
    """11: the connection is closed before the answer; 12: it is reset. The same request comes again, as the same."""
    import socket
    import struct

    def reset(handler):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    receiver.script(*[commit_and(receiver, close if fault == 11 else reset), "ok"] * 2)
    trainer = train(RUN)
    trainer.finish()
    gone()
    assert len(ids(receiver)) > len(set(ids(receiver))), "something came twice"
    assert len({(request.id, request.body) for request in receiver.received}) == len(set(ids(receiver)))
    oracle.agrees(receiver, range(3000))


def test_fault_13_a_partial_success_is_reported_and_not_sent_again(train, receiver, gone):
    def reject_three_points(handler):
        del receiver.routes["/v1/metrics"]  # the next request of metrics is accepted
        BEHAVIOURS["partial"](handler)

    receiver.routes["/v1/metrics"] = reject_three_points
    trainer = train(RUN)
    status, errors = trainer.end()
    gone()
    assert status == 0
    assert "lost before delivery: 3 points or events: refused by the receiver" in errors
    assert len(ids(receiver)) == len(set(ids(receiver)))


def test_fault_14_200_with_html_is_a_failure(put, deliver, receiver, spool, answering, wait_for):
    receiver.script(answering(200, b"<html>log in</html>", "text/html"), answering(200, b"<html>"))
    put(ONE)
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert delivery.delays == [1, 2]
    assert ids(receiver) == [ids(receiver)[0]] * 3
