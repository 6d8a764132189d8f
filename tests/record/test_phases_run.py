"""Phases and steps of a run."""

import logging

import pytest

import tensormeter
from support.forks import call_in_child
from support.optional import has_cuda, torch
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.ring.file import RingFile


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


def test_a_run_records_steps_and_phases(run):
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
    by_name = {
        (gauge.name, gauge.attributes.get("tensormeter.phase")): gauge
        for gauge in gauges(run)
        if gauge.attributes.get("tensormeter.clock", "host")
        == "host"  # where there is a GPU, it tells its times as well
    }
    steps = by_name[STEP_METRIC, None]
    step_at = dict(zip(steps.times.tolist(), steps.values.tolist(), strict=True))
    duration = by_name["tensormeter.step.duration", None]
    assert duration.unit == "s"
    assert duration.attributes == {"tensormeter.clock": "host"}
    assert [step_at[time] for time in duration.times.tolist()] == [10, 11, 12]
    assert [step_at[time] for time in by_name["loss", None].times.tolist()] == [10, 11, 12, 13]
    assert len(by_name["tensormeter.step.throughput", None].times) == 3
    assert by_name["tensormeter.step.throughput", None].unit == "{item}/s"
    assert len(by_name["tensormeter.phase.duration", "checkpoint_save"].times) == 1
    assert ("tensormeter.phase.duration", "late") not in by_name
    assert (by_name["tensormeter.phase.duration", "model_forward"].values > 0).all()


def test_a_forked_child_leaves_the_parents_ring_alone(run):
    with run.step():
        pass
    before = bytes(run._process.ring.buffer)

    def child():
        with run.step(), run.phase("a new one"):
            pass

    call_in_child(child)
    assert bytes(run._process.ring.buffer) == before


def test_a_disabled_run_has_no_phases():
    with tensormeter.init(mode="disabled") as run, run.step(items=3), run.phase("p"):
        assert run._phases is None


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # within torch
def test_a_phase_in_a_compiled_function_is_recorded(run, caplog):
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
    run.finish()
    names = {gauge.attributes.get("tensormeter.phase") for gauge in gauges(run)}
    assert "inner" in names


gpu = [pytest.mark.gpu, pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    def test_phases_have_times_of_the_device(self, run):
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
        by_name = {
            gauge.attributes["tensormeter.clock"]: gauge.values
            for gauge in gauges(run)
            if gauge.attributes.get("tensormeter.phase") == "model_forward"
        }
        assert len(by_name["device"]) == 6
        assert (by_name["device"] > 0.002).all()
        assert by_name["lag"][-1] > by_name["lag"][0]

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
