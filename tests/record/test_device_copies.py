"""Device values: the gather, what a reader sees before and after, and, where there is a GPU, the real thing."""

import math
import struct
from pathlib import Path

import pytest
import torch

from tensormeter.pipeline.reader import LaneReader
from tensormeter.record.values import DeviceValue, Refused
from tensormeter.ring import PENDING, State

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def host_recording(recording):
    """A recording whose ring is host memory for "devices" on the CPU: everything but the page-locking."""
    recording.recorder._device._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
    return recording


def log_tensors(recording, tensors, numbers=None, step=0):
    """Log CPU tensors as if they were on a device."""
    recorder = recording.recorder
    devices = {name: DeviceValue(tensor) for name, tensor in tensors.items()}
    recorder._write_devices(recorder._lane(), numbers or {}, devices, step)


def write_pending(recording, names, numbers, step):
    """A row whose last columns wait for a device. Returns the index of the first of their words."""
    recorder = recording.recorder
    lane = recorder._lane()
    layout = recorder._layout(lane, names, "d" * len(numbers) + "D" * (len(names) - len(numbers)))
    return lane.write_pending(layout, numbers, step)


def test_all_dtypes_in_one_row(host_recording):
    tensors = {
        "f64": torch.tensor(0.1, dtype=torch.float64),
        "f32": torch.tensor(0.5),
        "bf16": torch.tensor(1.5, dtype=torch.bfloat16),
        "f16": torch.tensor(-2.5, dtype=torch.float16),
        "fp8": torch.tensor(0.25).to(torch.float8_e4m3fn),
        "fp8b": torch.tensor([0.5]).to(torch.float8_e5m2),
        "i64": torch.tensor(7),
        "u8": torch.tensor([200], dtype=torch.uint8),
        "bool": torch.tensor(True),
        "loss": torch.tensor(3.25, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.tensor([[4.0]])),
        "strided": torch.arange(6.0).reshape(2, 3)[1:, 2:],
        "nan": torch.tensor(math.nan),
    }
    log_tensors(host_recording, tensors, {"host": 1.0, "big": (1 << 60) + 1}, 5)
    (row,) = host_recording.rows()
    assert row.step == 5
    assert math.isnan(row.values.pop("nan"))
    expected = {name: tensor.double().item() for name, tensor in tensors.items() if name != "nan"}
    assert row.values == expected | {"host": 1.0, "big": (1 << 60) + 1}


def test_the_copy_is_a_snapshot(host_recording):
    tensor = torch.tensor(1.0)
    for step in range(3):
        log_tensors(host_recording, {"a": tensor}, step=step)
        tensor += 1
    tensor.zero_()
    assert host_recording.values() == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_as_it_was_and_no_graph_is_kept(host_recording, enabled):
    weight = torch.tensor(2.0, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        log_tensors(host_recording, {"loss": weight * 3})
        assert torch.is_grad_enabled() is enabled
    host = host_recording.recorder._device._host
    assert not host.requires_grad
    assert host.grad_fn is None
    assert host_recording.values() == [{"loss": 6.0}]


def test_inference_mode_inside_and_outside(host_recording):
    with torch.inference_mode():
        tensor = torch.tensor([2.5])
        log_tensors(host_recording, {"a": tensor})
        assert torch.is_inference_mode_enabled()
    log_tensors(host_recording, {"a": tensor})
    log_tensors(host_recording, {"a": torch.tensor(3.5, requires_grad=True)})
    assert host_recording.values() == [{"a": 2.5}, {"a": 2.5}, {"a": 3.5}]


def test_autosteps_go_on_after_device_rows(host_recording):
    log_tensors(host_recording, {"a": torch.tensor(1.0)}, step=41)
    host_recording.log({"b": 1.0})
    assert [row.step for row in host_recording.rows()] == [41, 42]


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


def test_what_a_dead_process_left_pending_is_given_up(recording):
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
    assert "device values are lost" in warnings_logged()[0]


def test_an_interrupted_launch_holds_nobody_back(host_recording, monkeypatch):
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
    lane = recording.recorder._lanes[0]
    layout = recording.recorder._layout(lane, ("x",), "D")
    with pytest.raises(struct.error):
        lane.write_pending(layout, [], 1 << 63)
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


def test_devices_that_cannot_be_read_without_waiting_are_refused(recording, warnings_logged):
    with pytest.raises(Refused, match="only CUDA, MPS and XPU devices"):
        recording.recorder._device.prepare(torch.tensor(1.0))
    assert warnings_logged() == []


# The real thing.


@pytest.fixture
def cuda_recording(new_recording):
    """With its ring in shared memory, page-locked, and the kernels loaded."""
    recording = new_recording(folder=Path("/dev/shm"))
    recording.log({"warm": torch.tensor(1.0, device="cuda")})
    torch.cuda.synchronize()
    assert recording.values() == [{"warm": 1.0}]
    yield recording
    torch.cuda.synchronize()


class TestCuda:
    pytestmark = gpu

    def settle(self, recording):
        torch.cuda.synchronize()
        return recording.values()

    def test_no_call_synchronizes(self, cuda_recording):
        tensors = {
            "f32": torch.tensor(1.5, device="cuda"),
            "bf16": torch.tensor([2.5], device="cuda", dtype=torch.bfloat16),
            "fp8": torch.tensor(0.5, device="cuda").to(torch.float8_e4m3fn),
            "i64": torch.tensor(7, device="cuda"),
            "loss": torch.tensor(3.5, device="cuda", requires_grad=True),
        }
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                cuda_recording.log({**tensors, "host": 9.0})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = {"f32": 1.5, "bf16": 2.5, "fp8": 0.5, "i64": 7.0, "loss": 3.5}
        assert self.settle(cuda_recording) == [{"host": 9.0, **expected}] * 3

    def test_snapshots_under_updates_in_place(self, cuda_recording):
        tensor = torch.tensor(1.0, device="cuda")
        torch.cuda._sleep(100_000_000)
        for step in range(3):
            cuda_recording.log({"a": tensor}, step)
            tensor += 1
        tensor.zero_()
        assert cuda_recording.rows() == []  # nothing waited, and nothing is torn
        assert self.settle(cuda_recording) == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]

    def test_words_are_pending_until_the_device_has_stored(self, cuda_recording):
        tensor = torch.tensor(2.0, device="cuda")
        torch.cuda._sleep(200_000_000)
        cuda_recording.log({"a": tensor})
        lane = cuda_recording.recorder._lanes[0]
        assert cuda_recording.ring.words[(lane.cursor[0] >> 3) - 2] == PENDING
        assert self.settle(cuda_recording) == [{"a": 2.0}]

    def test_other_streams(self, cuda_recording):
        stream = torch.cuda.Stream()
        tensor = torch.tensor(4.0, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            cuda_recording.log({"a": tensor})
            tensor.fill_(5.0)
        cuda_recording.log({"b": torch.tensor(6.0, device="cuda")})
        assert self.settle(cuda_recording) == [{"a": 4.0}, {"b": 6.0}]

    def test_refused_while_a_graph_is_captured(self, cuda_recording, warnings_logged):
        tensor = torch.tensor(1.0, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tensor.add_(1)
            cuda_recording.log({"a": tensor, "host": 1.0})
        graph.replay()
        cuda_recording.log({"a": tensor})
        assert self.settle(cuda_recording) == [{"host": 1.0}, {"a": 2.0}]
        (message,) = warnings_logged()
        assert "being captured" in message

    def test_a_failed_registration_is_tried_once(self, cuda_recording, warnings_logged):
        device = cuda_recording.recorder._device
        device._host, device._failure = None, "no"
        for _ in range(2):
            cuda_recording.log({"a": torch.tensor(1.0, device="cuda"), "b": 2.0})
        assert device._host is None
        assert self.settle(cuda_recording) == [{"b": 2.0}] * 2
        assert len(warnings_logged()) == 1
