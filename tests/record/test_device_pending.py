"""Values that come later: from devices that are read by events, from JAX, and from objects that hand them out themselves."""

import math
import sys
import threading
from types import ModuleType

import pytest
import torch

from support.device_events import FakeEvent, use_fake_events
from tensormeter.record.values.outcomes import DeviceValue
from tensormeter.ring.format import State


class Later:
    """An object with a snapshot that comes when it is given."""

    def __init__(self):
        self.value = None
        self.polls = 0

    def __tensormeter_snapshot__(self):
        return self.poll

    def poll(self):
        self.polls += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Now:
    def __init__(self, value):
        self.value = value

    def __tensormeter_snapshot__(self):
        return self.value


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.5, 1.5), (7, 7.0), (True, 1.0), (torch.tensor([2.5]), 2.5), ((1 << 60) + 1, (1 << 60) + 1)],
)
def test_a_snapshot_that_is_there_is_recorded_at_once(recording, value, expected):
    recording.log({"a": Now(value)})
    assert recording.values() == [{"a": expected}]


def test_a_snapshot_that_comes_later_is_found_by_a_later_call(recording):
    values = [Later(), Later()]
    recording.log({"a": values[0], "host": 1.0, "b": values[1]}, 0)
    recording.log({"c": 1.0}, 1)
    assert recording.values() == []
    values[1].value = 2.5
    recording.log({"c": 2.0}, 2)
    assert recording.values() == []
    values[0].value = 7
    recording.log({"c": 3.0}, 3)
    assert recording.values() == [{"a": 7.0, "host": 1.0, "b": 2.5}, {"c": 1.0}, {"c": 2.0}, {"c": 3.0}]
    polls = values[0].polls
    recording.log({"c": 4.0}, 4)
    assert values[0].polls == polls


def test_the_end_of_the_run_waits_for_pending_values(recording):
    value = Later()
    recording.log({"a": value})
    polled = threading.Event()
    poll = value.poll

    def give():
        polled.wait(60)
        value.value = 3.0

    def watched():
        polled.set()
        return poll()

    value.poll = watched
    recording.log({"b": Now(watched)})
    giver = threading.Thread(target=give)
    giver.start()
    recording.recorder.close(State.FINISHED)
    giver.join()
    assert recording.values() == [{"a": 3.0}, {"b": 3.0}]


def test_the_end_of_the_run_gives_up_values_that_do_not_come(recording, monkeypatch):
    monkeypatch.setattr("tensormeter.record.recorder._SETTLE_TIMEOUT", 0.0)
    recording.log({"a": Later(), "b": 1.0})
    recording.recorder.close(State.FINISHED)
    assert recording.values() == [{"a": None, "b": 1.0}]


@pytest.mark.parametrize("answer", [RuntimeError("the kernel failed"), "text", 1j])
def test_values_that_never_come_are_lost_and_warned_about_once(recording, warnings_logged, answer):
    for step in range(2):
        value = Later()
        recording.log({"a": value, "b": 1.0}, step)
        value.value = answer
        recording.log({"c": 1.0}, step)
    assert recording.values() == [{"a": None, "b": 1.0}, {"c": 1.0}] * 2
    (message,) = warnings_logged()
    assert message.startswith("lost device values: ")


def test_nan_is_a_value(recording):
    recording.log({"a": Now(lambda: math.nan)})
    recording.log({"b": 1.0})
    first, _ = recording.values()
    assert math.isnan(first["a"])


def test_a_snapshot_of_a_snapshot_is_refused(recording, warnings_logged):
    recording.log({"a": Now(Now(1.0)), "b": 1.0})
    assert recording.values() == [{"b": 1.0}]
    assert "return a number or a callable" in warnings_logged()[0]


def test_late_values_are_not_reduced(recording, warnings_logged):
    value = Later()
    value.value = 2.0
    for step in range(2):
        recording.log({"a": value, "n": float(step)}, step, every=2)
    recording.log({"b": 1.0}, 2)
    assert recording.values() == [{"a": 2.0}, {"n": 0.5, "a": 2.0}, {"b": 1.0}]
    (message,) = warnings_logged()
    assert "recording every value of 'a'" in message


def test_no_writer_takes_the_looks_away(recording):
    """Otherwise a loop that logs floats after one pending value would never look."""
    value = Later()
    for step in range(3):
        recording.log({"c": 1.0}, step)
    recording.log({"a": value}, 3)
    recording.log({"c": 1.0}, 4)
    value.value = 1.0
    recording.log({"c": 1.0}, 5)
    assert [row.step for row in recording.rows()] == [0, 1, 2, 3, 4, 5]


def test_threads_fill_in_each_others_values(recording):
    value = Later()
    worker = threading.Thread(target=recording.recorder.log, args=({"a": value},))
    worker.start()
    worker.join()
    value.value = 4.0
    recording.log({"b": 1.0})
    assert sorted(map(str, recording.values())) == ["{'a': 4.0}", "{'b': 1.0}"]


class TestEvents:
    """Apple's and Intel's devices, with CPU tensors for theirs."""

    @pytest.fixture
    def events(self, recording, monkeypatch):
        return use_fake_events(recording.recorder._device, monkeypatch)

    @staticmethod
    def log(recording, tensors, step=0):
        recorder = recording.recorder
        devices = {name: DeviceValue(tensor) for name, tensor in tensors.items()}
        recorder._rows.write_devices(recorder._lanes.mine(), {}, devices, step)

    def test_one_event_a_row(self, recording, events):
        tensors = {
            "f32": torch.tensor(0.5, requires_grad=True),
            "i64": torch.tensor([7]),
            "big": torch.tensor((1 << 53) - 1),
            "bf16": torch.tensor(1.5, dtype=torch.bfloat16),
            "other": torch.tensor(2.5),
            "bool": torch.tensor(True),
        }
        self.log(recording, tensors)
        (event,) = events
        recording.log({"n": 1.0})
        assert recording.values() == []
        event.happened = True
        recording.log({"n": 2.0})
        expected = {name: tensor.double().item() for name, tensor in tensors.items()}
        assert recording.values() == [expected, {"n": 1.0}, {"n": 2.0}]

    def test_the_copy_is_a_snapshot(self, recording, events):
        tensor = torch.tensor(1.0)
        for step in range(3):
            self.log(recording, {"a": tensor}, step)
            tensor += 1
        for event in events:
            event.happened = True
        recording.recorder.close(State.FINISHED)
        assert recording.values() == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]

    def test_a_failing_event_loses_its_row_only(self, recording, events, monkeypatch, warnings_logged):
        monkeypatch.setattr(FakeEvent, "query", lambda self: 1 / 0)
        self.log(recording, {"a": torch.tensor(1.0)})
        recording.log({"n": 1.0})
        assert recording.values() == [{"a": None}, {"n": 1.0}]
        (message,) = warnings_logged()
        assert "lost device values" in message


class FakeArray:
    """As much of a `jax.Array` as is looked at. Its value can be had without waiting once it has been ready."""

    def __init__(self, value, shape=(), dtype="float32"):
        self.value, self.shape, self.dtype = value, shape, dtype
        self.size = math.prod(shape)
        self.ready = self.copied = self.deleted = False
        self.is_fully_addressable = True

    def is_deleted(self):
        return self.deleted

    def is_ready(self):
        if self.deleted:
            raise RuntimeError("Array has been deleted.")
        return self.ready

    def copy_to_host_async(self):
        self.copied = True

    def item(self):
        if self.deleted:
            raise RuntimeError("Array has been deleted.")
        assert self.ready
        assert self.copied
        return self.value


class FakeTracer(FakeArray):
    pass


class TestJax:
    @pytest.fixture(autouse=True)
    def jax(self, monkeypatch):
        module = ModuleType("jax")
        module.Array = FakeArray
        module.core = ModuleType("jax.core")
        module.core.Tracer = FakeTracer
        monkeypatch.setitem(sys.modules, "jax", module)

    def test_an_array_is_read_once_it_is_ready(self, recording):
        array = FakeArray(2.5)
        recording.log({"a": array}, 0)
        assert array.copied
        recording.log({"n": 1.0}, 1)
        assert recording.values() == []
        array.ready = True
        for step in range(2, 4):
            recording.log({"n": 1.0}, step)
        assert recording.values() == [{"a": 2.5}, *[{"n": 1.0}] * 3]

    def test_the_end_of_the_run_reads_the_rest(self, recording):
        array = FakeArray(7, shape=(1,), dtype="int32")
        array.ready = True
        recording.log({"a": array})
        recording.recorder.close(State.FINISHED)
        assert recording.values() == [{"a": 7.0}]

    def test_an_array_that_is_donated_meanwhile_is_lost(self, recording, warnings_logged):
        array = FakeArray(2.5)
        recording.log({"a": array})
        array.deleted = True
        recording.log({"n": 1.0})
        assert recording.values() == [{"a": None}, {"n": 1.0}]
        assert warnings_logged() == ["lost device values: Array has been deleted."]

    @pytest.mark.parametrize(
        ("array", "remedy"),
        [
            (FakeTracer(1.0), "jax.debug.callback"),
            (FakeArray(1.0, shape=(2,)), "log one element"),
            (FakeArray(1.0, shape=(0,)), "log one element"),
            (FakeArray(1j, dtype="complex64"), "log a real number"),
        ],
    )
    def test_refused(self, recording, warnings_logged, array, remedy):
        for _ in range(2):
            recording.log({"a": array, "b": 1.0})
        assert recording.values() == [{"b": 1.0}] * 2
        assert recording.ring.drops() == {"unsupported_value": 2}
        (message,) = warnings_logged()
        assert remedy in message

    def test_donated_before_and_arrays_of_other_hosts_are_refused(self, recording, warnings_logged):
        donated, elsewhere = FakeArray(1.0), FakeArray(1.0)
        donated.deleted, elsewhere.is_fully_addressable = True, False
        recording.log({"donated": donated, "elsewhere": elsewhere, "b": 1.0})
        assert recording.values() == [{"b": 1.0}]
        assert len(warnings_logged()) == 2


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.backends.mps.is_available() or torch.xpu.is_available()), reason="needs an Apple or Intel GPU"
)
def test_a_real_device_is_read_by_events(recording):
    device = "mps" if torch.backends.mps.is_available() else "xpu"
    tensor = torch.tensor(1.0, device=device)
    for step in range(3):
        recording.log({"a": tensor, "n": torch.tensor(7, device=device)}, step)
        tensor += 1
    recording.recorder.close(State.FINISHED)
    assert recording.values() == [{"a": float(step + 1), "n": 7.0} for step in range(3)]
