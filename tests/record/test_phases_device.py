"""Phases and steps on a device, by events that are over when the test says so."""

import itertools
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from phases_rig import FakeDevice, Rig

from tensormeter.record.phases.phases import _MAX_EVENTS, _MAX_WAITING
from tensormeter.record.phases.timeline import CudaEvents


@pytest.fixture
def device_rig(clock):
    return Rig(clock, FakeDevice(clock))


class TestDevice:
    def test_device_times_come_two_steps_later(self, device_rig):
        rig = device_rig
        for i in range(4):
            rig.step(1.0 + i)
            assert len(rig.rows) == max(0, i - 1)
        rig.phases.flush()
        assert [step for step, _ in rig.rows] == [0, 1, 2, 3]
        for i, (_, row) in enumerate(rig.rows):
            for metric, phase in (("step.duration", ""), ("phase.duration", "model_forward")):
                assert row[metric, phase, "host"] == pytest.approx(1.0 + i)
                assert row[metric, phase, "device"] == pytest.approx(1.0 + i)
        assert rig.device.in_use == 1  # where the next differences begin

    def test_times_of_a_device_that_is_slower_than_the_host_are_right(self, device_rig):
        rig, lags = device_rig, []
        for _ in range(10):
            with rig.phases.step(None, None):
                with rig.phases.phase("model_forward"):
                    rig.clock.pass_(0.1)
                    rig.device.behind += 0.2  # it takes 0.3
                rig.phase("optimizer_update", 0.1)
        rig.phases.flush()
        for _, row in rig.rows:
            assert row["phase.duration", "model_forward", "device"] == pytest.approx(0.3)
            assert row["phase.duration", "optimizer_update", "device"] == pytest.approx(0.1)
            lags.append(row["phase.duration", "model_forward", "lag"])
            assert row["phase.duration", "optimizer_update", "lag"] == pytest.approx(lags[-1] + 0.2, abs=0.001)
        assert lags == pytest.approx([0.2 * i for i in range(10)], abs=0.001)

    def test_a_device_that_catches_up_sets_the_distance(self, device_rig):
        rig = device_rig
        rig.device.behind = 3.0  # there was work before the first step
        rig.step()
        rig.device.behind = 0.5
        rig.step()
        rig.device.behind = 1.5
        rig.step()
        rig.phases.flush()
        lags = [row["phase.duration", "model_forward", "lag"] for _, row in rig.rows]
        assert lags[0] == pytest.approx(0.0)
        assert lags[1] == pytest.approx(0.0)
        assert lags[2] == pytest.approx(1.0, abs=0.001)

    def test_drifting_clocks_do_not_shift_times(self, device_rig):
        rig = device_rig
        for _ in range(200):
            rig.step(60.0)
            rig.device.behind += 60.0 * 10e-6  # the device's clock is fast
        rig.phases.flush()
        assert rig.rows[-1][1]["phase.duration", "model_forward", "lag"] < 0.01

    def test_nothing_is_asked_before_it_is_over(self, device_rig):
        rig = device_rig
        rig.device.reached = 0.0
        for _ in range(10):
            rig.step()
        assert rig.rows == []
        rig.device.reached = float("inf")
        rig.step()
        assert [step for step, _ in rig.rows] == list(range(9))
        assert rig.rows[0][1]["phase.duration", "model_forward", "device"] == pytest.approx(1.0)

    def test_a_device_far_behind_costs_its_times_only(self, device_rig, caplog):
        rig = device_rig
        rig.step()
        rig.device.reached = 0.0
        for _ in range(_MAX_WAITING + 10):
            rig.step()
        assert len(rig.rows) == 11
        assert ("phase.duration", "model_forward", "host") in rig.rows[0][1]
        assert ("phase.duration", "model_forward", "device") not in rig.rows[0][1]
        rig.device.reached = float("inf")
        rig.phases.flush()
        assert len(rig.rows) == _MAX_WAITING + 11
        assert rig.rows[-1][1]["phase.duration", "model_forward", "device"] == pytest.approx(1.0)
        assert rig.device.in_use == 1
        assert len([record for record in caplog.records if "behind" in record.getMessage()]) == 1

    def test_steps_that_are_not_over_at_the_end_have_no_device_times(self, device_rig):
        rig = device_rig
        rig.device.reached = 0.0
        rig.step()
        rig.phases.flush()
        assert set(rig.rows[0][1]) == {
            ("step.data_loading.share", "", ""),
            ("step.duration", "", "host"),
            ("phase.duration", "model_forward", "host"),
        }

    def test_a_capture_in_between(self, device_rig):
        rig = device_rig
        rig.step()
        rig.device.capturing = True
        rig.step()
        rig.device.capturing = False
        for _ in range(3):
            rig.step()
        rig.phases.flush()
        device = {step: ("phase.duration", "model_forward", "device") in row for step, row in rig.rows}
        assert device == {0: True, 1: False, 2: True, 3: True, 4: True}

    def test_one_end_in_a_capture(self, device_rig):
        rig = device_rig
        with rig.phases.step(None, None):
            with rig.phases.phase("warmup"):
                rig.device.capturing = True
            rig.device.capturing = False
            rig.phase("model_forward", 1.0)
        rig.phases.flush()
        ((_, row),) = rig.rows
        assert ("phase.duration", "warmup", "device") not in row
        assert row["phase.duration", "model_forward", "device"] == pytest.approx(1.0)

    def test_a_broken_device_does_not_stop_the_training(self, device_rig, caplog):
        rig = device_rig
        rig.step()
        rig.device.broken = True
        rig.step()
        rig.device.seconds = rig.device.are_over = lambda *_: 1 / 0
        rig.phases.flush()
        assert sorted(step for step, _ in rig.rows) == [0, 1]
        assert "illegal memory access" in caplog.text

    @pytest.mark.parametrize("answers", range(7))
    @pytest.mark.parametrize("recovers", [True, False], ids=["for a while", "until the end"])
    def test_an_error_between_two_device_times_frees_each_event_once(self, device_rig, monkeypatch, answers, recovers):
        """The device answers some questions for times, and then fails. A step has four events."""
        rig = device_rig
        seconds = rig.device.seconds

        def answer(first, second):
            nonlocal answers
            answers -= 1
            if answers < 0:
                raise RuntimeError("an illegal memory access")
            return seconds(first, second)

        for _ in range(2):
            rig.step()
        with monkeypatch.context() as patch:
            patch.setattr(rig.device, "seconds", answer)
            for _ in range(2):
                rig.step()
            if not recovers:
                rig.phases.flush()
        rig.step()
        rig.phases.flush()
        assert [step for step, _ in rig.rows] == list(range(5))
        times = [row.get(("phase.duration", "model_forward", "device")) for _, row in rig.rows]
        assert times[1:] == [pytest.approx(1.0) if recovers else None] * 3 + [pytest.approx(1.0)]
        assert rig.device.in_use == 1

    def test_events_of_one_step_are_bounded(self, device_rig):
        rig = device_rig
        with rig.phases.step(None, None):
            for _ in range(2 * _MAX_EVENTS):
                rig.phase("p", 0.5)
        assert rig.device.made == _MAX_EVENTS
        rig.phases.flush()
        ((_, row),) = rig.rows
        assert row["phase.duration", "p", "host"] == _MAX_EVENTS

    def test_a_thread_that_has_ended_is_recorded_without_asking(self, device_rig):
        rig = device_rig
        for _ in range(2):
            thread = threading.Thread(target=rig.step)
            thread.start()
            thread.join(300)
        assert len(rig.rows) == 1  # the first, when the second began
        rig.phases.flush()
        assert len(rig.rows) == 2
        assert all(("phase.duration", "model_forward", "device") not in row for _, row in rig.rows)


def test_without_cuda_there_are_no_events(monkeypatch):
    events = CudaEvents()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert events.record() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert events.record() is None


class TestCudaEvents:
    """The calls of torch.cuda, with a double of it."""

    @pytest.fixture
    def cuda(self, monkeypatch):
        state = SimpleNamespace(capturing=False, device=0, events=0)
        numbers = itertools.count()

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                state.events += 1

            def record(self):
                assert not state.capturing
                self.time = next(numbers)

            def query(self):
                assert not state.capturing
                return True

            def elapsed_time(self, other):
                return 1000.0 * (other.time - self.time)

        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: state.device)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda device: True, raising=False)
        return state

    def test_events_are_pooled(self, cuda):
        events = CudaEvents()
        first, second = events.record(), events.record()
        assert events.are_over([first, second])
        assert events.seconds(first, second) == 1.0
        events.free(first)
        assert events.record() is first
        assert cuda.events == 2

    def test_nothing_is_called_while_capturing(self, cuda):
        events = CudaEvents()
        first = events.record()
        cuda.capturing = True
        assert events.record() is None
        assert not events.are_over([first])

    def test_each_thread_has_one_device(self, cuda):
        events = CudaEvents()
        events.record()
        cuda.device = 1
        assert events.record() is None
