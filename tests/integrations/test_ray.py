"""Trials of Ray Tune and workers of Ray Train become runs.

All tests share one local cluster, because it takes seconds to start.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import examples
from support.hidden_modules import hidden

with hidden("amdsmi"):  # fails to load without AMD's library, and so does Ray then
    import ray
    import ray.train
    import ray.tune

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tensormeter.integrations.ray import TensormeterLoggerCallback, setup

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # files and sockets of Ray's own processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster(experiment) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short, because paths of sockets are limited
    stub = folder / "without-amd"
    stub.mkdir()
    (stub / "amdsmi.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("TENSORMETER_")]:
            patched.delenv(name)
        for name, value in experiment.environment.items():
            if name.startswith("TENSORMETER_"):
                patched.setenv(name, value)
        patched.setenv("PYTHONPATH", str(stub), prepend=os.pathsep)
        patched.setenv("SLURM_PROCID", "7")  # of Ray's daemon in a Slurm job
        patched.setenv("RAY_TUNE_CALLBACKS", "tensormeter.integrations.ray.TensormeterLoggerCallback")
        patched.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
        patched.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # of the loop that also detects the end
        patched.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patched.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        ray.init(
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 << 20,
            _temp_dir=str(folder / "s"),
        )
        patched.delenv("SLURM_PROCID")
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_trials_become_runs_and_continue_when_they_are_restored(cluster, experiment, tmp_path, monkeypatch):
    """About 15 s: Ray starts worker processes for each of two experiments."""
    monkeypatch.setenv("TENSORMETER_PROJECT", "tune")
    monkeypatch.setenv("TENSORMETER_RUN_ID", "one-for-all")
    repaired = tmp_path / "repaired"

    def train(config: dict) -> None:
        for epoch in range(2):
            metrics = {"loss": config["lr"] * epoch, "eval": {"accuracy": epoch, "comment": "fine"}, "none": None}
            ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(str(tmp_path / "weights")))
        if config["lr"] == 2 and not repaired.exists():
            raise ValueError("the loss diverged")

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.bin").write_bytes(b"weights")
    tuner = ray.tune.Tuner(
        train,
        param_space={"lr": ray.tune.grid_search([1, 2]), "layers": {"width": 64}},
        run_config=ray.tune.RunConfig(name="sweep", storage_path=str(tmp_path / "results"), verbose=0),
    )
    results = tuner.fit()
    assert [bool(result.error) for result in results] == [False, True]
    runs = experiment.runs("tune", 2)
    assert [run.state for run in runs] == ["finished", "failed"]
    assert {run.group for run in runs} == {"sweep"}
    for lr, run in enumerate(runs, 1):
        assert (run.config["lr"], run.config["layers"]) == (lr, {"width": 64})
        assert run.id.startswith(run.config["ray"]["trial_id"])
        assert run.config["ray"]["trainable"] == "train"
        assert {"hostname", "pid"} <= run.config["ray"].keys()
        assert experiment.points(run, "loss") == [(1, 0.0), (2, float(lr))]
        assert experiment.points(run, "eval/accuracy") == [(1, 0.0), (2, 1.0)]
        assert [text.key for text in run.texts("eval/comment")] == ["eval/comment"]
        assert not {"done", "timestamp", "config/lr", "pid"} & set(run.summary)
        assert {artifact.key for artifact in run.artifacts()} == {"checkpoint"}
    assert "the loss diverged" in run.texts("error")[0].text

    repaired.touch()
    restored = ray.tune.Tuner.restore(str(tmp_path / "results" / "sweep"), train, resume_errored=True)
    assert not restored.fit().errors
    _, run = experiment.runs("tune", 2)
    assert (run.id, run.attempt, run.state) == (runs[1].id, 2, "finished")


def test_a_trial_and_its_callback_record_to_one_run(cluster, experiment):
    """About 15 s: Ray starts worker processes, which import the packages of the example."""
    example, _ = examples("integrations/ray.md")
    exec(compile(example, "ray.md", "exec"), {"__name__": "__main__"})
    runs = experiment.runs("digits", 2)
    for run in runs:
        assert run.state == "finished"
        assert len(experiment.points(run, "batch_loss")) == 10
        assert len(experiment.points(run, "loss")) == 1
        assert sorted((process.rank is not None) for process in run.processes()) == [False, True]


def test_workers_of_a_training_are_ranks_of_one_run(cluster, experiment, monkeypatch):
    """With the base class of torch's trainer: it sets no RANK, and its workers need not import torch.

    About 25 s: Ray starts a controller and two worker processes, and waits between the states of a training.
    """
    monkeypatch.setattr("ray.train.torch.TorchTrainer", DataParallelTrainer)
    _, example = examples("integrations/ray.md")
    exec(compile(example, "ray.md", "exec"), {"__name__": "__main__"})
    (run,) = experiment.runs("digits-train", 1)
    assert (run.name, run.state) == (run.group, "finished")
    assert run.config == {"lr": 0.1}
    ranks = {process.id: process.rank for process in run.processes() if process.rank is not None}
    assert sorted(ranks.values()) == [0, 1]
    for line in run.series("loss"):
        assert list(line.y) == [ranks[line.process] + 1 / (step + 1) for step in range(3)]


def test_without_ray_setup_is_init(monkeypatch):
    monkeypatch.setenv("TENSORMETER_MODE", "disabled")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with setup({"lr": 1}) as run:
        assert (run.project, run.config["lr"]) == ("ray", 1)


def test_arguments_that_would_be_the_same_for_all_trials_are_refused():
    with pytest.raises(TypeError, match="'id' would be the same for all trials"):
        TensormeterLoggerCallback(id="trial")
