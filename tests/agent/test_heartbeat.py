"""A process that logs nothing says that it lives."""

import itertools

import pytest

import tensormeter


def beats(receiver):
    return [body for name, body in receiver.events() if name == "tensormeter.run.heartbeat"]


@pytest.fixture
def settings(run_settings):
    intervals = {"sample_interval": 0, "self_metrics_interval": 0, "heartbeat_interval": 0.2}
    return run_settings(run_id="quiet", agent="process", **intervals)


def test_a_process_that_logs_nothing_is_heard(settings, receiver, wait_for):
    run = tensormeter.init("beats", settings=settings)
    wait_for(lambda: len(beats(receiver)) >= 3, "heartbeats arrive")
    run.log({"loss": 1.0}, 0)
    run.finish()
    assert {body["state"] for body in beats(receiver)} == {"running"}
    names = [name for name, _ in receiver.events()]
    assert (names[0], names[-1]) == ("tensormeter.run.start", "tensormeter.run.end"), "none after the end"


def test_a_destination_that_fails_takes_no_heartbeat_from_others(settings, receiver, another_receiver, wait_for):
    """And gets none for later: what it missed says nothing any more."""
    another_receiver.stop()
    options = {"otlp.endpoint": another_receiver.url}
    given = settings.replace(
        exporters=("experiment", "otlp"), exporter_options=options, finish_timeout=0, linger_timeout=0
    )
    run = tensormeter.init("beats", settings=given)
    wait_for(lambda: len(beats(receiver)) >= 3, "heartbeats arrive")
    run.finish()


def test_what_was_dropped_is_told_while_the_run_goes_on(settings, receiver, wait_for):
    """Even while rows keep coming, which show by themselves that the process lives."""
    run = tensormeter.init("beats", settings=settings)
    steps = itertools.count()
    run.log({"no_number": object()}, 0)

    def beats_with_drops():
        run.log({"loss": 1.0}, next(steps))
        return [body for body in beats(receiver) if body["dropped"]]

    wait_for(beats_with_drops, "the loss is told")
    run.log({"no_number": object()}, 0)
    wait_for(lambda: beats_with_drops()[-1]["dropped"] == {"unsupported_value": 2}, "the next one is told")
    run.finish()
    assert [body["dropped"] for body in beats(receiver) if body["dropped"]] == [
        {"unsupported_value": 1},
        {"unsupported_value": 2},
    ]


def test_no_heartbeats_if_they_are_turned_off(settings, receiver, wait_for):
    run = tensormeter.init("beats", settings=settings.replace(heartbeat_interval=0, self_metrics_interval=0.05))
    wait_for(lambda: len(receiver.received) > 10, "the agent is at work")
    run.finish()
    assert beats(receiver) == []
