"""Tests that need a GPU: no call waits; launches, streams, graphs, several devices."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tensormeter
from tensormeter.record.deferred_log import DeferredLog
from tensormeter.record.device.page_locking import unlock_retired
from tensormeter.record.device.path_report import device_path_report
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.record.phases.phases import Phases
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.file import media_directory
from tensormeter.ring.format import PENDING, State

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Pageable", "cuStreamSynchronize")


@pytest.fixture(params=["one launch", "two launches"])
def recording(request, new_recording):
    """With its ring in shared memory, page-locked, the kernels loaded, and the trial over."""
    recording = new_recording(folder=Path("/dev/shm"))
    for _ in range(2):
        recording.log({"warm": torch.tensor(1.0, device="cuda")})
        torch.cuda.synchronize()
    assert recording.values() == [{"warm": 1.0}] * 2
    if request.param == "two launches":
        for mapped in recording.recorder._device._mapped.values():
            mapped.view = None
    (path,) = recording.recorder.device_paths.values()
    assert path.startswith(request.param)
    yield recording
    torch.cuda.synchronize()


A_WHILE = 3_000_000_000
"""Cycles of a GPU's clock: one or two seconds, in which the host must have come to the next line."""


def settle(recording):
    torch.cuda.synchronize()
    return recording.values()


def mixture():
    tensors = {
        "f32": torch.tensor(1.5, device="cuda"),
        "bf16": torch.tensor([2.5], device="cuda", dtype=torch.bfloat16),
        "fp8": torch.tensor(0.5, device="cuda").to(torch.float8_e4m3fn),
        "u16": torch.tensor(9, device="cuda").to(torch.uint16),
        "i64": torch.tensor(7, device="cuda"),
        "bool": torch.tensor(True, device="cuda"),
        "loss": torch.tensor(3.5, device="cuda", requires_grad=True),
    }
    expected = {name: tensor.double().item() for name, tensor in tensors.items()}
    torch.cuda.synchronize()
    return tensors, expected


def test_no_call_synchronizes(recording):
    tensors, expected = mixture()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            recording.log({**tensors, "host": 9.0})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert settle(recording) == [{"host": 9.0, **expected}] * 3


def test_the_first_call_of_all_does_not_synchronize_either(new_recording):
    recording = new_recording(folder=Path("/dev/shm"))
    tensor = torch.tensor(2.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        recording.log({"a": tensor})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert settle(recording) == [{"a": 2.0}]


def calls(action):
    """Names of the CUDA runtime's calls, and of copies, during an action, as the profiler sees them."""
    from torch.profiler import ProfilerActivity, profile, record_function

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        with record_function("observed"):
            action()
        torch.cuda.synchronize()
    events = list(profiler.events())
    (span,) = [event for event in events if event.name == "observed" and "CPU" in str(event.device_type)]
    start, end = span.time_range.start, span.time_range.end
    inside = [event.name for event in events if start <= event.time_range.start <= end]
    copies = [event.name for event in events if event.name.startswith("Memcpy")]
    return [name for name in inside if name.startswith("cu")], copies


@pytest.mark.parametrize("number", [1, 10, 64, 65, 150, 500])
def test_a_call_launches_one_kernel_and_at_most_one_copy(recording, number):
    pairs = 448 if int((torch.version.cuda or "0").partition(".")[0]) >= 13 else 64
    tensors = {str(i): torch.tensor(float(i), device="cuda") for i in range(number)}
    recording.log(tensors)
    names, copies = calls(lambda: recording.log(tensors))
    assert not [name for name in (*names, *copies) if any(wait in name for wait in WAITS)]
    assert len([name for name in names if "LaunchKernel" in name]) == -(-number // pairs)
    one_launch = set(recording.recorder.device_paths.values()) == {"one launch"}
    assert len([name for name in names if "MemcpyAsync" in name]) == (0 if one_launch else 1)
    assert settle(recording) == [{str(i): float(i) for i in range(number)}] * 2


def test_a_mixture_of_dtypes_launches_at_most_two_each(recording):
    tensors, expected = mixture()
    recording.log(tensors)
    names, copies = calls(lambda: recording.log(tensors))
    assert not [name for name in (*names, *copies) if any(wait in name for wait in WAITS)]
    launches = [name for name in names if "LaunchKernel" in name or "MemcpyAsync" in name]
    assert len(launches) <= 2 * len({tensor.dtype for tensor in tensors.values()})
    assert settle(recording) == [expected] * 2


def test_snapshots_are_right_while_the_device_is_far_behind(recording):
    tensor = torch.tensor(0.0, device="cuda")
    tensor += 1  # the first launch of a kernel can wait for the device, because that is when it is loaded
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE)
    for step in range(3):
        recording.log({"a": tensor}, step)
        tensor += 1
    tensor.zero_()
    lane = recording.recorder._lanes.first
    assert recording.ring.words[(lane.cursor[0] >> 3) - 2] == PENDING
    assert recording.rows() == []  # nothing waited, and nothing is torn
    assert settle(recording) == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]


def test_memory_that_is_freed_at_once_is_recorded_as_it_was(recording):
    """The caching allocator gives the memory to the next tensor of the stream, which is written later."""
    torch.cuda._sleep(100_000_000)
    for step in range(50):
        recording.log({"a": torch.full((), float(step), device="cuda")}, step)
        torch.full((), -1.0, device="cuda")
    assert settle(recording) == [{"a": float(step)} for step in range(50)]


def test_values_of_other_streams_are_snapshots(recording):
    stream = torch.cuda.Stream()
    tensor = torch.tensor(4.0, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        recording.log({"a": tensor})
        tensor.fill_(5.0)
    recording.log({"b": torch.tensor(6.0, device="cuda")})
    assert settle(recording) == [{"a": 4.0}, {"b": 6.0}]


def test_backward_hooks_may_log(recording):
    weight = torch.tensor([2.0, 3.0], device="cuda", requires_grad=True)
    weight.register_hook(lambda gradient: recording.recorder.log({"norm": gradient.norm()}))
    for _ in range(3):
        (weight * weight).sum().backward()
    torch.cuda.synchronize()
    assert [row.values["norm"] for row in recording.rows()] == pytest.approx([52**0.5] * 3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_row_holds_values_of_several_devices(recording):
    first, second = (torch.tensor(float(index + 1), device=f"cuda:{index}") for index in range(2))
    for _ in range(3):
        recording.log({"b": second, "a": first, "host": 3.0})
        first += 1
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
    rows = settle(recording)
    assert rows == [{"host": 3.0, "a": 1.0 + step, "b": 2.0} for step in range(3)]
    assert set(recording.recorder.device_paths) == {"cuda:0", "cuda:1"}


def test_device_values_are_refused_while_a_graph_is_captured(recording, warnings_logged):
    tensor = torch.tensor(1.0, device="cuda")
    recording.log({"a": tensor, "host": 0.0})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tensor.add_(1)
        recording.log({"a": tensor, "host": 1.0})
    graph.replay()
    recording.log({"a": tensor})
    assert settle(recording) == [{"a": 1.0, "host": 0.0}, {"host": 1.0}, {"a": 2.0}]
    (message,) = warnings_logged()
    assert "being captured" in message
    assert "deferred_log" in message


def test_other_threads_may_log_while_a_graph_is_captured(new_recording):
    """From their very first value on, for which memory is page-locked and allocated."""
    recording = new_recording(folder=Path("/dev/shm"))
    recorder = recording.recorder
    phases = Phases(recorder.gauge_row, recorder.write_gauges, lambda: recorder.next_step)
    tensor, captured, total = torch.ones((), device="cuda"), threading.Event(), torch.zeros((), device="cuda")
    torch.cuda.synchronize()

    def log():
        captured.wait(60)
        for step in range(8):
            with phases.step(None, None), phases.phase("forward"):
                recorder.log({"a": tensor, "i": tensor.long()}, step)

    graph = torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph):
        logging = pool.submit(log)
        total.add_(1)
        captured.set()
        logging.result(60)
        total.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert total.item() == 2
    rows = [row.values for row in recording.rows() if "a" in row.values]
    assert rows == [{"a": 1.0, "i": 1.0}] * 8


def test_outputs_of_a_graph_are_logged_after_each_replay(recording):
    tensor = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tensor.add_(1)
    for step in range(5):
        graph.replay()
        recording.log({"a": tensor}, step)
    assert settle(recording) == [{"a": float(step + 1)} for step in range(5)]


def collected(recording, log):
    """The rows of a deferred log, after the device is done: a flush begins the copy, and two more find it and take it."""
    for _ in range(3):
        log.flush()
        torch.cuda.synchronize()
    return [(row.step, row.values) for row in recording.rows()]


def test_each_replay_writes_a_row(recording):
    log = DeferredLog(recording.recorder, ["a", "twice"], capacity=64, device="cuda", first_step=0)
    tensor = torch.zeros((), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the warm-up that captures need; a row as well
        log.write({"a": tensor, "twice": tensor * 2})
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tensor.add_(1)
        log.write({"a": tensor, "twice": tensor * 2})
        recording.log({"host": 1.0})  # whose look at the ring must not disturb the capture
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            graph.replay()
        log.flush()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    rows = [row for row in collected(recording, log) if "host" not in row[1]]
    assert rows == [(step, {"a": float(step), "twice": 2.0 * step}) for step in range(6)]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_deferred_writes_in_a_compiled_function_record_every_row(recording, mode):
    log = DeferredLog(recording.recorder, ["loss"], capacity=64, device="cuda", first_step=0)

    def step(x):
        loss = (x * x).sum()
        log.write({"loss": loss})
        return loss

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for number in range(6):
        compiled(torch.full((3,), float(number), device="cuda"))
    assert collected(recording, log) == [(number, {"loss": 3.0 * number * number}) for number in range(6)]
    torch._dynamo.reset()


def test_the_end_of_the_run_fetches_deferred_rows(recording):
    log = DeferredLog(recording.recorder, ["a"], capacity=4, device="cuda", first_step=10)
    for number in range(6):
        log.write({"a": torch.tensor(float(number), device="cuda")})
    recording.recorder.close(State.FINISHED)
    assert [(row.step, row.values["a"]) for row in recording.rows()] == [(10 + n, float(n)) for n in range(2, 6)]
    assert recording.dropped("ring_full") == 2


def test_the_ring_of_the_next_run_is_not_mistaken_for_the_last_one(new_recording):
    """The next ring may be mapped where the last one was, and CUDA must not take it for that one."""
    rings = []
    for number in range(4):
        recording = new_recording(folder=Path("/dev/shm"))
        rings.append(recording.ring.path.name)
        for step in range(3):
            recording.log({"a": torch.tensor(float(number), device="cuda")}, step)
            torch.cuda.synchronize()
        assert set(recording.recorder.device_paths.values()) == {"one launch"}
        assert recording.values() == [{"a": float(number)}] * 3
        recording.recorder.close(State.FINISHED)
        del recording
        gc.collect()
        mapped = Path("/proc/self/maps").read_text()
        assert [ring for ring in rings if ring in mapped] == rings[-1:]  # until the next run begins
        unlock_retired()


def test_each_run_of_a_process_records_its_own_values(tmp_path, open_reader):
    for number in range(3):
        with tensormeter.init(settings={"directory": tmp_path, "agent": "off", "mode": "offline"}) as run:
            for step in range(3):
                run.log({"a": torch.tensor(float(number), device="cuda")}, step)
                torch.cuda.synchronize()
            reader = open_reader(run._process.ring.path)
            assert [row.values["a"] for row in reader.read() if "a" in row.values] == [float(number)] * 3
            reader.ring.remove()
        del run, reader
        gc.collect()


def test_a_run_may_end_before_its_values_have_come(new_recording):
    torch.ones((), device="cuda").add_(1)  # whose kernel is loaded now
    torch.cuda.synchronize()
    first = new_recording(folder=Path("/dev/shm"))
    torch.cuda._sleep(A_WHILE)
    first.log({"a": torch.ones((), device="cuda")})
    first.recorder.close(State.FINISHED)
    unlock_retired()
    second = new_recording(folder=Path("/dev/shm"))
    assert first.values() == []  # nothing has waited, and the memory is still there to be stored into
    torch.cuda.synchronize()
    assert first.values() == [{"a": 1.0}]
    second.log({"a": torch.tensor(2.0, device="cuda")})
    assert settle(second) == [{"a": 2.0}]


@pytest.fixture
def detoured(new_recording, monkeypatch):
    """One whose ring cannot be page-locked."""
    monkeypatch.setattr("tensormeter.record.device.device_copies.is_in_memory", lambda path: False)
    recording = new_recording()
    recording.log({"warm": torch.tensor(1.0, device="cuda"), "counted": Histogram(torch.ones(3, device="cuda"))})
    torch.cuda.synchronize()
    recording.log({"host": 1.0})
    recording.rows()
    yield recording
    torch.cuda.synchronize()


def test_a_ring_on_a_disk_takes_values_by_events(detoured, warnings_logged):
    tensors, expected = mixture()
    torch.cuda.set_sync_debug_mode("error")
    try:
        names, copies = calls(lambda: detoured.log(tensors))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [name for name in (*names, *copies) if any(wait in name for wait in WAITS)]
    assert warnings_logged() == []  # said once, at the first of them
    torch.cuda.synchronize()
    detoured.log({"host": 1.0})
    assert detoured.values() == [expected, {"host": 1.0}]
    (path,) = detoured.recorder.device_paths.values()
    assert path.startswith("events (the ring")
    assert "is on a disk" in path


def test_values_by_events_are_snapshots(detoured):
    tensor = torch.tensor(0.0, device="cuda")
    tensor += 1
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE)
    for step in range(3):
        detoured.log({"a": tensor}, step)
        tensor += 1
    assert detoured.rows() == []
    torch.cuda.synchronize()
    detoured.log({"a": tensor}, 3)
    detoured.recorder.close(State.FINISHED)
    assert detoured.values() == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}, {"a": 4.0}]


def test_values_by_events_arrive_while_another_thread_captures_a_graph(detoured):
    tensor, total = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph):
        total.add_(1)
        for _ in range(5):
            pool.submit(detoured.recorder.log, {"a": tensor}).result(60)
        total.add_(1)
    graph.replay()
    detoured.recorder.close(State.FINISHED)
    assert total.item() == 2
    assert detoured.values() == [{"a": 1.0}] * 5


def test_writes_from_inside_a_graph_arrive_without_page_locking(detoured, monkeypatch):
    def refuse(memory, device):
        raise Refused("memory could not be page-locked")

    monkeypatch.setattr("tensormeter.record.deferred_log.page_lock", refuse)
    log = DeferredLog(detoured.recorder, ["a"], capacity=8, device="cuda", first_step=0)
    for number in range(3):
        log.write({"a": torch.tensor(float(number), device="cuda")})
    assert collected(detoured, log) == [(number, {"a": float(number)}) for number in range(3)]


def test_the_report_of_a_healthy_machine_has_no_fault():
    first, *others = device_path_report()
    assert first.path == "one launch"
    for path in (first, *others):  # torch takes page-locked memory for that of the device under which it was registered
        assert path.works, path
        assert path.synchronizes is False


def test_an_image_is_copied_in_stream_order_without_waiting(tmp_path):
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8, device="cuda")
    settings = {"mode": "offline", "directory": tmp_path, "agent": "off"}
    with tensormeter.init("images", settings=settings) as run:
        run.log({"pixels": tensormeter.Image(pixels)})  # allocates page-locked memory, which may wait
        torch.cuda.synchronize()
        run.log({"loss": 0.0})
        names, _ = calls(lambda: run.log({"pixels": tensormeter.Image(pixels)}))
        assert not [name for name in names if any(wait in name for wait in WAITS)]
        run.log({"loss": 0.0})
        folder = media_directory(run._process.ring.path)
        torch.cuda._sleep(A_WHILE)
        pixels += 1
        run.log({"pixels": tensormeter.Image(pixels)})
        pixels.zero_()
        assert len(list(folder.iterdir())) == 2
    parts = [file.read_bytes().partition(b"\n")[2] for file in sorted(folder.iterdir())]
    assert parts == [bytes(pixels.numel())] * 2 + [b"\x01" * pixels.numel()]
