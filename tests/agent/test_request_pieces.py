"""The pieces that a destination is sent: whole requests, halves and parts, the same ones after a kill."""

import contextlib
import gzip
from contextlib import closing

import numpy as np
import pytest

from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SettingsError
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.settings import Settings

RESOURCE = {"service.name": "demo", "service.instance.id": "p1"}


@pytest.fixture
def put(spool):
    """Puts a request of so many rows (of three points each) into the spool."""
    steps = iter(range(10**6))

    def put(*rows):
        for count in rows:
            numbers = np.array([next(steps) for _ in range(count)])
            times = (numbers + 1).astype(np.uint64)
            series = [Gauge("tensormeter.step", times, numbers), Gauge("a", times, numbers * 1.0)]
            series += [Gauge("b", times, numbers * 2.0)]
            body = gzip.compress(encode_metrics([Batch(RESOURCE, series)]))
            spool.put([Encoded("metrics", body, 3 * count)], ["jsonl"], "p", {}, started=True, ended=False)

    return put


def rows(request):
    """The steps in a request, after a check that its rows are whole."""
    (batch,) = decode_metrics(gzip.decompress(request.body))
    columns = {series.name: series for series in batch.series}
    assert list(columns) == ["tensormeter.step", "a", "b"]
    steps = columns["tensormeter.step"].values.tolist()
    assert columns["a"].values.tolist() == [float(step) for step in steps]
    assert columns["b"].times.tolist() == [step + 1 for step in steps]
    assert request.items == 3 * len(steps)
    return steps


def drain(pieces, spool):
    """All requests that wait. Each is accepted."""
    requests = []
    while (request := pieces.next(spool)) is not None:
        requests.append(request)
        pieces.accepted(spool, 0)
    return requests


def test_requests_go_as_they_are_in_order(spool, put):
    put(2, 1)
    bodies = [spool.read(sequence) for sequence in (1, 2)]
    assert drain(RequestPieces("jsonl"), spool) == bodies
    assert spool.pending() == 0


def test_halves_that_are_delivered_are_not_sent_by_the_next_agent(spool, put):
    put(4)
    first = RequestPieces("jsonl")
    first.next(spool)
    first.halved(spool, "too large")
    assert rows(first.next(spool)) == [0, 1]
    first.accepted(spool, 0)
    assert [rows(request) for request in drain(RequestPieces("jsonl"), spool)] == [[2, 3]]
    assert spool.pending() == 0


def test_each_agent_goes_on_with_the_piece_that_the_last_one_was_sending(spool, put):
    """Each agent delivers one piece, and is killed before it has the answer about the next one."""
    put(8)
    first = RequestPieces("jsonl")
    for _ in range(2):
        first.next(spool)
        first.halved(spool, "too large")
    sent, under_way = [], first.next(spool)
    while spool.pending():
        agent = RequestPieces("jsonl")
        request = agent.next(spool)
        assert request == under_way
        if request.items > 6:
            agent.halved(spool, "too large")
            request = agent.next(spool)
        agent.accepted(spool, 0)
        sent.append(request)
        under_way = agent.next(spool)
    assert [step for request in sent for step in rows(request)] == list(range(8))
    assert len({request.id for request in sent}) == 4


def test_after_a_repair_of_the_spool_the_same_pieces_are_sent(spool, put, tmp_path):
    put(4)
    first = RequestPieces("jsonl")
    first.next(spool)
    first.halved(spool, "too large")
    first.accepted(spool, 0)
    second_half = first.next(spool)
    spool.close()
    with closing(open_repaired(spool.path, ["jsonl"], damage="pretended")) as repaired:
        assert drain(RequestPieces("jsonl"), repaired) == [second_half]
        assert repaired.pending() == 0


def test_items_that_a_receiver_left_out_are_counted_once_whichever_agent_sends_them(spool, put):
    put(4)
    first = RequestPieces("jsonl")
    first.next(spool)
    first.halved(spool, "too large")
    first.next(spool)
    first.accepted(spool, 2)
    second = RequestPieces("jsonl")
    second.next(spool)
    second.accepted(spool, 1)
    assert spool.losses() == {"refused": 3}


class Killed(BaseException):
    """A kill of the agent."""


class LimitedSpool(Spool):
    """A spool whose agent is killed before its next transaction after some."""

    transactions = 1_000_000  # opening needs some

    def transaction(self):
        self.transactions -= 1
        if self.transactions < 0:
            raise Killed
        return super().transaction()


@pytest.mark.parametrize("answer", ["halved", "rejected"])
def test_a_kill_before_any_transaction_loses_and_doubles_nothing(tmp_path, spool, put, answer):
    """The receiver leaves one item out, and refuses `b` or large requests."""
    put(3, 1)

    def deliver(spool, accepted):
        pieces = RequestPieces("jsonl")
        while (request := pieces.next(spool)) is not None:
            series = [series for batch in decode_metrics(gzip.decompress(request.body)) for series in batch.series]
            items = [(each.name, step) for each in series for step in (each.times - 1).tolist()]
            if answer == "halved" and request.items > 3:
                pieces.halved(spool, "too large")
            elif answer == "rejected" and "b" in {name for name, _ in items}:
                pieces.rejected(spool, "no b", divide=True)
            else:
                accepted[request.id] = items
                pieces.accepted(spool, int(("a", 0) in items))

    def points(requests):
        return sorted(item for items in requests.values() for item in items if item[0] in ("a", "b"))

    spool.close()
    whole = (tmp_path / "spool.sqlite").read_bytes()
    everything = [(name, step) for name in ("a", "b") for step in range(4)]
    for transactions in range(100):
        path = tmp_path / f"{transactions}.sqlite"
        path.write_bytes(whole)
        accepted = {}
        with closing(LimitedSpool(path)) as limited, contextlib.suppress(Killed):
            limited.transactions = transactions
            deliver(limited, accepted)
        is_over = limited.transactions >= 0
        with closing(Spool(path)) as after:
            deliver(after, accepted)
            set_aside = sum(items for _, _, items in after.rejections())
            assert (after.pending(), after.losses()) == (0, {"refused": 1})
        assert points(accepted) == (everything if answer == "halved" else everything[:4])
        assert set_aside == (0 if answer == "halved" else 4)
        if is_over:
            return
    pytest.fail("it is never over")


def test_a_request_that_is_evicted_while_it_is_divided_damages_nothing(spool, put):
    put(4, 1)
    sender = RequestPieces("jsonl")
    sender.next(spool)
    spool.discard(1, "spool_full_scalars")
    sender.halved(spool, "too large")
    sender.accepted(spool, 0)
    assert [rows(request) for request in drain(sender, spool)] == [[4]]
    spool.check()


def test_a_rejected_request_is_set_aside_and_the_next_one_goes(spool, put):
    put(1, 1)
    sender = RequestPieces("jsonl")
    sender.next(spool)
    sender.rejected(spool, "there is something wrong in it")
    assert [rows(request) for request in drain(sender, spool)] == [[1]]
    assert spool.quarantined_items() == 3


def test_a_damaged_request_is_counted_and_the_others_go(spool, put):
    put(1, 1, 1)
    with spool.transaction():
        spool._database.execute("UPDATE request SET items = 'x' WHERE sequence = 2")
    assert [rows(request) for request in drain(RequestPieces("jsonl"), spool)] == [[0], [2]]
    assert spool.losses() == {"damaged": 3}


@pytest.mark.parametrize("value", ["-1", "0", "many", "1.5"])
def test_an_upload_rate_that_cannot_be_kept_is_refused_at_once(value):
    with pytest.raises(
        SettingsError, match=rf"max_upload_bytes_per_second: expected a positive number .*, got '{value}'"
    ):
        Settings(exporter_options={"jsonl.max_upload_bytes_per_second": value})


def test_each_destination_has_its_own_upload_rate():
    options = {"jsonl.max_upload_bytes_per_second": "5", "otlp:eu.endpoint": "http://x"}
    settings = Settings(exporter_options=options, max_upload_bytes_per_second=7)
    assert settings.upload_rate_of("jsonl") == 5
    assert settings.upload_rate_of("otlp:eu") == 7
    assert Settings().upload_rate_of("jsonl") is None
    assert settings.options_of("otlp:eu") == {"endpoint": "http://x"}
    assert settings.options_of("jsonl") == {}


@pytest.mark.parametrize("option", ["schedule_delay", "max_export_batch_size"])
def test_size_and_delay_belong_to_the_run(option):
    words = rf"otlp:eu\.{option}: cannot be set for a single destination; set {option} \(TENSORMETER_{option.upper()}\) for the whole run"
    with pytest.raises(SettingsError, match=words):
        Settings(exporter_options={f"otlp:eu.{option}": "30"})


def test_a_run_that_was_recorded_with_them_is_delivered_without_them():
    recorded = Settings().to_json() | {"exporter_options": {"otlp.schedule_delay": "30", "otlp.endpoint": "http://x"}}
    assert Settings.from_json(recorded).exporter_options == {"otlp.endpoint": "http://x"}
