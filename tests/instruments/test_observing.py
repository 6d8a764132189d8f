"""Observable instruments: who calls the callbacks, when, and what happens if they misbehave."""

import itertools
import os
import threading
from asyncio import CancelledError

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View

from support.forks import fork
from support.waiting import wait_for
from tensormeter.instruments import observing
from tensormeter.instruments import provider as provider_module


def observer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "tensormeter-observer"]


def test_callbacks_run_at_the_interval_on_a_thread_of_their_own(new_measured):
    measured = new_measured({"observe_interval": 0.02})
    seen = []

    def observe(options):
        seen.append((threading.current_thread().name, options))
        return [Observation(len(seen))]

    measured.meter.create_observable_gauge("a", [observe])
    wait_for(lambda: len(seen) >= 3, "three observations")
    measured.provider.shutdown(timeout_millis=0)
    wait_for(lambda: not observer_threads(), "the observer has ended")
    assert {name for name, _ in seen} == {"tensormeter-observer"}
    assert seen[0][1] == CallbackOptions(timeout_millis=20.0)
    values = measured.one("a").values.tolist()
    assert values[:3] == [1, 2, 3]


def test_without_observables_there_is_no_thread(measured):
    measured.meter.create_counter("a").add(1)
    assert observer_threads() == []
    assert measured.provider._observer.flush(300)


def test_generators_are_sent_the_options(measured):
    received = []

    def generate():
        options = yield []
        for i in range(2):
            received.append(options)
            options = yield [Observation(i + 10)]

    measured.meter.create_observable_counter("a", [generate()])
    for _ in range(4):  # it ends before
        assert measured.provider._observer.flush(300)
    assert measured.one("a").values.tolist() == [10, 11]
    assert [type(options) for options in received] == [CallbackOptions] * 2


def observed(measured, rounds=1):
    """The last value of each series after some rounds, by metric and the values of the attributes."""
    for _ in range(rounds):
        assert measured.provider._observer.flush(300)
    return {(series.name, *series.attributes.values()): series.values.tolist()[-1] for series in measured.series()}


def test_a_callback_that_fails_is_reported_once_and_stops_no_other(measured, warnings_logged):
    def fail(options):
        yield Observation(1, {"before": True})
        raise ValueError("broken")

    measured.meter.create_observable_gauge("a", [fail, lambda options: None, lambda options: [Observation(2)]])
    measured.meter.create_observable_gauge("b", [lambda options: [Observation("no number"), Observation(3)]])
    for _ in range(3):
        assert measured.provider._observer.flush(300)
    values = {(series.name, *series.attributes): series.values.tolist() for series in measured.series()}
    assert values == {("a", "before"): [1, 1, 1], ("a",): [2, 2, 2], ("b",): [3, 3, 3]}
    assert len([line for line in warnings_logged() if "callback" in line]) == 2
    assert measured.run._process.ring.drops() == {"unsupported_value": 3}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("gone"), StopIteration(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), CancelledError()],
)
@pytest.mark.parametrize("kind", ["observable_gauge", "observable_counter", "observable_up_down_counter"])
def test_values_before_an_exception_of_a_callback_are_kept(measured, warnings_logged, kind, error):
    def fail(options):
        raise error

    class Failing:
        def __call__(self, options):
            self.left = 3
            return self

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if self.left == 0:
                raise error
            return Observation(self.left, {"k": str(self.left)})

    create = getattr(measured.meter, f"create_{kind}")
    create("a", [fail, Failing(), lambda options: [Observation(7)]])
    create("b", [lambda options: [Observation(8)]])
    stops = isinstance(error, StopIteration)  # which is how an iterator ends
    assert observed(measured, rounds=2) == {("a", "2"): 2, ("a", "1"): 1, ("a",): 7, ("b",): 8}
    assert len(warnings_logged()) == (1 if stops else 2)
    assert len(observer_threads()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_a_callback_of_a_reader_ends_the_program(new_measured, error):
    """A reader that is asked on the main thread calls the callbacks there."""
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])

    def interrupted(options):
        if threading.current_thread() is threading.main_thread():
            raise error
        return []

    measured.meter.create_observable_gauge("a", [interrupted])
    with pytest.raises(error):
        reader.collect()


class Hostile:
    """A mapping, or a value, whose attributes raise."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(name)

    def keys(self):
        raise RuntimeError("keys")


class Duck:
    """An observation of the user's own making."""

    value = 5
    attributes = {"duck": "yes"}  # noqa: RUF012


@pytest.mark.parametrize("bad", [3, None, "text", (1, {}), object(), {"value": 1}, Hostile(), b"x"])
def test_values_that_are_no_observations_are_left_out_alone(measured, warnings_logged, bad):
    measured.meter.create_observable_gauge(
        "a", [lambda options: [Observation(1, {"k": "before"}), bad, bad, Duck(), Observation(2, {"k": "after"})]]
    )
    assert observed(measured, rounds=2) == {("a", "before"): 1, ("a", "yes"): 5, ("a", "after"): 2}
    (line,) = warnings_logged()
    assert "'a'" in line
    assert type(bad).__name__ in line


@pytest.mark.parametrize("bad", [None, "1", 1j, [1], {}, object(), Hostile(), float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["observable_gauge", "observable_counter", "observable_up_down_counter"])
def test_an_observation_whose_value_is_bad_is_left_out_alone(new_measured, warnings_logged, kind, bad):
    """Also where a view makes one stream of all of them."""
    measured = new_measured(views=[View(instrument_name="one", attribute_keys=set())])

    def observe(options):
        return [Observation(1, {"k": "x"}), Observation(bad, {"k": "y"}), Observation(2, {"k": "z"})]

    for name in ("a", "one"):
        getattr(measured.meter, f"create_{kind}")(name, [observe])
    values = observed(measured, rounds=2)
    total = 2 if kind == "observable_gauge" else 3
    good = {("a", "x"): 1, ("a", "z"): 2, ("one",): total}
    if kind == "observable_gauge" and isinstance(bad, float):  # which are values of a gauge
        assert values.pop(("a", "y")) is not None
        assert values == good
        return
    assert values == good
    assert len(warnings_logged()) == 2
    assert measured.run._process.ring.drops() == {"unsupported_value": 4} or isinstance(bad, Hostile)


@pytest.mark.parametrize("bad", ["text", 7, [("k", "v")], Hostile()])
def test_an_observation_whose_attributes_are_bad_is_left_out_alone(measured, warnings_logged, bad):
    """Without them it would count for the stream that has none."""
    measured.meter.create_observable_counter(
        "a", [lambda options: [Observation(1), Observation(10, bad), Observation(2, {"k": "v"})]]
    )
    assert observed(measured, rounds=2) == {("a",): 1, ("a", "v"): 2}
    assert len(warnings_logged()) == 1


def test_a_single_observation_counts_and_is_reported(measured, warnings_logged):
    measured.meter.create_observable_gauge("a", [lambda options: Observation(3)])
    assert observed(measured, rounds=2) == {("a",): 3}
    assert len(warnings_logged()) == 1


def test_a_single_callback_is_called_and_reported(measured, warnings_logged):
    measured.meter.create_observable_gauge("a", lambda options: [Observation(3)])
    assert observed(measured) == {("a",): 3}
    assert len(warnings_logged()) == 1


def test_a_generator_without_an_end_is_cut_off(measured, warnings_logged, monkeypatch):
    monkeypatch.setattr(observing, "_MOST_OBSERVATIONS", 50)

    def endless(options):
        for number in itertools.count():
            yield Observation(number, {"k": str(min(number, 60))})

    measured.meter.create_observable_gauge("a", [endless, lambda options: [Observation(7)]])
    values = observed(measured, rounds=2)
    assert values.pop(("a",)) == 7
    assert values == {("a", str(number)): number for number in range(50)}
    (line,) = warnings_logged()
    assert "more than 50" in line


def test_a_reader_gets_what_a_bad_observation_leaves(new_measured):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])

    def observe(options):
        yield Observation(1, {"k": "x"})
        yield Observation(None, {"k": "y"})
        yield Observation(2, "text")
        yield 7
        yield Observation(3, {"k": "z"})
        raise RuntimeError("broken")

    measured.meter.create_observable_counter("a", [observe])
    (metric,) = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert {point.attributes["k"]: point.value for point in metric.data.data_points} == {"x": 1, "z": 3}


def test_callbacks_of_the_same_instrument_are_all_called(measured):
    for i in range(2):
        measured.meter.create_observable_gauge("a", [lambda options, i=i: [Observation(i, {"i": i})]])
    measured.provider._observer.flush(300)
    assert len(measured.series()) == 2


def test_a_callback_that_hangs_delays_no_caller_beyond_its_timeout(new_measured):
    measured = new_measured()
    entered, leave = threading.Event(), threading.Event()

    def hang(options):
        entered.set()
        leave.wait(300)
        return []

    measured.meter.create_observable_gauge("a", [hang])
    assert not measured.provider._observer.flush(0.01)
    assert entered.wait(300)
    assert not measured.provider.force_flush(timeout_millis=10)
    assert not measured.provider.shutdown(timeout_millis=10)
    leave.set()
    wait_for(lambda: not observer_threads(), "the observer has ended")


def test_a_callback_that_hangs_holds_up_the_end_for_as_long_as_any(new_measured, warnings_logged, monkeypatch):
    """Five seconds, which are less here, and not the whole timeout of the shutdown."""
    monkeypatch.setattr(provider_module, "_LAST_OBSERVATION", 0.05)
    measured = new_measured()
    leave = threading.Event()
    measured.meter.create_observable_gauge("a", [lambda options: leave.wait(300) and []])
    assert not measured.provider.shutdown(timeout_millis=3_600_000)
    assert any("did not return within 0.05 s" in line for line in warnings_logged())
    leave.set()
    wait_for(lambda: not observer_threads(), "the observer has ended")


def test_a_callback_may_measure_and_flush_and_not_shut_down(measured, warnings_logged):
    counter = measured.meter.create_counter("count")
    results = []

    def observe(options):
        counter.add(1)
        results.append((measured.provider.force_flush(timeout_millis=1), measured.provider.shutdown()))
        return [Observation(1)]

    measured.meter.create_observable_gauge("a", [observe])
    assert measured.provider._observer.flush(300)
    assert results == [(False, False)]
    assert {series.name for series in measured.series()} == {"count", "a"}


def test_the_end_of_the_run_is_observed(measured):
    measured.meter.create_observable_gauge("a", [lambda options: [Observation(1)]])
    measured.run.finish()
    assert measured.one("a").values.tolist() == [1]


def test_readers_observe_for_themselves(new_measured):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])
    calls = []

    def observe(options):
        calls.append(threading.current_thread())
        return [Observation(len(calls), {"k": "v"})]

    measured.meter.create_observable_counter("a", [observe])
    data = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.data.data_points[0].value == 1
    assert metric.data.data_points[0].attributes == {"k": "v"}
    measured.provider._observer.flush(300)
    assert measured.one("a").values.tolist() == [2]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_observes_once_it_measures(measured):
    """Its thread is its own, and locks that the parent's held are free."""
    counter = measured.meter.create_counter("count")
    inside, leave = threading.Event(), threading.Event()

    def observe(options):
        if os.getpid() == parent:
            inside.set()
            leave.wait(300)
        return [Observation(os.getpid())]

    parent = os.getpid()
    measured.meter.create_observable_gauge("a", [observe])
    measured.provider._observer.flush(0)
    assert inside.wait(300)

    def work():
        assert not observer_threads()
        counter.add(1)
        assert measured.provider._observer.flush(300)
        assert measured.run._process.parent
        assert len(observer_threads()) == 1

    child = fork(work)
    leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert measured.provider._observer.flush(300)
    assert set(measured.one("a").values.tolist()) == {parent}
