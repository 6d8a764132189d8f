"""Observable instruments: who calls the callbacks, when, and what happens if they misbehave."""

import os
import threading

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


def wait_for(condition, seconds=300):
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError(f"not within {seconds} s")


def observer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "tensormeter-observer"]


def test_callbacks_run_at_the_interval_on_a_thread_of_their_own(new_measured):
    measured = new_measured({"observe_interval": 0.02})
    seen = []

    def observe(options):
        seen.append((threading.current_thread().name, options))
        return [Observation(len(seen))]

    measured.meter.create_observable_gauge("a", [observe])
    wait_for(lambda: len(seen) >= 3)
    measured.provider.shutdown(timeout_millis=0)
    wait_for(lambda: not observer_threads())
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


def test_a_callback_that_fails_is_reported_once_and_stops_nobody(measured, warnings_logged):
    def fail(options):
        yield Observation(1, {"before": True})
        raise ValueError("broken")

    measured.meter.create_observable_gauge("a", [fail, lambda options: None, lambda options: [Observation(2)]])
    measured.meter.create_observable_gauge("b", [lambda options: [Observation("no number"), Observation(3)]])
    for _ in range(3):
        assert measured.provider._observer.flush(300)
    found = {series.name: series.values.tolist() for series in measured.series()}
    assert found == {"a": [2, 2, 2], "b": [3, 3, 3]}
    assert len([line for line in warnings_logged() if "callback" in line]) == 2
    assert measured.run._process.ring.drops() == {"unsupported_value": 3}


def test_callbacks_of_the_same_instrument_are_all_called(measured):
    for i in range(2):
        measured.meter.create_observable_gauge("a", [lambda options, i=i: [Observation(i, {"i": i})]])
    measured.provider._observer.flush(300)
    assert len(measured.series()) == 2


def test_a_callback_that_hangs_holds_up_nobody_for_longer_than_asked(new_measured):
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
    wait_for(lambda: not observer_threads())


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
    child = os.fork()
    if child == 0:
        code = 1
        try:
            alone = not observer_threads()
            counter.add(1)
            done = measured.provider._observer.flush(300)
            process = measured.run._process
            code = 0 if alone and done and process.parent and len(observer_threads()) == 1 else 2
        finally:
            os._exit(code)
    leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert measured.provider._observer.flush(300)
    assert set(measured.one("a").values.tolist()) == {parent}
