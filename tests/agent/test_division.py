"""Requests that a receiver refuses for one item: they are divided until it stands alone, once each, despite kills."""

import gzip
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from tensormeter.agent.delivery.division import piece_of
from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.spool.request import Encoded
from tensormeter.otlp.batch import Batch, Event, Gauge, Histogram, Temporality
from tensormeter.otlp.decode import decode_events
from tensormeter.otlp.encode import encode_events, encode_metrics

RESOURCE = {"service.name": "demo", "service.instance.id": "p1"}


@pytest.fixture
def agent():
    """Another agent's view of the destination."""
    return lambda *signals: RequestPieces("otlp", signals or ("metrics",))


@pytest.fixture
def put(spool):
    """Puts a request with gauges of these values, and distributions under names that begin with `d`."""
    times = itertools.count(1000)

    def put(**metrics):
        series = []
        rows = max(len(values) for values in metrics.values())
        at = np.array([next(times) for _ in range(rows)], np.uint64)
        for name, values in metrics.items():
            column = np.array(values, np.float64)
            if name.startswith("d"):
                buckets = np.ones((len(column), 2), np.uint64)
                counts = buckets.sum(axis=1)
                bounds = np.array([0.0])
                series.append(
                    Histogram(
                        name,
                        at[: len(column)],
                        start_times=at[: len(column)],
                        counts=counts,
                        bounds=bounds,
                        buckets=buckets,
                        sums=column,
                        minima=column,
                        maxima=column,
                        temporality=Temporality.DELTA,
                    )
                )
            else:
                series.append(Gauge(name, at[: len(column)], column))
        batch = Batch(RESOURCE, series)
        body = gzip.compress(encode_metrics([batch]))
        spool.put([Encoded("metrics", body, batch.points)], ["otlp"], "p", {}, started=True, ended=False)

    return put


def points(request):
    """(metric, time, value) of each point of a request, by the bytes that go out."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    sent = []
    for resource in ExportMetricsServiceRequest.FromString(gzip.decompress(request.body)).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                for point in data.data_points:
                    value = point.sum if metric.WhichOneof("data") == "histogram" else point.as_double
                    sent.append((metric.name, point.time_unix_nano, value))
    assert len(sent) == request.items
    return sent


def deliver(sender, spool, refuses, most=10_000):
    """Send what there is to a receiver that refuses a request with such a point in it. Returns what it took, and the posts."""
    taken, posts = [], 0
    while posts < most and (request := sender.next(spool)) is not None:
        posts += 1
        bad = [point for point in points(request) if refuses(*point)]
        if bad:
            sender.rejected(spool, f"cannot take {bad[0][0]}", divide=True)
        else:
            taken += points(request)
            sender.accepted(spool, 0)
    return taken, posts


def set_aside(spool):
    return {reason: items for _, reason, items in spool.rejections()}


def test_a_metric_that_is_refused_costs_its_neighbours_nothing(agent, spool, put):
    put(a=[1, 2], b=[3, 4], dw=[5, 6], c=[7, 8])
    taken, _ = deliver(agent(), spool, lambda name, *_: name == "dw")
    assert sorted(value for _, _, value in taken) == [1, 2, 3, 4, 7, 8]
    assert set_aside(spool) == {"dw (delta histogram): cannot take dw": 2}
    assert spool.pending() == 0


def test_a_point_that_is_refused_stands_alone(agent, spool, put):
    put(a=[*range(100)], b=[*range(100)])
    taken, posts = deliver(agent(), spool, lambda name, _, value: (name, value) == ("b", 63))
    assert len(taken) == 199
    assert set_aside(spool) == {"b (gauge): cannot take b": 1}
    assert posts < 30, "by bisection, not one by one"


def test_points_stay_in_order(agent, spool, put):
    put(a=[*range(64)])
    taken, _ = deliver(agent(), spool, lambda _, __, value: value in (0, 20, 63))
    assert [value for _, _, value in taken] == [value for value in range(64) if value not in (0, 20, 63)]


@pytest.mark.parametrize(
    ("rows", "old"), [(1000, 500), (1000, 510), (1000, 999), (40, 25), (200, 75), (100, 50), (3, 2)]
)
def test_points_at_the_beginning_that_are_too_old_do_not_cost_the_rest(agent, spool, put, rows, old):
    put(a=[*range(rows)])
    taken, posts = deliver(agent(), spool, lambda _, __, value: value < old)
    assert sorted(value for _, _, value in taken) == [*range(old, rows)]
    assert posts < 400, "a metric that is refused throughout is not tried point by point"
    assert spool.quarantined_items() == old


def test_many_kinds_that_are_refused_throughout_take_few_requests(agent, spool, put):
    put(**{f"d{number}": [1.0] * 20 for number in range(100)}, a=[1.0] * 20)
    taken, posts = deliver(agent(), spool, lambda name, *_: name.startswith("d"))
    assert len(taken) == 20
    assert posts < 100
    assert spool.quarantined_items() == 2000


def test_a_receiver_that_never_takes_a_kind_gets_few_requests_for_one(agent, spool, put):
    sender = agent()
    counts = []
    for _ in range(8):
        put(**{f"m{number}": [1.0, 2.0] for number in range(30)}, **{f"d{number}": [1.0] for number in range(20)})
        taken, posts = deliver(sender, spool, lambda name, *_: name.startswith("d"))
        assert len(taken) == 60
        counts.append(posts)
    assert counts[0] < 50
    assert max(counts[1:]) <= 4, "the whole, what it takes, and what it does not take, and an item of that"
    assert counts[-1] == 3
    assert spool.quarantined_items() == 8 * 20


def test_a_receiver_that_takes_a_kind_again_gets_it(agent, spool, put):
    sender = agent()
    for _ in range(4):
        put(a=[1.0], d=[2.0])
        deliver(sender, spool, lambda name, *_: name == "d")
    put(a=[3.0], d=[4.0], e=[5.0])
    taken, _ = deliver(sender, spool, lambda name, *_: name == "e")
    assert {name for name, *_ in taken} == {"a", "d"}
    put(a=[3.0], d=[4.0])
    taken, posts = deliver(sender, spool, lambda name, *_: False)
    assert (len(taken), posts) == (2, 1)


def test_a_kind_of_which_most_is_taken_is_never_given_up(agent, spool, put):
    sender = agent()
    for _ in range(20):
        put(a=[-1.0])
        put(a=[1.0])
        deliver(sender, spool, lambda _, __, value: value < 0)
    put(a=[2.0, -1.0])
    taken, _ = deliver(sender, spool, lambda _, __, value: value < 0)
    assert [value for _, _, value in taken] == [2.0]


def test_among_kinds_that_are_refused_one_that_is_taken_again_is_found(agent, spool, put):
    sender = agent()
    for _ in range(3):
        put(a=[1.0], d=[2.0], e=[3.0])
        deliver(sender, spool, lambda name, *_: name in "de")
    accepted = []
    for _ in range(20):
        put(a=[1.0], d=[2.0], e=[3.0])
        taken, _ = deliver(sender, spool, lambda name, *_: name == "d")
        accepted.append({name for name, *_ in taken})
    assert accepted[-1] == {"a", "e"}


@pytest.mark.parametrize("seed", range(20))
def test_an_agent_that_is_killed_anywhere_sends_nothing_twice_and_loses_nothing(agent, spool, put, seed):
    """Killed between an answer and the next request; what is under way at that moment is the receiver's to tell apart."""
    chance = random.Random(seed)
    bad = {(chance.choice("abcde"), value) for value in range(0, 40, chance.choice([3, 11]))}
    kinds = set(chance.sample("abcde", chance.choice([0, 1, 2])))

    def refuses(name, _, value):
        return name in kinds or (name, value) in bad

    value = itertools.count()
    expected = []
    for _ in range(4):
        metrics = {name: [next(value) % 40 for _ in range(chance.randint(1, 12))] for name in "abcde"}
        expected += [(name, float(number)) for name, values in metrics.items() for number in values]
        put(**metrics)
    taken = []
    while spool.pending():
        some, _ = deliver(agent(), spool, refuses, most=chance.randint(1, 7))
        taken += some
    good = Counter(point for point in expected if not refuses(point[0], 0, point[1]))
    assert Counter((name, value) for name, _, value in taken) == good
    assert spool.quarantined_items() == len(expected) - good.total()


def test_a_piece_that_is_too_large_is_divided_as_well(agent, spool, put):
    put(a=[*range(8)], b=[*range(8)])
    sender = agent()
    taken = []
    while (request := sender.next(spool)) is not None:
        if any(name == "b" and value == 3 for name, _, value in points(request)):
            sender.rejected(spool, "bad", divide=True)
        elif request.items > 3:
            sender.halved(spool, "too large")
        else:
            taken += points(request)
            sender.accepted(spool, 0)
    assert len(taken) == 15
    assert spool.quarantined_items() == 1


def test_without_the_wish_to_divide_a_request_is_set_aside_whole(agent, spool, put):
    put(a=[1.0], b=[2.0])
    sender = agent()
    sender.next(spool)
    sender.rejected(spool, "409 Conflict")
    assert set_aside(spool) == {"a (gauge), b (gauge): 409 Conflict": 2}


def test_a_log_record_that_is_refused_stands_alone(agent, spool):
    events = [Event(f"e{number}", 5 + number, {}) for number in range(9)]
    body = gzip.compress(encode_events(RESOURCE, events))
    spool.put([Encoded("logs", body, 9)], ["otlp"], "p", {}, started=True, ended=False)
    sender = agent("logs")
    taken = []
    while (request := sender.next(spool)) is not None:
        ((_, records),) = decode_events(gzip.decompress(request.body))
        names = [record.name for record in records]
        if "e4" in names:
            sender.rejected(spool, "bad", divide=True)
        else:
            taken += names
            sender.accepted(spool, 0)
    assert taken == [f"e{number}" for number in range(9) if number != 4]
    assert set_aside(spool) == {"e4: bad": 1}


def test_what_is_in_a_request_is_said_in_words(spool, put):
    put(a=[1.0, 2.0], dw=[1.0])
    _, request = spool.next("otlp")
    items = piece_of(request).items
    assert {str(kind): count for kind, count in items.items()} == {"a (gauge)": 2, "dw (delta histogram)": 1}


def test_a_body_that_cannot_be_read_is_set_aside(agent, spool):
    spool.put([Encoded("metrics", gzip.compress(b"\xff"), 7)], ["otlp"], "p", {}, started=True, ended=False)
    sender = agent()
    sender.next(spool)
    sender.rejected(spool, "400", divide=True)
    assert sender.next(spool) is None
    assert set_aside(spool) == {"an unreadable body: 400": 7}
