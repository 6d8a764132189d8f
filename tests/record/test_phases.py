"""Phases and steps: on the host by a clock that is set by hand, on a device by events that are over when the test says so."""

import itertools
import logging
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import tensormeter
import tensormeter.record.timeline as timeline_module
from tensormeter import UsageError
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.pipeline.processor import BatchMeasurementProcessor
from tensormeter.record.phases import _MOST_EVENTS, _MOST_WAITING, DATA_LOADING, Phases
from tensormeter.record.timeline import CudaEvents
from tensormeter.ring.file import RingFile


class FakeDevice:
    """A device that is some time behind the host, and whose events are over up to a moment of its own time."""

    def __init__(self, clock):
        self.clock = clock
        self.behind = 0.5
        self.reached = float("inf")
        self.capturing = False
        self.broken = False
        self.made = 0
        self.in_use = 0

    def record(self):
        if self.broken:
            raise RuntimeError("an illegal memory access")
        if self.capturing:
            return None
        self.made += 1
        self.in_use += 1
        return SimpleNamespace(time=self.clock.now / 1e9 + self.behind, thread=threading.get_ident())

    def are_over(self, events):
        assert all(event.thread == threading.get_ident() for event in events)
        return not self.capturing and all(event.time <= self.reached for event in events)

    def seconds(self, first, second):
        assert max(first.time, second.time) <= self.reached, "an event that is not over was asked for its time"
        return second.time - first.time

    def free(self, event):
        self.in_use -= 1


class Clock:
    def __init__(self):
        self.now = 1_000_000_000_000

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += round(seconds * 1e9)


class Rig:
    """Phases whose rows are gathered: (step, values by metric, phase and clock)."""

    def __init__(self, clock, device):
        self.rows = []
        self.next_step = 0
        self.clock = clock
        self.device = device
        self.layouts = 0
        self.full = False
        events = device or SimpleNamespace(record=lambda: None)
        self.phases = Phases(self.find, self.write, lambda: self.next_step, lambda: events)

    def find(self, streams):
        if self.full:
            return None
        self.layouts += 1
        return streams

    def write(self, streams, values, step):
        row = {}
        for stream, value in zip(streams, values, strict=True):
            attributes = dict(stream.attributes)
            name = stream.name.removeprefix("tensormeter.")
            row[name, attributes.get("tensormeter.phase", ""), attributes.get("tensormeter.clock", "")] = value
        self.rows.append((step, row))

    def phase(self, name, seconds=0.0):
        with self.phases.phase(name):
            self.clock.pass_(seconds)

    def step(self, seconds=1.0, step=None, items=None):
        with self.phases.step(step, items):
            self.phase("model_forward", seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timeline_module, "perf_counter_ns", clock)
    return clock


@pytest.fixture
def rig(clock):
    return Rig(clock, None)


@pytest.fixture
def device_rig(clock):
    return Rig(clock, FakeDevice(clock))


def host(row, phase):
    return row["phase.duration", phase, "host"]


class TestHost:
    def test_a_step_and_its_phases_are_one_row(self, rig):
        with rig.phases.step(None, 32):
            rig.phase(DATA_LOADING, 1.0)
            rig.phase("model_forward", 2.0)
            rig.phase("model_backward", 4.0)
            rig.clock.pass_(1.0)
        ((step, row),) = rig.rows
        assert step == 0
        assert row == {
            ("step.duration", "", "host"): 8.0,
            ("step.throughput", "", ""): 4.0,
            ("step.data_loading.share", "", ""): 0.125,
            ("phase.duration", DATA_LOADING, "host"): 1.0,
            ("phase.duration", "model_forward", "host"): 2.0,
            ("phase.duration", "model_backward", "host"): 4.0,
        }

    def test_what_passes_between_steps_is_waiting_for_data(self, rig):
        rig.step(3.0)
        rig.clock.pass_(1.0)
        rig.step(3.0, items=8)
        first, second = (row for _, row in rig.rows)
        assert first["step.data_loading.share", "", ""] == 0.0
        assert second["step.data_loading.share", "", ""] == 0.25
        assert second["step.throughput", "", ""] == 2.0
        assert second["step.duration", "", "host"] == 3.0

    def test_unless_a_phase_says_otherwise(self, rig):
        rig.step(3.0)
        rig.phase("evaluation", 100.0)
        rig.clock.pass_(1.0)
        rig.step(3.0)
        (_, row) = rig.rows[1]
        assert row["step.data_loading.share", "", ""] == 0.25
        assert host(row, "evaluation") == 100.0
        rig.step(3.0)
        assert rig.rows[2][1]["step.data_loading.share", "", ""] == 0.0
        assert len(rig.rows) == 3

    def test_a_phase_for_the_data_is_not_counted_twice(self, rig):
        for _ in range(2):
            rig.phase(DATA_LOADING, 1.0)
            rig.step(3.0, items=8)
        assert [row["step.data_loading.share", "", ""] for _, row in rig.rows] == [0.25, 0.25]
        assert [row["step.throughput", "", ""] for _, row in rig.rows] == [2.0, 2.0]
        assert [host(row, DATA_LOADING) for _, row in rig.rows] == [1.0, 1.0]

    def test_without_steps_each_outermost_phase_is_a_row(self, rig):
        rig.next_step = 7
        with rig.phases.phase("evaluation"):
            rig.phase("model_forward", 1.0)
            rig.phase("model_forward", 2.0)
        rig.phase("checkpoint_save", 5.0)
        assert [step for step, _ in rig.rows] == [7, 7]
        assert rig.rows[0][1] == {
            ("phase.duration", "model_forward", "host"): 3.0,
            ("phase.duration", "evaluation", "host"): 3.0,
        }
        assert host(rig.rows[1][1], "checkpoint_save") == 5.0

    def test_what_is_left_at_the_end(self, rig):
        rig.step()
        rig.phase("checkpoint_save", 5.0)
        assert len(rig.rows) == 1
        rig.phases.flush()
        rig.phases.flush()
        assert len(rig.rows) == 2
        assert rig.rows[1] == (0, {("phase.duration", "checkpoint_save", "host"): 5.0})

    def test_many_phases_outside_of_steps_are_bounded(self, rig):
        rig.step()
        for _ in range(2 * _MOST_EVENTS):
            rig.phase("evaluation", 1.0)
        assert len(rig.rows) == 3
        assert host(rig.rows[1][1], "evaluation") == _MOST_EVENTS

    def test_steps_are_numbered_like_those_of_log(self, rig):
        rig.step()
        rig.step()
        rig.next_step = 41  # 40 was logged
        rig.step()
        rig.step(step=7)
        rig.step()
        with rig.phases.step(None, None):
            rig.next_step = 101  # 100 is logged
        rig.step()
        assert [step for step, _ in rig.rows] == [0, 1, 41, 7, 41, 100, 101]

    def test_exceptions_pass_through_and_times_are_kept(self, rig):
        def fail():
            with rig.phases.step(None, None), rig.phases.phase("model_forward"):
                rig.clock.pass_(2.0)
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            fail()
        assert host(rig.rows[0][1], "model_forward") == 2.0
        rig.step(1.0)
        assert rig.rows[1][1]["step.duration", "", "host"] == 1.0

    def test_a_step_in_a_step_is_an_error(self, rig):
        with rig.phases.step(None, None):
            with pytest.raises(UsageError, match="not ended"), rig.phases.step(None, None):
                pass
            rig.clock.pass_(1.0)
        rig.step()
        assert len(rig.rows) == 2

    @pytest.mark.parametrize("name", ["", 5, None])
    def test_names(self, rig, name):
        with pytest.raises(UsageError, match=r"run\.phase"):
            rig.phases.phase(name)

    @pytest.mark.parametrize(
        "arguments", [(1.0, None), (1 << 63, None), (True, None), (None, "8"), (None, torch.ones(()))]
    )
    def test_arguments(self, rig, arguments):
        with pytest.raises(UsageError, match=r"run\.step"):
            rig.phases.step(*arguments)

    def test_an_instant_has_no_throughput(self, rig):
        with rig.phases.step(None, 5):
            pass
        assert set(rig.rows[0][1]) == {("step.duration", "", "host")}

    def test_threads_have_their_own(self, rig):
        entered = threading.Barrier(3)

        def run(name):
            with rig.phases.step(None, None), rig.phases.phase(name):
                entered.wait(300)

        threads = [threading.Thread(target=run, args=(f"p{i}",)) for i in range(2)]
        for thread in threads:
            thread.start()
        with rig.phases.step(None, None), rig.phases.phase("main"):
            entered.wait(300)
            for thread in threads:
                thread.join(300)
        phases = [{phase for metric, phase, _ in row if metric == "phase.duration"} for _, row in rig.rows]
        assert sorted(map(sorted, phases)) == [["main"], ["p0"], ["p1"]]

    def test_a_layout_is_asked_for_once(self, rig):
        for _ in range(5):
            rig.step()
        assert rig.layouts == 1
        rig.full = True
        with rig.phases.step(None, None):
            rig.phase("another")
        assert len(rig.rows) == 5


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

    def test_a_device_that_is_slower_than_the_host(self, device_rig):
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

    def test_clocks_may_drift(self, device_rig):
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
        for _ in range(_MOST_WAITING + 10):
            rig.step()
        assert len(rig.rows) == 11
        assert ("phase.duration", "model_forward", "host") in rig.rows[0][1]
        assert ("phase.duration", "model_forward", "device") not in rig.rows[0][1]
        rig.device.reached = float("inf")
        rig.phases.flush()
        assert len(rig.rows) == _MOST_WAITING + 11
        assert rig.rows[-1][1]["phase.duration", "model_forward", "device"] == pytest.approx(1.0)
        assert rig.device.in_use == 1
        assert len([record for record in caplog.records if "behind" in record.getMessage()]) == 1

    def test_not_over_at_the_end(self, device_rig):
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

    def test_events_of_one_step_are_bounded(self, device_rig):
        rig = device_rig
        with rig.phases.step(None, None):
            for _ in range(2 * _MOST_EVENTS):
                rig.phase("p", 0.5)
        assert rig.device.made == _MOST_EVENTS
        rig.phases.flush()
        ((_, row),) = rig.rows
        assert row["phase.duration", "p", "host"] == _MOST_EVENTS

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

    def test_one_device_a_thread(self, cuda):
        events = CudaEvents()
        events.record()
        cuda.device = 1
        assert events.record() is None


def gauges(run):
    processor = BatchMeasurementProcessor(
        RingFile.open(run._process.ring.path), {}, schedule_delay=1.0, max_export_batch_size=1 << 20
    )
    processor.poll(abandon_pending=True)
    return processor.batch({})[0].gauges


@pytest.fixture
def run(tmp_path):
    settings = {"directory": tmp_path, "buffer_directory": tmp_path, "agent": "off", "mode": "offline"}
    run = tensormeter.init(settings=settings)
    yield run
    run.finish()


def test_a_run_has_them(run):
    for step in range(10, 13):
        with run.step(items=4):
            with run.phase("model_forward"):
                run.log({"loss": 1.0}, step)
            with run.phase("model_backward"):
                pass
    with run.phase("checkpoint_save"):
        pass
    run.log({"loss": 1.0})
    run.finish()
    with run.step(), run.phase("late"):
        pass
    found = {(gauge.name, gauge.attributes.get("tensormeter.phase")): gauge for gauge in gauges(run)}
    steps = found[STEP_METRIC, None]
    step_at = dict(zip(steps.times.tolist(), steps.values.tolist(), strict=True))
    duration = found["tensormeter.step.duration", None]
    assert duration.unit == "s"
    assert duration.attributes == {"tensormeter.clock": "host"}
    assert [step_at[time] for time in duration.times.tolist()] == [10, 11, 12]
    assert [step_at[time] for time in found["loss", None].times.tolist()] == [10, 11, 12, 13]
    assert len(found["tensormeter.step.throughput", None].times) == 3
    assert found["tensormeter.step.throughput", None].unit == "{item}/s"
    assert len(found["tensormeter.phase.duration", "checkpoint_save"].times) == 1
    assert ("tensormeter.phase.duration", "late") not in found
    assert (found["tensormeter.phase.duration", "model_forward"].values > 0).all()


def test_a_forked_child_leaves_the_parents_ring_alone(run):
    with run.step():
        pass
    before = bytes(run._process.ring.buffer)
    pid = os.fork()
    if pid == 0:
        try:
            with run.step(), run.phase("a new one"):
                pass
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(run._process.ring.buffer) == before


def test_a_run_that_records_nothing():
    with tensormeter.init(mode="disabled") as run, run.step(items=3), run.phase("p"):
        assert run._phases is None


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # within torch
def test_in_a_compiled_function(run, caplog):
    caplog.set_level(logging.WARNING)
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def forward(x):
        y = x + 1
        with run.phase("inner"):
            y = y * 2
        return y - 1

    for _ in range(3):
        with run.step():
            assert forward(torch.ones(2)).tolist() == [3.0, 3.0]
    names = {gauge.attributes.get("tensormeter.phase") for gauge in gauges(run)}
    assert "inner" in names


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    def test_times_of_the_device(self, run):
        torch.cuda._sleep(1)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(6):
                with run.step(items=1), run.phase("model_forward"):
                    torch.cuda._sleep(20_000_000)  # some 10 ms, which the host does not wait for
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        run.finish()
        found = {
            gauge.attributes["tensormeter.clock"]: gauge.values
            for gauge in gauges(run)
            if gauge.attributes.get("tensormeter.phase") == "model_forward"
        }
        assert len(found["device"]) == 6
        assert (found["device"] > 0.002).all()
        assert found["lag"][-1] > found["lag"][0]

    def test_a_capture_is_not_disturbed(self, run):
        tensor = torch.zeros(3, device="cuda")
        for _ in range(4):
            with run.step(), run.phase("before"):
                tensor += 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(4):
                with run.step(), run.phase("captured"):
                    tensor += 1
        graph.replay()
        torch.cuda.synchronize()
        assert tensor.tolist() == [8.0] * 3
