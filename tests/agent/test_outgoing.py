"""What a destination with a pace of its own is sent: joined and divided requests, the same ones after a kill."""

import gzip

import numpy as np
import pytest

import tensormeter.agent.delivery.request_pieces as outgoing_module
from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SettingsError
from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.settings import Settings

RESOURCE = {"service.name": "demo", "service.instance.id": "p1"}
WITH_DELAY = {"schedule_delay": "3600"}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(outgoing_module, "time", clock)
    return clock


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    yield spool
    spool.close()


@pytest.fixture
def outgoing(tmp_path, clock):
    """An agent's view of a destination; the next one is the next agent's."""

    def outgoing(**options):
        settings = Settings(exporter_options={f"jsonl.{name}": value for name, value in options.items()})
        return RequestPieces("jsonl", settings.pace_of("jsonl"), tmp_path / "exporters" / "jsonl")

    return outgoing


@pytest.fixture
def put(spool):
    """Puts a request of so many rows (of three points each) into the spool."""
    steps = iter(range(10**6))

    def put(*rows, extra=()):
        for count in rows:
            numbers = np.array([next(steps) for _ in range(count)])
            times = (numbers + 1).astype(np.uint64)
            series = [Gauge("tensormeter.step", times, numbers), Gauge("a", times, numbers * 1.0)]
            series += [Gauge("b", times, numbers * 2.0)]
            body = gzip.compress(encode_metrics([Batch(RESOURCE, series)]))
            spool.put([Encoded("metrics", body, 3 * count)], ["jsonl"], "p", {}, started=True, ended=False)

    return put


@pytest.fixture
def put_event(spool):
    def put_event(name):
        body = gzip.compress(encode_events(RESOURCE, [Event(name, 5, {})]))
        spool.put([Encoded("logs", body, 1)], ["jsonl"], "p", {}, started=True, ended=False)

    return put_event


def rows(request):
    """The steps in a request, seeing that its rows are whole and that equal things stand together."""
    (batch,) = decode_metrics(gzip.decompress(request.body))
    columns = {series.name: series for series in batch.series}
    assert list(columns) == ["tensormeter.step", "a", "b"]
    steps = columns["tensormeter.step"].values.tolist()
    assert columns["a"].values.tolist() == [float(step) for step in steps]
    assert columns["b"].times.tolist() == [step + 1 for step in steps]
    assert request.items == 3 * len(steps)
    return steps


def drain(outgoing, spool):
    """All that is due, accepted."""
    found = []
    while (request := outgoing.next(spool)) is not None:
        found.append(request)
        outgoing.accepted(spool, 0)
    return found


def test_without_a_pace_of_its_own_a_request_goes_as_it_is(outgoing, spool, put):
    put(2, 1)
    bodies = [spool.read(waiting.sequence) for waiting in spool.waiting("jsonl", 9)]
    assert drain(outgoing(max_upload_bytes_per_second="100"), spool) == bodies
    assert spool.pending() == 0


def test_requests_wait_for_others_and_go_together(outgoing, spool, put, clock):
    sender = outgoing(**WITH_DELAY)
    assert sender.next(spool) is None
    assert sender.due_in == 0
    put(2)
    assert sender.next(spool) is None
    assert sender.due_in == 3600
    clock.now += 3000
    put(1, 3)
    assert sender.next(spool) is None
    assert sender.due_in == 600
    clock.now += 600
    (request,) = drain(sender, spool)
    assert rows(request) == [0, 1, 2, 3, 4, 5]
    assert spool.pending() == 0
    put(1)  # and what comes then waits for as long
    assert sender.next(spool) is None
    assert sender.due_in == 3600


def test_enough_of_them_do_not_wait(outgoing, spool, put):
    sender = outgoing(**WITH_DELAY, max_export_batch_size="12")
    put(2)
    assert sender.next(spool) is None
    put(1, 3)
    (request,) = drain(sender, spool)
    assert rows(request) == [0, 1, 2]  # the next one would be too much
    assert sender.due_in == 3600
    sender.hurry = True
    assert [rows(request) for request in drain(sender, spool)] == [[3, 4, 5]]


def test_a_backlog_is_joined_without_a_delay(outgoing, spool, put):
    put(*[1] * 7)
    assert [rows(request) for request in drain(outgoing(max_export_batch_size="9"), spool)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]


def test_larger_requests_are_divided_between_rows(outgoing, spool, put):
    put(10)
    requests = drain(outgoing(max_export_batch_size="7"), spool)
    assert [step for request in requests for step in rows(request)] == list(range(10))
    assert max(request.items for request in requests) <= 7
    put(2)
    assert [len(rows(request)) for request in drain(outgoing(max_export_batch_size="1"), spool)] == [1, 1]
    assert spool.pending() == 0


def test_events_keep_their_place(outgoing, spool, put, put_event):
    put_event("start")
    put(1, 1)
    for name in ("x", "y"):
        put_event(name)
    put(1)
    sender = outgoing(max_export_batch_size="100")
    sender.hurry = True
    requests = drain(sender, spool)
    assert [request.signal for request in requests] == ["logs", "metrics", "logs", "metrics"]
    ((_, events),) = decode_events(gzip.decompress(requests[2].body))
    assert [event.name for event in events] == ["x", "y"]
    assert requests[2].items == 2


def test_the_next_agent_makes_the_same_request(outgoing, spool, put, clock):
    put(1, 1)
    first = outgoing(**WITH_DELAY)
    first.hurry = True
    sent = first.next(spool)
    put(1)  # and the agent is killed before it knows that the request was accepted
    second = outgoing(**WITH_DELAY)
    assert second.next(spool) == sent
    second.accepted(spool, 0)
    assert second.next(spool) is None
    second.hurry = True
    assert [rows(request) for request in drain(second, spool)] == [[2]]


def test_the_next_agent_goes_on_with_the_same_piece(outgoing, spool, put):
    put(8)
    whole = [request.id for request in drain(outgoing(max_export_batch_size="6"), spool)]
    assert len(whole) == 4
    put(8)
    sent = []
    for _ in range(
        4
    ):  # each agent delivers one piece, and is killed when the next one has arrived, but it does not know
        sender = outgoing(max_export_batch_size="6")
        sent.append(sender.next(spool))
        sender.accepted(spool, 0)
        again = sender.next(spool)
        assert again is None or again.id not in [request.id for request in sent]
    assert [step for request in sent for step in rows(request)] == list(range(8, 16))
    assert spool.pending() == 0


def test_halves_that_are_delivered_are_not_sent_by_the_next_agent(outgoing, spool, put):
    put(4)
    first = outgoing()
    first.next(spool)
    first.halved(spool, "too large")
    assert rows(first.next(spool)) == [0, 1]
    first.accepted(spool, 0)
    second = outgoing()
    assert [rows(request) for request in drain(second, spool)] == [[2, 3]]


def test_what_is_rejected_together_is_tried_alone(outgoing, spool, put):
    put(1, 1, 1)
    sender = outgoing(max_export_batch_size="100", **WITH_DELAY)
    sender.hurry = True
    assert len(rows(sender.next(spool))) == 3
    sender.rejected(spool, "there is something wrong in it")
    assert rows(sender.next(spool)) == [0]
    sender.accepted(spool, 0)
    assert rows(sender.next(spool)) == [1]
    sender.rejected(spool, "this one")
    assert [rows(request) for request in drain(sender, spool)] == [[2]]
    assert spool.quarantined_items() == 3
    put(1, 1)
    assert [rows(request) for request in drain(sender, spool)] == [[3, 4]]


def test_a_damaged_member_is_counted_and_the_others_go(outgoing, spool, put):
    put(1, 1, 1)
    with spool.transaction():
        spool._database.execute("UPDATE request SET items = 'x' WHERE sequence = 2")
    sender = outgoing(**WITH_DELAY)
    sender.hurry = True
    assert [rows(request) for request in drain(sender, spool)] == [[0, 2]]
    assert spool.losses() == {"damaged": 3}


def test_a_body_that_cannot_be_joined_goes_as_it_is(outgoing, spool, put):
    spool.put([Encoded("metrics", gzip.compress(b"\xff"), 1)], ["jsonl"], "p", {}, started=True, ended=False)
    put(1)
    sender = outgoing(**WITH_DELAY)
    sender.hurry = True
    assert gzip.decompress(sender.next(spool).body) == b"\xff"
    sender.rejected(spool, "nonsense")
    assert [rows(request) for request in drain(sender, spool)] == [[0]]


def test_a_disk_that_refuses_holds_up_nothing(outgoing, spool, put, tmp_path):
    (tmp_path / "exporters").write_text("a file where a folder should be")
    put(1, 1)
    sender = outgoing(**WITH_DELAY)
    sender.hurry = True
    assert [rows(request) for request in drain(sender, spool)] == [[0], [1]]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "schedule_delay",
            "0.5",
            r"jsonl.schedule_delay: expected seconds from the run's own .* 1, to 3600, got '0.5'",
        ),
        ("schedule_delay", "soon", "got 'soon'"),
        ("schedule_delay", "nan", "got 'nan'"),
        ("max_export_batch_size", "0", "max_export_batch_size: expected a number of points from 1, got '0'"),
        ("max_export_batch_size", "many", "got 'many'"),
        (
            "max_upload_bytes_per_second",
            "-1",
            "max_upload_bytes_per_second: expected a number of bytes from 1, got '-1'",
        ),
    ],
)
def test_a_pace_that_cannot_be_kept_is_refused_at_once(option, value, words):
    with pytest.raises(SettingsError, match=words):
        Settings(exporter_options={f"jsonl.{option}": value})


def test_each_destination_has_its_own_pace():
    options = {"jsonl.max_upload_bytes_per_second": "5", "otlp:eu.schedule_delay": "30", "otlp:eu.endpoint": "http://x"}
    settings = Settings(exporter_options=options, max_upload_bytes_per_second=7)
    assert settings.pace_of("jsonl").max_upload_bytes_per_second == 5
    assert not settings.pace_of("jsonl").own
    eu = settings.pace_of("otlp:eu")
    assert (eu.max_upload_bytes_per_second, eu.max_export_batch_size, eu.schedule_delay, eu.own) == (
        7,
        50_000,
        30,
        True,
    )
    assert settings.options_of("otlp:eu") == {"endpoint": "http://x"}
    assert settings.options_of("jsonl") == {}
