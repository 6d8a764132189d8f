"""Exporters that raise exceptions: the item that causes one is quarantined, and everything around it is delivered."""

import asyncio
import errno
import gzip
import threading

import numpy as np
import pytest

import tensormeter.agent.delivery.delivery as delivery_module
from tensormeter.agent.delivery.delivery import Delivery
from tensormeter.agent.spool.request import Encoded
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, Retry
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Text
from tensormeter.outages import is_outage
from tensormeter.settings import Settings
from tensormeter_exporters.otlp_series import read_metrics

RESOURCE = {"service.name": "demo", "service.instance.id": "p1"}


class Place:
    """The items that exporters have written, and the number of exporters."""

    def __init__(self):
        self.values = []
        self.texts = []
        self.attempts = 0
        self.exporters = 0
        self.shut_down = 0


def items_of(request):
    body = gzip.decompress(request.body)
    if request.signal == "logs":
        return [event.body["text"] for _, events in decode_events(body) for event in events]
    return [value for batch in decode_metrics(body) for gauge in batch.gauges for value in gauge.values.tolist()]


@pytest.fixture
def deliver(tmp_path, monkeypatch):
    """Starts a delivery to an exporter that calls `act` with the items of each request, or the `whole` one, before it writes them."""
    deliveries = []

    def start(act, place=None, *, whole=False):
        place = place or Place()

        class Exporter:
            def __init__(self, config):
                place.exporters += 1

            def export(self, request):
                place.attempts += 1
                items = items_of(request)
                outcome = act(request if whole else items)
                if outcome is not None:
                    return outcome
                (place.texts if request.signal == "logs" else place.values).extend(items)
                return Accepted()

            def shutdown(self):
                place.shut_down += 1

        monkeypatch.setattr(delivery_module, "load_exporter", lambda destination: Exporter)
        delivery = Delivery("own", tmp_path / "spool.sqlite", Settings(), lambda: None, lambda delay: 0.001)
        deliveries.append(delivery)
        delivery.start()
        return delivery, place

    yield start
    for delivery in deliveries:
        delivery.stop(30)


def put(spool, *encoded):
    spool.put(encoded, ["own"], "p", {}, started=True, ended=False)


def metrics(*values):
    times = np.arange(1, len(values) + 1, dtype=np.uint64)
    body = encode_metrics([Batch(RESOURCE, [Gauge("a", times, np.array(values, np.float64))])])
    return Encoded("metrics", gzip.compress(body), len(values))


def logs(*texts):
    events = [Text("key", text).event(number, number) for number, text in enumerate(texts)]
    return Encoded("logs", gzip.compress(encode_events(RESOURCE, events)), len(texts))


def failing_at(bad, error):
    def act(items):
        if bad in items:
            raise error

    return act


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cannot write this one"),
        OSError(errno.ENAMETOOLONG, "File name too long"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        OSError("cannot identify image file"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        Unprintable(),
        ValueError("a lone surrogate \ud800 and much more " + "x" * 100_000),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_request_of_three_that_raises_is_set_aside(deliver, spool, wait_for, error):
    put(spool, metrics(1), metrics(2), metrics(3))
    delivery, place = deliver(failing_at(2, error))
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert place.values == [1, 3]
    ((_, reason, items),) = spool.rejections()
    assert items == 1
    assert reason.startswith("a (gauge): ")
    assert type(error).__name__ in reason
    assert len(reason) < 1000
    assert place.attempts == 2 + 3, "three attempts at the one that raises"
    wait_for(lambda: not delivery.failures, "delivery works")


def test_one_item_of_a_request_that_raises_is_set_aside(deliver, spool, wait_for):
    put(spool, metrics(*range(100)), logs(*"abcdefgh"), metrics(100, 101))
    acts = failing_at(63, ValueError("no 63")), failing_at("c", TypeError("no c"))

    def act(items):
        for fail in acts:
            fail(items)

    _, place = deliver(act)
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert place.values == [value for value in range(102) if value != 63]
    assert place.texts == list("abdefgh")
    reasons = [reason for _, reason, _ in spool.rejections()]
    assert sorted(reasons) == [
        "a (gauge): the exporter raised ValueError: no 63",
        "tensormeter.text: the exporter raised TypeError: no c",
    ]
    assert spool.quarantined_items() == 2
    assert place.attempts < 60, "by bisection, not one by one"


def test_values_around_a_bad_one_keep_their_steps(deliver, spool, wait_for):
    """A destination that is not OTLP finds the step of a value in the same request, however it is divided."""
    times = np.arange(1, 41, dtype=np.uint64)
    columns = {"loss": times * 0.5, "bad": times * 1.0, "acc": times * 2.0, "x": times * 4.0}
    gauges = [Gauge(name, times, values.astype(np.float64)) for name, values in columns.items()]
    # More points of one metric at one time, and a row without values.
    gauges += [Gauge("gpu", times, times * 8.0, attributes={"n": n}) for n in range(3)]
    gauges.append(Gauge("tensormeter.step", np.arange(1, 42, dtype=np.uint64), np.arange(1, 42) * 100))
    body = encode_metrics([Batch(RESOURCE, gauges)])
    put(spool, Encoded("metrics", gzip.compress(body), sum(len(gauge.times) for gauge in gauges)))
    steps = []

    def act(request):
        rows = [
            (stepped.name, step, value)
            for stepped in read_metrics(request)
            for step, value in zip(stepped.steps.tolist(), stepped.series.values.tolist(), strict=True)
        ]
        if ("bad", 2000, 20.0) in rows or ("gpu{n=1}", 3000, 240.0) in rows:
            raise ValueError("cannot write this one")
        steps.extend(rows)

    deliver(act, whole=True)
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    expected = {
        (name, int(at) * 100, float(v)) for name, vs in columns.items() for at, v in zip(times, vs, strict=True)
    }
    expected |= {(f"gpu{{n={n}}}", int(at) * 100, at * 8.0) for n in range(3) for at in times}
    assert len(steps) == len(set(steps))
    assert expected - set(steps) == {("bad", 2000, 20.0), ("gpu{n=1}", 3000, 240.0)}
    assert set(steps) <= expected
    assert spool.quarantined_items() == 2


def test_several_bad_items_of_a_request_are_set_aside_alone(deliver, spool, wait_for):
    put(spool, logs("bad", "1", "2", "bad", "3", "bad"), logs("4"))
    _, place = deliver(failing_at("bad", ZeroDivisionError()))
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert place.texts == ["1", "2", "3", "4"]
    assert spool.quarantined_items() == 3


@pytest.mark.parametrize(
    "outage",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        TimeoutError("too slow"),
        OSError(errno.ENETUNREACH, "unreachable"),
        OSError(errno.ENOSPC, "disk full"),
        OSError(errno.EDQUOT, "over quota"),
        PermissionError(errno.EACCES, "not yours"),
        ModuleNotFoundError("No module named 'sink'", name="sink"),
        SettingsError("no password"),
    ],
    ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")),
)
def test_an_outage_is_retried_without_a_limit(deliver, spool, wait_for, outage):
    put(spool, metrics(1), metrics(2))
    left = [20]

    def act(items):
        left[0] -= 1
        if left[0] >= 0:
            raise outage

    _, place = deliver(act)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert place.values == [1, 2]
    assert spool.quarantined_items() == 0


def chained(text, cause, **options):
    """An exception that a library raises because of another one."""
    try:
        try:
            raise cause
        except OSError as error:
            raise RuntimeError(text) from options.get("explicit_cause", error)
    except RuntimeError as error:
        return error


def test_a_wrapped_network_error_is_an_outage():
    reset = ConnectionResetError(errno.ECONNRESET, "reset")
    assert is_outage(chained("the library's own words", reset))
    assert not is_outage(chained("the item is wrong", reset, explicit_cause=None))
    assert not is_outage(chained("the item is wrong", FileNotFoundError(errno.ENOENT, "no such file")))


def test_an_exporter_left_in_a_broken_state_is_replaced_before_items_are_set_aside(deliver, spool, wait_for):
    put(spool, metrics(1), metrics(2), metrics(3))
    place = Place()

    def act(items):
        if place.exporters == 1 and items != [1.0]:
            raise RuntimeError("the connection object is broken")

    deliver(act, place)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert place.values == [1, 2, 3]
    assert (place.exporters, place.shut_down) == (2, 1)
    assert spool.quarantined_items() == 0


@pytest.mark.parametrize("outcome", ["accepted", 0, Accepted("many"), Retry("later", "soon")])
def test_something_else_than_an_outcome_is_an_exception(deliver, spool, wait_for, outcome):
    put(spool, metrics(1), metrics(2), metrics(3))
    _, place = deliver(lambda items: outcome if 2 in items else None)
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert place.values == [1, 3]
    assert spool.quarantined_items() == 1


def test_an_exporter_that_always_raises_holds_nothing_up(deliver, spool, wait_for):
    put(spool, *[metrics(*range(1000)) for _ in range(20)])
    deliver(lambda items: 1 / 0)
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert spool.quarantined_items() == 20_000


def test_another_agent_goes_on_with_the_division(deliver, spool, wait_for):
    put(spool, logs(*"abcdefghijklmnop"))
    reached, halt = threading.Event(), threading.Event()

    def act(items):
        if "f" in items:
            raise ValueError("no f")
        if "k" in items and not halt.is_set():
            reached.set()
            return Retry("not yet")
        return None

    first, place = deliver(act)
    wait_for(reached.is_set, "the first half is dealt with")
    first.stop(30)
    halt.set()
    deliver(act, place)
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert place.texts == list("abcdeghijklmnop"), "each once, in order"
    assert spool.quarantined_items() == 1


def test_an_exporter_that_cannot_be_made_once_is_made_again(deliver, spool, wait_for, monkeypatch):
    monkeypatch.setattr(delivery_module, "_TROUBLE_DELAY", 0.001)
    put(spool, metrics(1))
    made = []
    place = Place()

    class Exporter:
        def __init__(self, config):
            made.append(config)
            if len(made) < 3:
                raise SystemExit(1)

        def export(self, request):
            place.values.extend(items_of(request))
            return Accepted()

        def shutdown(self):
            raise SystemExit(1)

    monkeypatch.setattr(delivery_module, "load_exporter", lambda destination: Exporter)
    delivery = Delivery("own", spool.path, Settings(), lambda: None, lambda delay: 0.001)
    delivery.start()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    delivery.stop(30)
    assert place.values == [1]
