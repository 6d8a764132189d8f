"""The interval at which receivers want new data."""

import pytest

from support.receiver import answer
from tensormeter.agent.delivery import live_interval as live_interval_module
from tensormeter.agent.delivery.live_interval import LiveInterval
from tensormeter.exporter import Accepted, ExporterConfig, Request
from tensormeter_exporters.experiment import ExperimentExporter


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(live_interval_module, "time", clock)
    return clock


def test_the_last_answer_holds_for_a_while(clock):
    interval = LiveInterval()
    assert interval.current() is None
    interval.note(Accepted(live=0.1), 0.01)
    assert interval.current() == 0.1
    clock.now += 29
    assert interval.current() == 0.1
    clock.now += 2
    assert interval.current() is None
    interval.note(Accepted(live=0.1), 0.01)
    interval.note(Accepted(), 0.01)
    assert interval.current() is None


def test_a_slow_receiver_gets_fewer_requests(clock):
    interval = LiveInterval()
    interval.note(Accepted(live=0.1), 2.0)
    assert interval.current() == 8.0


@pytest.mark.parametrize(
    ("header", "live"),
    [("0.1", 0.1), ("2", 2.0), ("", None), ("-1", None), ("nan", None), ("1e9", None), ("9" * 20, None)],
)
def test_the_header_of_an_experiment_server(receiver, header, live):
    exporter = ExperimentExporter(ExporterConfig(endpoint=receiver.url, token=None, timeout=10.0))
    receiver.script(answer(200, tensormeter_live=header))
    assert exporter.export(Request("spool-1", "metrics", b"", 1)) == Accepted(live=live)
    exporter.shutdown()
