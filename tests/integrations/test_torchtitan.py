"""torchtitan's metrics become points of a run."""

import dataclasses
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torchtitan.components import metrics as titan
from torchtitan.distributed import ParallelDims

import tensormeter
from support.documents import examples
from support.processes import run_python
from tensormeter.integrations.torchtitan import TensormeterMetricsProcessor


class Monitor:
    """Stands in for the monitor of a GPU's memory."""

    device_name = "CPU"

    def get_peak_stats(self) -> titan.DeviceMemStats:
        return titan.DeviceMemStats(1.5, 10.0, 2.0, 20.0, 0, 0)

    def reset_peak_stats(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch):
    monkeypatch.setattr(titan, "build_device_memory_monitor", Monitor)


def dims(pp: int = 1, world_size: int = 1) -> ParallelDims:
    sizes = {field.name: 1 for field in dataclasses.fields(ParallelDims) if field.type in ("int", int)}
    return ParallelDims(**{**sizes, "dp_shard": world_size // pp, "pp": pp, "world_size": world_size})


def build(config: TensormeterMetricsProcessor.Config, **named: object) -> TensormeterMetricsProcessor:
    processor = config.build(**{"parallel_dims": dims(), "config_dict": {"training": {"steps": 3}, "lr": 0.1}, **named})
    processor.num_flops_per_token = 1000
    return processor


def train(processor: TensormeterMetricsProcessor) -> None:
    for step in range(1, 4):
        processor.ntokens_since_last_log += 100
        processor.data_loading_times.append(0.1)
        processor.log(step, 1 / step, 2 / step, 0.5, {"lr": 0.1})


def test_metrics_become_points_and_the_job_the_configuration(recorded):
    processor = build(TensormeterMetricsProcessor.Config(log_freq=1, project="titan", name="debug"))
    train(processor)
    processor.log_validation(0.25, 3)
    processor.close()
    assert tensormeter.run is None
    (run,) = recorded.runs("titan", 1)
    assert (run.name, run.state) == ("debug", "finished")
    assert run.config == {"training": {"steps": 3}, "lr": 0.1}
    assert recorded.points(run, "loss_metrics/global_avg_loss") == [(step, 1 / step) for step in range(1, 4)]
    names = {"throughput(tps)", "mfu(%)", "memory/max_active(GiB)", "time_metrics/data_loading(%)", "lr"}
    assert names <= set(run.summary)
    assert recorded.points(run, "validation_metrics/loss") == [(3, 0.25)]


def test_a_training_that_fails_is_a_failed_run(recorded):
    processor = build(TensormeterMetricsProcessor.Config(project="failed"))
    try:
        raise ValueError("the loss diverged")
    except ValueError:
        processor.close()  # as torchtitan's train.py does
    (run,) = recorded.runs("failed", 1)
    assert run.state == "failed"
    assert "the loss diverged" in run.events("tensormeter.run.end")[0].body["traceback"]


def test_the_script_run_receives_the_metrics_and_goes_on(recorded):
    with tensormeter.init(project="mine", config={"seed": 1}) as script:
        processor = build(TensormeterMetricsProcessor.Config(log_freq=1), tag="titan")
        train(processor)
        processor.close()
        assert not script.finished
    (run,) = recorded.runs("mine", 1)
    assert run.config == {"seed": 1, "training": {"steps": 3}, "lr": 0.1}
    assert len(recorded.points(run, "titan/grad_norm")) == 3


def test_the_rank_that_torchtitan_selects_records(recorded, monkeypatch):
    """With pipeline parallelism, it is not rank 0."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("TENSORMETER_RANKS", "first")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        config = TensormeterMetricsProcessor.Config(log_freq=1, project="pipeline")
        processor = build(config, parallel_dims=dims(pp=2, world_size=4))
        train(processor)
        processor.close()
    (run,) = recorded.runs("pipeline", 1)
    (process,) = [process for process in run.processes() if process.rank is not None]
    assert process.rank == 2
    assert len(recorded.points(run, "grad_norm")) == 3


RANKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from test_torchtitan import Monitor, TensormeterMetricsProcessor, build, dims, titan, train
titan.build_device_memory_monitor = Monitor
torch.distributed.init_process_group("gloo")
if torch.distributed.get_rank() == 0:
    os.environ["TENSORMETER_RUN_ID"] = "of-rank-0"
config = TensormeterMetricsProcessor.Config(log_freq=1, project="all", save_for_all_ranks=True)
processor = build(config, parallel_dims=dims(world_size=2))
train(processor)
processor.close()
torch.distributed.destroy_process_group()
"""


def test_all_ranks_record_to_one_run(experiment, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    run_python(
        *launcher, script, os.path.dirname(__file__), environment={**experiment.environment, **paths}, check=True
    )
    (run,) = experiment.runs("all", 1)
    assert run.id == "of-rank-0"
    assert sorted(process.rank for process in run.processes() if process.rank is not None) == [0, 1]
    assert len(experiment.points(run, "grad_norm")) == 6


def test_without_tensormeter_nothing_is_recorded(recorded, monkeypatch):
    monkeypatch.setattr("tensormeter.init", lambda **arguments: pytest.fail("a run was started"))
    processor = build(TensormeterMetricsProcessor.Config(enable_tensormeter=False))
    train(processor)
    assert isinstance(processor.logger, titan.BaseLogger)


def test_the_example_of_the_page_runs(recorded, monkeypatch):
    """With a trainer that has only a configuration of metrics: torchtitan's needs a model and a GPU."""
    names = {"config": SimpleNamespace(metrics=None)}
    (example,) = examples("integrations/torchtitan.md")
    exec(example, names)
    processor = build(names["config"].metrics)
    train(processor)
    processor.close()
    (run,) = recorded.runs("llama", 1)
    assert run.state == "finished"
