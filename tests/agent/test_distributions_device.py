"""Histograms of values on a device, from a log call to OpenTelemetry's columns."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distribution_points import Reading, nonfinite, side, steps_of
from torch._subclasses.fake_tensor import FakeTensorMode

from support.device_events import FakeEvent, use_fake_events
from tensormeter import Histogram
from tensormeter.record.device.device_copies import DeviceCopies
from tensormeter.record.histogram.histogram import DeviceDistribution
from tensormeter.record.recorder import Recorder
from tensormeter.record.reduction.reduction import Rule
from tensormeter.record.values.classify import DeviceValue
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import PENDING, State
from tensormeter.ring.histogram_buckets import DOUBLE, SINGLE, STATISTICS_WORDS


@pytest.fixture
def device_source(source):
    """A source whose ring is host memory for "devices" on the CPU: everything but the page-locking."""
    source.recorder._device._host = torch.frombuffer(source.ring.buffer, dtype=torch.float64)
    return source


def log_on_device(source, step=0, scalars=(), **tensors):
    """Log CPU tensors as if they were on a device."""
    wide = (torch.float64, torch.int64)
    distributions = {
        name: DeviceDistribution(tensor, DOUBLE if tensor.dtype in wide else SINGLE) for name, tensor in tensors.items()
    }
    devices = {name: DeviceValue(tensor) for name, tensor in scalars}
    source.recorder._rows.write_distributions(
        source.recorder._lanes.mine(), {"host": 1.0}, devices, distributions, step
    )


class TestOverStepsOnADevice:
    """The same code, driven with CPU tensors."""

    @staticmethod
    def log(source, step, rule, **tensors):
        wide = (torch.float64, torch.int64)
        distributions = {
            name: DeviceDistribution(tensor, DOUBLE if tensor.dtype in wide else SINGLE)
            for name, tensor in tensors.items()
        }
        ready = source.recorder._reduction.pool(source.recorder._lanes.first, rule, distributions, step)
        source.recorder._write(source.recorder._lanes.first, {}, {}, ready, step)

    def test_as_on_the_host(self, device_source):
        tensors = {
            "f32": lambda: torch.randn(100),
            "f64": lambda: torch.randn(50, dtype=torch.float64),
            "int": lambda: torch.randint(-9, 9, (30,)),
            "more": lambda: torch.randn(7, requires_grad=True),
        }
        for step in range(4):
            row = {name: make() for name, make in tensors.items()}
            with torch.inference_mode(mode=step % 2 == 0):
                self.log(device_source, step, Rule(2, "mean"), **row)
            hosts = {f"host {name}": Histogram(tensor) for name, tensor in row.items()}
            device_source.log(hosts, step, every=2)
            for tensor in row.values():
                tensor.detach().zero_()
        by_name = {series.name: series for series in Reading(device_source).batch().series}
        for name in tensors:
            ours, host = by_name[name], by_name[f"host {name}"]
            assert len(ours.times) == len(host.times) == 2
            for row in range(2):
                assert side(ours.positive, row) == side(host.positive, row)
                assert side(ours.negative, row) == side(host.negative, row)
            assert ours.zero_counts.tolist() == host.zero_counts.tolist()
            assert ours.sums == pytest.approx(host.sums)
            assert ours.minima.tolist() == host.minima.tolist()
            assert ours.maxima.tolist() == host.maxima.tolist()

    def test_the_last_one_and_what_is_not_complete(self, device_source):
        for step in range(3):
            self.log(device_source, step, Rule(2, "last"), last=torch.full((2,), float(step)))
            self.log(device_source, step, Rule(2, "sum"), sum=torch.full((2,), float(step)))
        device_source.recorder.close(State.FINISHED)
        assert steps_of(device_source, "last", "sum") == {
            "last": [(1, 2, 2, 1, 1), (2, 2, 4, 2, 2)],
            "sum": [(1, 4, 2, 0, 1), (2, 2, 4, 2, 2)],
        }

    def test_a_bin_does_not_overflow(self, device_source, monkeypatch):
        monkeypatch.setattr("tensormeter.record.histogram.pooling.MOST_ON_DEVICE", 5)
        for step in range(4):
            self.log(device_source, step, Rule(4, "mean"), g=torch.ones(2))
        device_source.recorder.close(State.FINISHED)
        assert steps_of(device_source, "g") == {"g": [(2, 4, 4, 1, 1), (3, 4, 4, 1, 1)]}

    def test_a_device_that_refuses_is_counted(self, device_source, monkeypatch, caplog):
        def fail(self, tensors, table):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("tensormeter.record.histogram.counting.DeviceTables.count", fail)
        self.log(device_source, 0, Rule(2, "mean"), g=torch.ones(2), h=torch.ones(2))
        assert device_source.ring.drops() == {"device_unfinished": 2}
        assert "out of memory" in caplog.text


class TestDevice:
    def test_a_row_of_everything(self, device_source):
        tensors = {
            "f32": torch.randn(500),
            "bf16": torch.randn(20, 20).bfloat16(),
            "f64": torch.randn(300, dtype=torch.float64) * 1e30,
            "int": torch.arange(-5, 6),
            "nan": torch.tensor([1.0, math.nan]),
        }
        log_on_device(device_source, 5, [("loss", torch.tensor(0.5)), ("norm", torch.tensor(2.5))], **tensors)
        device_source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, 6)
        batch = Reading(device_source).batch()
        by_name = {series.name: series for series in batch.series if not series.attributes}
        assert [by_name[name].values.tolist() for name in ("host", "loss", "norm")] == [[1.0], [0.5], [2.5]]
        for name in tensors:
            series = by_name[name]
            assert series.scales[0] == series.scales[1]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            for column in (series.sums, series.minima, series.maxima):
                assert column[0] == pytest.approx(column[1], nan_ok=True)
        assert nonfinite(batch) == {("nan", "NaN"): [1, 1]}

    def test_the_counts_are_copied_before_the_statistics(self, device_source, monkeypatch):
        """And nothing after them that belongs to the distributions; then the plain values."""
        sizes = []
        copy_words, copy = DeviceCopies.copy_words, DeviceCopies.copy

        def watch_words(self, word, words):
            sizes.append(words.numel() * words.element_size() // 8)
            copy_words(self, word, words)

        def watch(self, word, tensors):
            sizes.append(-len(tensors))
            copy(self, word, tensors)

        monkeypatch.setattr(DeviceCopies, "copy_words", watch_words)
        monkeypatch.setattr(DeviceCopies, "copy", watch)
        tensors = {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3, dtype=torch.float64)}
        log_on_device(device_source, 0, [("loss", torch.tensor(0.5))], **tensors)
        assert sizes == [2 * SINGLE.words, DOUBLE.words, 2 * STATISTICS_WORDS, STATISTICS_WORDS, -1]

    def test_a_row_waits_for_every_word_of_the_statistics(self, device_source, monkeypatch):
        launched = []
        monkeypatch.setattr(DeviceCopies, "copy_words", lambda self, word, words: launched.append((word, words)))
        log_on_device(device_source, 0, a=torch.ones(3), b=torch.tensor([2.0]))
        device_source.log({"later": 1.0}, 1)
        reading = Reading(device_source)
        (counts_at, counts), (statistics_at, statistics) = launched
        words = device_source.ring.words
        words[counts_at : counts_at + 2 * SINGLE.words] = memoryview(counts.numpy()).cast("B").cast("q")
        for index, word in enumerate(memoryview(statistics.numpy()).cast("B").cast("q")):
            assert reading.batch() is None
            assert words[statistics_at + index] == PENDING
            words[statistics_at + index] = word
        by_name = {series.name: series for series in reading.batch().series}
        assert by_name["a"].counts.tolist() == [3]
        assert by_name["b"].sums.tolist() == [2.0]
        assert by_name["later"].values.tolist() == [1.0]

    def test_what_a_dead_process_left_pending_is_given_up(self, device_source, monkeypatch):
        log_on_device(device_source, 0, a=torch.ones(3))
        monkeypatch.setattr(DeviceCopies, "copy_words", lambda *_: None)
        log_on_device(device_source, 1, a=torch.ones(3), b=torch.ones(3))
        reading = Reading(device_source)
        batch = reading.batch(abandon=True)
        assert {series.name: len(series.times) for series in batch.series} == {"tensormeter.step": 2, "host": 2, "a": 1}
        assert reading.processor.lost == 2

    def test_a_device_without_memory_loses_its_distributions_only(self, device_source, monkeypatch, caplog):
        def no_memory(*_, **__):
            raise torch.OutOfMemoryError("none left")

        monkeypatch.setattr(torch, "bucketize", no_memory)
        log_on_device(device_source, 3, [("loss", torch.tensor(0.5))], a=torch.ones(3))
        batch = Reading(device_source).batch()
        assert {series.name for series in batch.series} == {"tensormeter.step", "host", "loss"}
        assert device_source.ring.drops() == {"device_unfinished": 1}
        assert "none left" in caplog.text
        assert torch.is_grad_enabled()

    def test_a_failing_copy_is_seen_by_the_reader(self, device_source, monkeypatch):
        def fail(*_):
            raise RuntimeError("no")

        monkeypatch.setattr(DeviceCopies, "copy_words", fail)
        log_on_device(device_source, 3, a=torch.ones(3), b=torch.ones(3))
        reading = Reading(device_source)
        assert [series.name for series in reading.batch().series] == ["tensormeter.step", "host"]
        assert reading.processor.lost == 2


class TestEvents:
    """Apple's and Intel's devices, with CPU tensors for theirs."""

    @pytest.fixture
    def events(self, source, monkeypatch):
        return use_fake_events(source.recorder._device, monkeypatch)

    def test_counts_and_statistics_come_with_the_event(self, source, events):
        tensors = {"a": torch.randn(500), "b": torch.tensor([1.0, math.nan]), "c": torch.arange(-5, 6)}
        log_on_device(source, 5, [("loss", torch.tensor(0.5))], **tensors)
        source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, 6)
        for tensor in tensors.values():
            tensor.zero_()
        reading = Reading(source)
        assert len(events) == 3  # two tables, and the plain value
        for event in events:
            assert reading.batch() is None
            event.happened = True
            source.log({"later": 1.0}, 7)
        batch = reading.batch()
        by_name = {series.name: series for series in batch.series if not series.attributes}
        assert by_name["loss"].values.tolist() == [0.5]
        for name in tensors:
            series = by_name[name]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            assert series.zero_counts[0] == series.zero_counts[1]
            for column in (series.sums, series.minima, series.maxima):
                assert column[0] == pytest.approx(column[1], nan_ok=True)
        assert nonfinite(batch) == {("b", "NaN"): [1, 1]}

    def test_the_end_of_the_run_fetches_the_rest(self, source, events, monkeypatch):
        rule = Rule(3, "mean")
        for step in range(2):
            TestOverStepsOnADevice.log(source, step, rule, g=torch.full((2,), float(step)))
        assert events == []
        log_on_device(source, 2, h=torch.ones(4))
        monkeypatch.setattr(FakeEvent, "query", lambda self: True)
        source.recorder.close(State.FINISHED)
        assert len(events) == 2
        assert steps_of(source, "g", "h") == {"g": [(1, 4, 2, 0, 1)], "h": [(2, 4, 4, 1, 1)]}

    def test_a_failing_event_loses_its_row_only(self, source, events, monkeypatch, caplog):
        monkeypatch.setattr(FakeEvent, "query", lambda self: 1 / 0)
        log_on_device(source, 0, a=torch.ones(3))
        source.log({"n": 1.0}, 1)
        reading = Reading(source)
        assert [series.name for series in reading.batch().series] == ["tensormeter.step", "host", "n"]
        assert reading.processor.lost == 1
        assert "lost device values" in caplog.text


def test_wide_integers_on_a_device_without_float64_are_refused(source, monkeypatch, caplog):
    monkeypatch.setattr(
        "tensormeter.record.histogram.histogram.check_plain", lambda tensor: None
    )  # for it is a fake one
    with FakeTensorMode():
        source.log({"a": Histogram(torch.empty(3, device="mps", dtype=torch.int64)), "n": 1.0}, 0)
    assert [series.name for series in Reading(source).batch().series] == ["tensormeter.step", "n"]
    assert "convert the tensor to float32 with .float()" in caplog.text


def test_under_autocast_nothing_changes(device_source):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-3
    log_on_device(device_source, 0, g=values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_on_device(device_source, 1, g=values)
    (series,) = Reading(device_source).series("g")
    assert side(series.positive, 0) == side(series.positive, 1)
    assert [column[0] for column in (series.sums, series.minima)] == [
        column[1] for column in (series.sums, series.minima)
    ]


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    @pytest.fixture
    def cuda_source(self):
        """With its ring in shared memory, page-locked."""
        ring = RingFile.create(Path(f"/dev/shm/tensormeter-test-{os.getpid()}.ring"), {}, buffer_bytes=1 << 22)
        recorder = Recorder(ring, on_writer=lambda writer: None)
        source = SimpleNamespace(ring=ring, recorder=recorder, log=recorder.log, path=ring.path)
        source.log({"warm": Histogram(torch.ones(3, device="cuda")), "n": torch.ones((), device="cuda")}, 0)
        torch.cuda.synchronize()
        reading = Reading(source)
        assert reading.series("warm")[0].counts.tolist() == [3]
        ring.remove()  # the mappings stay
        yield source, reading
        torch.cuda.synchronize()
        ring.release()

    def test_no_call_synchronizes_and_the_result_is_that_of_the_host(self, cuda_source):
        source, reading = cuda_source
        tensors = {
            "f32": torch.randn(1_000_003, device="cuda"),
            "bf16": torch.randn(300, 300, device="cuda", dtype=torch.bfloat16),
            "f64": torch.randn(1000, device="cuda", dtype=torch.float64),
            "int": torch.arange(-500, 500, device="cuda"),
            "odd": torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1e38], device="cuda"),
            "transposed": torch.randn(30, 40, device="cuda").t(),
        }
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        source.log({name: Histogram(tensor.cpu()) for name, tensor in tensors.items()}, 2)
        by_name = {series.name: series for series in reading.batch().series if not series.attributes}
        for name in tensors:
            series = by_name[name]
            assert series.counts[0] == series.counts[1]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            assert series.sums[0] == pytest.approx(series.sums[1], nan_ok=True)

    def test_a_snapshot_in_stream_order(self, cuda_source):
        source, reading = cuda_source
        tensor = torch.ones(1000, device="cuda")
        source.log({"g": Histogram(tensor)}, 0)  # the first launch of a kernel can wait for the device
        torch.cuda.synchronize()
        assert len(reading.series("g")) == 1
        torch.cuda._sleep(3_000_000_000)
        source.log({"g": Histogram(tensor)}, 1)
        tensor.zero_()
        assert reading.batch() is None  # nothing waited
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert series.sums.tolist() == [1000.0]

    def test_over_steps_without_waiting(self, cuda_source):
        source, reading = cuda_source
        tensors = {
            "f32": torch.randn(10_000, device="cuda"),
            "bf16": torch.randn(300, device="cuda", dtype=torch.bfloat16),
            "f64": torch.randn(1000, device="cuda", dtype=torch.float64),
        }
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(4):
                source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, step, every=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        hosts = {name: Histogram(torch.cat([tensor.cpu()] * 4)) for name, tensor in tensors.items()}
        source.log(hosts, 4)
        by_name = {series.name: series for series in reading.batch().series if not series.attributes}
        for name in tensors:
            series = by_name[name]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            assert series.sums[0] == pytest.approx(series.sums[1])
            assert series.minima[0] == series.minima[1]
            assert series.maxima[0] == series.maxima[1]

    def test_other_streams(self, cuda_source):
        source, reading = cuda_source
        source.recorder._rows._wide._tables._bounds.clear()
        tensor = torch.ones(1000, device="cuda")
        torch.cuda.synchronize()
        torch.cuda._sleep(50_000_000)
        source.log({"g": Histogram(tensor)}, 1)  # the bounds are computed behind the sleep
        with torch.cuda.stream(torch.cuda.Stream()):
            source.log({"g": Histogram(tensor)}, 2)
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert side(series.positive, 0) == side(series.positive, 1)

    def test_deterministic_algorithms(self, cuda_source):
        source, reading = cuda_source
        torch.use_deterministic_algorithms(True)
        try:
            source.log({"g": Histogram(torch.ones(10, device="cuda"))}, 1)
        finally:
            torch.use_deterministic_algorithms(False)
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert series.counts.tolist() == [10]
