"""Device values: the copies, by both ways, and what a reader sees before and after.

Each test of what is recorded runs on CPU tensors that are taken for a device's, and, where there is a GPU, on it.
"""

import math
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from device_rig import Proven

from tensormeter.agent.ingest.lane_reader import LaneReader
from tensormeter.record.device import device_copies, host_mapped
from tensormeter.record.device.device_copies import DeviceCopies
from tensormeter.record.device.event_copies import EventCopies
from tensormeter.record.device.host_mapped import MappedRing
from tensormeter.record.values.outcomes import DeviceValue, Refused
from tensormeter.ring.format import State

CPU = torch.device("cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Device:
    """A recording, and a device whose values go into it by a certain way."""

    def __init__(self, recording, device, way):
        self.recording = recording
        self.device = device
        copies = recording.recorder._device
        if device == CPU:
            copies._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
            if way == "one launch":
                copies._mapped[device] = Proven(copies._host)
            return
        recording.log({"warm": torch.tensor(1.0, device=device)})
        torch.cuda.synchronize()
        recording.log({"warm": torch.tensor(1.0, device=device)})  # sees that the trial is over
        torch.cuda.synchronize()
        assert recording.values() == [{"warm": 1.0}] * 2
        if way == "two launches":
            copies._mapped[torch.device("cuda", torch.cuda.current_device())] = Proven(None)
        assert set(recording.recorder.device_paths.values()) == {
            way if way == "one launch" else "two launches (trial: passed)"
        }

    def log(self, tensors, numbers=None, step=0):
        if self.device == CPU:
            log_tensors(self.recording, tensors, numbers, step)
        else:
            self.recording.log({**(numbers or {}), **tensors}, step)

    def rows(self):
        """The rows since the last call, once the device is done."""
        if self.device != CPU:
            torch.cuda.synchronize()
        return self.recording.rows()

    def values(self):
        return [row.values for row in self.rows()]


def log_tensors(recording, tensors, numbers=None, step=0):
    """Log CPU tensors as if they were on a device."""
    recorder = recording.recorder
    devices = {name: DeviceValue(tensor) for name, tensor in tensors.items()}
    recorder._rows.write_devices(recorder._lanes.mine(), numbers or {}, devices, step)


@pytest.fixture(params=["one launch", "two launches"])
def way(request):
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request, way, new_recording):
    options = {"folder": Path("/dev/shm")} if request.param == "cuda" else {}
    yield Device(new_recording(**options), torch.device(request.param), way)
    if request.param == "cuda":
        torch.cuda.synchronize()


@pytest.fixture
def host_recording(recording):
    """A recording whose ring is host memory for "devices" on the CPU: everything but the page-locking."""
    recording.recorder._device._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
    return recording


def write_pending(recording, names, numbers, step):
    """A row whose last columns wait for a device. Returns the index of the first of their words."""
    recorder = recording.recorder
    lane = recorder._lanes.mine()
    layout = recorder._rows.layouts.of_gauges(names, "d" * len(numbers) + "D" * (len(names) - len(numbers)))
    return lane.write_pending(layout, layout.codes, numbers, step)


def test_a_row_holds_values_of_all_dtypes(device):
    on = device.device
    tensors = {
        "f64": torch.tensor(0.1, dtype=torch.float64, device=on),
        "f32": torch.tensor(0.5, device=on),
        "bf16": torch.tensor(1.5, dtype=torch.bfloat16, device=on),
        "f16": torch.tensor(-2.5, dtype=torch.float16, device=on),
        "fp8": torch.tensor(0.25, device=on).to(torch.float8_e4m3fn),
        "fp8b": torch.tensor([0.5], device=on).to(torch.float8_e5m2),
        "fp8c": torch.tensor([[0.125]], device=on).to(torch.float8_e4m3fn),
        "i64": torch.tensor(7, device=on),
        "i32": torch.tensor(-70000, dtype=torch.int32, device=on),
        "u8": torch.tensor([200], dtype=torch.uint8, device=on),
        "u16": torch.tensor([60000], dtype=torch.int32, device=on).to(torch.uint16),
        "u32": torch.tensor(1 << 31, device=on).to(torch.uint32),
        "u64": torch.tensor(1 << 40, device=on).to(torch.uint64),
        "bool": torch.tensor(True, device=on),
        "loss": torch.tensor(3.25, requires_grad=True, device=on),
        "parameter": torch.nn.Parameter(torch.tensor([[4.0]], device=on)),
        "strided": torch.arange(6.0, device=on).reshape(2, 3)[1:, 2:],
        "negated": torch.complex(torch.tensor(1.0, device=on), torch.tensor(2.0, device=on)).conj().imag,
        "inf": torch.tensor(-math.inf, device=on),
        "nan": torch.tensor(math.nan, device=on),
    }
    device.log(tensors, {"host": 1.0, "big": (1 << 60) + 1}, 5)
    (row,) = device.rows()
    assert row.step == 5
    assert math.isnan(row.values.pop("nan"))
    expected = {name: tensor.cpu().double().item() for name, tensor in tensors.items() if name != "nan"}
    assert row.values == expected | {"host": 1.0, "big": (1 << 60) + 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2])
def test_a_row_of_more_values_than_one_launch_copies_is_whole(device, dtype):
    tensors = {str(i): torch.tensor(float(i % 5), device=device.device).to(dtype) for i in range(150)}
    device.log(tensors)
    assert device.values() == [{str(i): float(i % 5) for i in range(150)}]


def test_integers_beyond_a_float64_become_the_nearest_one(device):
    device.log({"a": torch.tensor((1 << 53) + 1, device=device.device)})
    assert device.values() == [{"a": float(1 << 53)}]


def test_the_copy_is_a_snapshot(device):
    tensor = torch.tensor(1.0, device=device.device)
    for step in range(3):
        device.log({"a": tensor}, step=step)
        tensor += 1
    tensor.zero_()
    parameter = torch.nn.Parameter(torch.tensor(7.0, device=device.device))
    device.log({"a": parameter}, step=3)
    parameter.data.zero_()
    assert device.values() == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}, {"a": 7.0}]


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_as_it_was_and_no_graph_is_kept(device, enabled):
    weight = torch.tensor(2.0, requires_grad=True, device=device.device)
    with torch.set_grad_enabled(enabled):
        device.log({"loss": weight * 3})
        assert torch.is_grad_enabled() is enabled
    copies = device.recording.recorder._device
    for words in (copies._host, *(way.view for way in copies._mapped.values() if way.view is not None)):
        assert not words.requires_grad
        assert words.grad_fn is None
    assert device.values() == [{"loss": 6.0}]
    loss = weight * 3
    device.log({"loss": loss})
    loss.backward()
    assert weight.grad == 3.0


def test_forward_mode_gradients_do_not_reach_the_ring(device):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(
            torch.tensor(2.0, device=device.device), torch.tensor(1.0, device=device.device)
        )
        device.log({"a": dual})
        copies = device.recording.recorder._device
        assert torch.autograd.forward_ad.unpack_dual(copies._host).tangent is None
    assert device.values() == [{"a": 2.0}]


def test_inference_tensors_are_recorded_inside_and_outside_inference_mode(device):
    with torch.inference_mode():
        tensor = torch.tensor([2.5], device=device.device)
        device.log({"a": tensor})
        assert torch.is_inference_mode_enabled()
    device.log({"a": tensor})
    device.log({"a": torch.tensor(3.5, requires_grad=True, device=device.device)})
    assert device.values() == [{"a": 2.5}, {"a": 2.5}, {"a": 3.5}]


def test_autosteps_go_on_after_device_rows(device):
    device.log({"a": torch.tensor(1.0, device=device.device)}, step=41)
    device.recording.log({"b": 1.0})
    assert [row.step for row in device.rows()] == [41, 42]


class TestTrial:
    """Whether a device may store straight into the ring, tried on CPU tensors that are taken for a device's."""

    @pytest.fixture
    def memory(self, monkeypatch):
        monkeypatch.setattr(host_mapped, "page_lock", lambda memory, device: None)
        monkeypatch.setattr(host_mapped, "view_on_device", lambda memory, device: memory)
        return torch.zeros(8, dtype=torch.float64)

    def test_passes_when_every_value_has_come_and_is_right(self, memory):
        ring = MappedRing(memory, CPU)
        assert (ring.view, ring.verdict) == (None, "running")
        ring.poll()
        assert ring.view is memory
        assert ring.verdict == "passed"

    def test_runs_as_long_as_any_value_is_missing(self, memory, monkeypatch):
        calls = []
        monkeypatch.setattr(host_mapped, "gather", lambda sources, words: calls.append((sources, words)))
        ring = MappedRing(memory, CPU)
        ((sources, words),) = calls
        for index, source in enumerate(sources):
            ring.poll()
            assert ring.verdict == "running"
            words[index] = source
        ring.poll()
        assert ring.verdict == "passed"

    def test_fails_when_a_value_is_wrong(self, memory, monkeypatch):
        monkeypatch.setattr(host_mapped, "gather", lambda sources, words: words.fill_(0.1))
        ring = MappedRing(memory, CPU)
        for _ in range(2):
            ring.poll()
        assert ring.view is None
        assert ring.verdict.startswith("the trial stored wrong values for float32, ")

    @pytest.mark.parametrize("error", [Refused("no address"), RuntimeError("CUDA error: 700")])
    def test_fails_without_raising(self, memory, monkeypatch, error):
        def refuse(memory, device):
            raise error

        monkeypatch.setattr(host_mapped, "view_on_device", refuse)
        ring = MappedRing(memory, CPU)
        ring.poll()
        assert ring.view is None
        assert str(error) in ring.verdict

    def test_until_it_has_passed_there_are_two_launches(self, memory, host_recording, monkeypatch):
        copies = host_recording.recorder._device
        copies._mapped[CPU] = MappedRing(copies._host, CPU)
        assert host_recording.recorder.device_paths == {"cpu": "two launches (trial: running)"}
        log_tensors(host_recording, {"a": torch.tensor(1.0)})
        assert host_recording.recorder.device_paths == {"cpu": "one launch"}
        copies._mapped[CPU].view = torch.zeros_like(copies._host)  # so that one sees which way is taken
        log_tensors(host_recording, {"a": torch.tensor(2.0)})
        assert host_recording.values() == [{"a": 1.0}]


def test_a_pending_row_holds_back_the_rows_behind_it(recording):
    recording.log({"a": 1.0}, 0)
    word = write_pending(recording, ("a", "x", "y"), [2.0], 1)
    recording.log({"a": 3.0}, 2)
    assert [row.step for row in recording.rows()] == [0]
    recording.ring.words[word + 1] = 0  # one of two has come
    assert recording.rows() == []
    recording.ring.words[word] = 0
    assert [(row.step, row.values) for row in recording.rows()] == [
        (1, {"a": 2.0, "x": 0.0, "y": 0.0}),
        (2, {"a": 3.0}),
    ]


def test_only_the_rows_before_the_first_pending_one_are_read(recording):
    words = [write_pending(recording, ("x",), [], step) for step in range(40)]
    for step in (*range(25), *range(26, 40)):
        recording.ring.words[words[step]] = 0
    assert [row.step for row in recording.rows()] == list(range(25))
    recording.ring.words[words[25]] = 0
    assert [row.step for row in recording.rows()] == list(range(25, 40))


def test_pending_values_of_a_dead_process_are_given_up(recording):
    recording.log({"a": 1.0}, 0)
    write_pending(recording, ("a", "x"), [2.0], 1)
    recording.log({"a": 3.0}, 2)
    rows = recording.rows(abandon=True)
    assert [row.values for row in rows] == [{"a": 1.0}, {"a": 2.0, "x": None}, {"a": 3.0}]


def test_a_failing_launch_loses_its_values_only(host_recording, warnings_logged):
    wrong = torch.zeros(2)  # cannot be reshaped to ()
    for step in range(2):
        log_tensors(host_recording, {"a": torch.tensor(1.0), "b": wrong}, {"host": 5.0}, step)
    host_recording.log({"c": 1.0})
    assert [row.values for row in host_recording.rows()] == [
        {"host": 5.0, "a": None, "b": None},
        {"host": 5.0, "a": None, "b": None},
        {"c": 1.0},
    ]
    assert torch.is_grad_enabled()
    assert len(warnings_logged()) == 1
    assert "lost device values" in warnings_logged()[0]


def test_an_interrupted_launch_delays_no_other_thread(host_recording, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_foreach_copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log_tensors(host_recording, {"a": torch.tensor(1.0)})
    host_recording.log({"b": 1.0})
    assert host_recording.values() == [{"a": None}, {"b": 1.0}]
    assert torch.is_grad_enabled()


def test_a_pending_row_whose_writing_fails_is_skipped(recording):
    """No copy will ever be launched for it."""
    lane = recording.recorder._lanes.first
    layout = recording.recorder._rows.layouts.of_gauges(("x",), "D")
    with pytest.raises(struct.error):
        lane.write_pending(layout, "D", [], 1 << 63)
    recording.log({"b": 1.0})
    assert recording.values() == [{"b": 1.0}]


def test_a_full_ring_drops_device_rows(new_recording):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    recording.recorder._device._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
    for step in range(200):
        log_tensors(recording, {"a": torch.tensor(1.0)}, step=step)
    rows = recording.rows()
    assert len(rows) + recording.dropped("ring_full") == 200
    recording.recorder.close(State.FINISHED)
    assert isinstance(recording.reader.lanes[0], LaneReader)


def test_device_values_are_refused_while_a_graph_is_captured(recording, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    on_a_gpu = SimpleNamespace(device=torch.device("cuda:0"), is_cuda=True)
    with pytest.raises(Refused, match=r"log after the replay, or inside the graph with tensormeter\.deferred_log"):
        recording.recorder._device.prepare(on_a_gpu)
    assert recording.recorder.device_paths == {}


def test_the_ring_is_page_locked_once_and_each_device_tried_once(recording, monkeypatch):
    locked, tried = [], []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(device_copies, "is_in_memory", lambda path: True)
    monkeypatch.setattr(device_copies, "page_lock", lambda memory, device: locked.append((memory, device)))
    monkeypatch.setattr(device_copies, "MappedRing", lambda ring, device, try_it: tried.append(device) or Proven(None))
    for index in (1, 0, 1, 0):
        recording.recorder._device.prepare(SimpleNamespace(device=torch.device("cuda", index), is_cuda=True))
    ((memory, device),) = locked
    assert memory.numel() == len(recording.ring.buffer) // 8
    assert device == torch.device("cuda", 1)  # not the current one, which the process may not use at all
    assert tried == [torch.device("cuda", 1), torch.device("cuda", 0)]
    assert recording.recorder.device_paths == dict.fromkeys(("cuda:0", "cuda:1"), "two launches (trial: passed)")


@pytest.mark.parametrize("trouble", ["disk", "limit"])
def test_a_ring_that_cannot_be_page_locked_is_tried_once(recording, monkeypatch, warnings_logged, trouble):
    tries = []

    def refuse(memory, device):
        tries.append(memory)
        raise Refused("memory could not be page-locked (cudaHostRegister: error 2)")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(device_copies, "is_in_memory", lambda path: trouble != "disk")
    monkeypatch.setattr(device_copies, "page_lock", refuse)
    for index in (0, 1, 0):
        recording.recorder._device.prepare(SimpleNamespace(device=torch.device("cuda", index), is_cuda=True))
    (message,) = warnings_logged()
    assert "TENSORMETER_BUFFER_DIR" in message
    assert ("is on a disk" if trouble == "disk" else "ulimit -l") in message
    assert len(tries) == (trouble == "limit")
    assert list(recording.recorder.device_paths) == ["cuda:0", "cuda:1"]
    assert all(path.startswith("events (the ring") for path in recording.recorder.device_paths.values())


def test_values_come_by_events_if_the_ring_cannot_be_page_locked(recording, monkeypatch):
    happened = []
    copies = recording.recorder._device
    copies._events = EventCopies(copies.pending, lambda device: SimpleNamespace(query=lambda: bool(happened)))
    copies._failure = "the ring is on a disk"
    tensors = {
        "f32": torch.tensor(0.5, requires_grad=True),
        "fp8": torch.tensor(0.25).to(torch.float8_e4m3fn),
        "i64": torch.tensor([7]),
    }
    expected = {name: tensor.double().item() for name, tensor in tensors.items()}
    log_tensors(recording, tensors)
    with torch.no_grad():
        tensors["f32"].zero_()
    recording.log({"n": 1.0})
    assert recording.values() == []
    happened.append(True)
    recording.log({"n": 2.0})
    assert recording.values() == [expected, {"n": 1.0}, {"n": 2.0}]


def test_a_closed_recorder_gives_its_ring_back_when_all_values_have_come(recording, monkeypatch):
    retired = {}
    for module in (device_copies, host_mapped):
        monkeypatch.setattr(module, "page_lock", lambda memory, device: None)
        monkeypatch.setattr(module, "retire", lambda memory, is_quiet: retired.update({memory.data_ptr(): is_quiet}))
    monkeypatch.setattr(host_mapped, "view_on_device", lambda memory, device: memory)
    monkeypatch.setattr(device_copies, "is_in_memory", lambda path: True)
    copies = recording.recorder._device
    copies._begin(CPU)
    word = write_pending(recording, ("a",), [], 0)
    recording.recorder.close(State.FINISHED)
    assert list(retired) == [copies._host.data_ptr(), copies._mapped[CPU]._locked.data_ptr()]
    ring, trial = retired.values()
    assert (ring(), trial()) == (False, True)
    copies._host[word] = 2.5
    assert ring()


def test_a_ring_is_kept_if_a_launch_failed(recording, monkeypatch):
    """Copies that were launched before the failure may be stored at any time."""
    quiet = []
    monkeypatch.setattr(device_copies, "retire", lambda memory, is_quiet: quiet.append(is_quiet))
    copies = recording.recorder._device
    copies._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
    copies.give_up(write_pending(recording, ("a",), [], 0), 1)
    recording.recorder.close(State.FINISHED)
    assert not quiet[0]()


def test_devices_that_cannot_be_read_without_waiting_are_refused(recording, warnings_logged):
    with pytest.raises(Refused, match="only values on CUDA, MPS and XPU devices"):
        recording.recorder._device.prepare(torch.tensor(1.0))
    assert warnings_logged() == []


def test_a_failing_reduction_loses_its_values_only(recording, warnings_logged, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DeviceCopies, "prepare", lambda self, tensor: None)
    monkeypatch.setattr("tensormeter.record.reduction.reduction.gather", fail)
    monkeypatch.setattr("tensormeter.record.value_reader.classify", lambda value: value)
    for step in range(2):
        recording.log({"a": DeviceValue(torch.tensor(1.0)), "b": 1.0}, step, every=1)
    assert recording.ring.drops() == {"device_unfinished": 2}
    assert recording.values() == [{"b": 1.0}] * 2
    (message,) = warnings_logged()
    assert "out of memory" in message
