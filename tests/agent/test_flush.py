"""Flushing delivers at once, however long batches are collected otherwise: it would take an hour here."""

import os
import signal
import threading
from collections import Counter

import pytest
from opentelemetry.metrics import Observation

import tensormeter
from support.forks import call_in_child, fork
from support.spools import take_requests
from tensormeter import MeterProvider, Settings
from tensormeter.instruments import provider as provider_module
from tensormeter.instruments import registry
from tensormeter.ring.format import HeaderWord

LONG = 300_000
"""Milliseconds that a flush may take in a test, far less than an hour."""


@pytest.fixture(autouse=True)
def fresh_warnings():
    registry._warned.clear()


@pytest.fixture
def settings(run_settings):
    return run_settings(
        buffer_bytes=1 << 20,
        schedule_delay=3600,
        observe_interval=3600,
        sample_interval=0,
        self_metrics_interval=0,
        linger_timeout=0,
    )


@pytest.fixture
def begin(settings):
    """Begins runs with a provider each, and ends them; the options change the settings."""
    begun = []

    def begin(**changes):
        run = tensormeter.init(settings=settings.replace(**changes))
        begun.append((run, MeterProvider(run=run)))
        return begun[-1]

    yield begin
    for run, provider in begun:
        provider.shutdown(LONG)
        run.finish()


def sums(receiver):
    """The last value of each sum at the receiver, by process and metric."""
    last_values = {}
    for batch in receiver.batches():
        for series in batch.series:
            if hasattr(series, "monotonic"):
                last_values[str(batch.resource["service.instance.id"]), series.name] = series.values.tolist()[-1]
    return last_values


@pytest.mark.parametrize("agent", ["thread", "process"])
@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ({}, {"schedule_delay": 3600}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "3600000"}, {}),
        ({"TENSORMETER_SCHEDULE_DELAY": "3600"}, {}),
    ],
    ids=["setting", "OpenTelemetry's variable", "our variable"],
)
def test_flush_and_shutdown_do_not_wait_for_the_delay(settings, receiver, monkeypatch, agent, environment, changes):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = ("directory", "buffer_directory", "buffer_bytes", "endpoint", "sample_interval", "self_metrics_interval")
    fixed = {name: getattr(settings, name) for name in names}
    run = tensormeter.init(settings=Settings(**fixed, agent=agent, finish_timeout=300, **changes))
    provider = MeterProvider(run=run)
    counter = provider.get_meter("m").create_counter("a")
    process = run._process.id
    counter.add(1)
    assert provider.force_flush(LONG)
    assert sums(receiver) == {(process, "a"): 1}
    counter.add(2)
    assert provider.shutdown(LONG)
    assert sums(receiver) == {(process, "a"): 3}
    run.finish()


def test_everything_recorded_before_is_delivered(begin, receiver):
    """Rows of all threads, configuration, texts, and what observable instruments observe now."""
    run, provider = begin()
    provider.get_meter("m").create_observable_gauge("observed", [lambda options: [Observation(7)]])
    counter = provider.get_meter("m").create_counter("count")

    def work(number):
        counter.add(1, {"thread": str(number)})
        run.log({f"loss{number}": float(number)}, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]  # more than there are lanes
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    run.update_config({"late": True})
    run.log({"note": tensormeter.Text("hello")}, 3)
    assert provider.force_flush(LONG)
    names = {name for _, name, _, _ in receiver.points()}
    assert names == {"tensormeter.step", "observed"} | {f"loss{number}" for number in range(12)}
    assert [name for name, _ in receiver.events()].count("tensormeter.run.config") == 1
    assert len([name for name, _ in receiver.events() if name.startswith("tensormeter.text")]) == 1
    counted = [
        series
        for batch in receiver.batches()
        for series in batch.series
        if series.name == "count" and series.values.tolist() == [1]
    ]
    assert len({series.attributes["thread"] for series in counted}) == 12


def test_threads_may_flush_at_once(begin, receiver):
    run, provider = begin()
    counter = provider.get_meter("m").create_counter("a")
    results = []

    def work():
        for _ in range(5):
            counter.add(1)
            results.append(provider.force_flush(LONG))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert results == [True] * 20
    assert sums(receiver) == {(run._process.id, "a"): 20}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_each_process_of_a_node_flushes_its_own(begin, receiver):
    run, provider = begin(agent="process")
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)

    def work():
        nothing = provider.force_flush(LONG)  # nothing is measured here yet, and the child does not take part by it
        alone = run._process.is_this
        counter.add(10)
        assert nothing
        assert not alone
        assert provider.force_flush(LONG)

    child = fork(work)
    assert provider.force_flush(LONG)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Counter(sums(receiver).values()) == {1: 1, 10: 1}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("agent", ["thread", "process"])
@pytest.mark.parametrize("own_run", [False, True], ids=["the provider's run", "the program's run"])
def test_shutdown_in_a_forked_child_tells_that_it_is_delivered(settings, receiver, monkeypatch, agent, own_run):
    monkeypatch.setattr(provider_module, "init", lambda: tensormeter.init(settings=settings.replace(agent=agent)))
    run = provider_module.init() if own_run else None
    provider = MeterProvider(run=run)
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)

    def work():
        counter.add(10)
        return provider.shutdown(LONG)

    assert call_in_child(work) == "True"
    assert Counter(sums(receiver).values())[10] == 1
    assert provider.shutdown(LONG)
    assert Counter(sums(receiver).values()) == {1: 1, 10: 1}
    if run is not None:
        run.finish()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_forked_child_has_finished_a_flush_there_waits_for_nothing(begin, receiver, wait_for):
    """The agent does not tell it any more what becomes of its rows, which arrive all the same."""
    run, provider = begin(agent="process")
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)

    def work():
        counter.add(10)
        run.finish()
        return not (provider.force_flush(LONG) or provider.shutdown(LONG))

    assert call_in_child(work) == "True"
    wait_for(lambda: Counter(sums(receiver).values())[10] == 1, "the child's measurement arrives")


def test_an_agent_that_is_killed_leaves_the_flush_to_the_next(begin, receiver, wait_for):
    run, provider = begin(agent="process")
    counter = provider.get_meter("m").create_counter("a")
    words = run._process.ring.words
    wait_for(lambda: words[HeaderWord.AGENT_PID], "an agent")
    os.kill(words[HeaderWord.AGENT_PID], signal.SIGKILL)
    counter.add(1)
    assert provider.force_flush(LONG)
    assert list(sums(receiver).values()) == [1]


def test_values_that_are_still_to_come_are_waited_for(begin, receiver):
    """Nothing else is logged that could fill them in."""

    class Later:
        asked = 0

        def __tensormeter_snapshot__(self):
            return self.look

        def look(self):
            self.asked += 1
            return 5.0 if self.asked > 3 else None

    run, provider = begin()
    provider.get_meter("m").create_counter("a").add(1)
    run.log({"later": Later()}, 0)
    assert provider.force_flush(LONG)
    assert ("later", 5.0) in {(name, value) for _, name, _, value in receiver.points()}


def test_a_receiver_that_cannot_be_reached_ends_the_flush_and_gets_everything_later(begin, receiver, wait_for):
    receiver.stop()
    _run, provider = begin()
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)
    assert not provider.force_flush(LONG)
    receiver.start()
    wait_for(lambda: list(sums(receiver).values()) == [1], "the measurement arrives")


def test_a_flush_of_what_the_receiver_rejects_is_no_success(begin, receiver, answering):
    _run, provider = begin()
    counter = provider.get_meter("m").create_counter("a")
    counter.add(1)
    assert provider.force_flush(LONG)
    receiver.script(answering(400))
    counter.add(1)
    assert not provider.force_flush(LONG)
    counter.add(1)
    assert provider.force_flush(LONG)


def test_a_callback_that_hangs_does_not_hold_up_what_was_measured(begin, receiver, wait_for):
    _run, provider = begin()
    leave = threading.Event()
    provider.get_meter("m").create_counter("a").add(1)
    provider.get_meter("m").create_observable_gauge("g", [lambda options: leave.wait(300) and []])
    assert not provider.force_flush(10)
    wait_for(lambda: list(sums(receiver).values()) == [1], "the counter arrives")
    leave.set()


@pytest.mark.parametrize("timeout", [0, -5, float("-inf"), False])
def test_a_flush_without_a_timeout_is_only_requested(begin, receiver, wait_for, timeout):
    _run, provider = begin()
    provider.get_meter("m").create_counter("a").add(1)
    assert not provider.force_flush(timeout)
    wait_for(lambda: list(sums(receiver).values()) == [1], "the agent goes on")


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), None, "soon", 1e300])
def test_a_timeout_of_any_kind_is_taken(begin, receiver, timeout):
    """A timeout that is not a number means the usual timeout."""
    _run, provider = begin()
    provider.get_meter("m").create_counter("a").add(1)
    provider.force_flush(LONG)
    assert provider.force_flush(timeout)
    assert provider.shutdown(timeout)


def test_after_the_end_of_the_run_a_flush_looks_at_what_became_of_it(begin, receiver):
    run, provider = begin()
    provider.get_meter("m").create_counter("a").add(1)
    run.finish()
    assert provider.force_flush(LONG)
    assert provider.shutdown(LONG)


def test_an_offline_run_is_flushed_to_disk(begin, receiver):
    run, provider = begin(mode="offline")
    provider.get_meter("m").create_counter("a").add(1)
    assert provider.force_flush(LONG)
    assert all(
        tail >= end
        for tail, end in zip(run._process.ring.tail_positions(), run._process.recorder.positions, strict=True)
    )
    assert not receiver.received


def test_a_flush_that_is_held_up_makes_no_small_batches(source, spool, open_drain):
    """Rows that come after the request are collected as usual, though it is not complete yet."""
    drain = open_drain(source)
    drain.advance(flush=False)
    source.log({"a": 1.0}, 0)
    number = source.ring.request_flush(source.recorder.positions)
    for step in range(1, 10):
        drain.advance(flush=False)
        source.log({"a": 1.0}, step)
    assert spool.pending() == 2  # the start of the run, and the first row
    assert drain.flushing
    assert drain.complete_flush() is None
    assert len(list(take_requests(spool))) == 2
    assert drain.complete_flush() == number


def test_a_receiver_of_metrics_alone_can_be_flushed_to(begin, receiver, answering):
    receiver.routes["/v1/logs"] = answering(404)
    _, provider = begin()
    provider.get_meter("m").create_counter("a").add(1)
    assert provider.force_flush(LONG)
    assert list(sums(receiver).values()) == [1]
