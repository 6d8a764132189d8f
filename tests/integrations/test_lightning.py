"""The logger and the callback for Lightning, in real trainings of a tiny model."""

import argparse
import csv
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.documents import examples
from support.optional import needs_torch

torch = pytest.importorskip("torch")
pl = pytest.importorskip("lightning.pytorch")

import numpy as np  # noqa: E402
import pytorch_lightning  # noqa: E402
from lightning.fabric import Fabric  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.demos.boring_classes import BoringModel  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning_utilities.core.rank_zero import rank_zero_only  # noqa: E402
from pytorch_lightning.demos.boring_classes import BoringModel as OtherBoringModel  # noqa: E402

import tensormeter  # noqa: E402
from integrations.conftest import Experiment  # noqa: E402
from tensormeter.integrations.lightning import TensormeterCallback, TensormeterLogger  # noqa: E402

pytestmark = [
    needs_torch,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Model(BoringModel):
    """A model that logs in all the ways in which Lightning can, with values that a test can predict."""

    def __init__(self, hidden: int = 3, optimizer: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batches = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        self.batches += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("batches", torch.tensor(float(self.batches)))
        if self.batches % 2:
            self.log("odd", torch.tensor(float(self.batches)))
        self.log("highest", float(self.batches), on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("epoch_end", torch.tensor(float(self.current_epoch)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(float(batch_idx + self.batches)), on_step=True, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.log("constant", torch.tensor(5.0))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", torch.tensor(float(batch_idx)))


@pytest.fixture(autouse=True)
def _finish_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    while tensormeter.run is not None:
        tensormeter.finish()


def make_trainer(package: Any = pl, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    limits = {"max_epochs": 3, "limit_train_batches": 5, "limit_val_batches": 2, "limit_test_batches": 2}
    return package.Trainer(accelerator="cpu", **{**quiet, **limits, "log_every_n_steps": 2, **options})


def rows_of_csv(logger: CSVLogger) -> dict[str, list[tuple[int, float]]]:
    """Points that Lightning's own logger has written."""
    logger.save()
    points: dict[str, list[tuple[int, float]]] = {}
    with open(logger.experiment.metrics_file_path, newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    points.setdefault(name, []).append((int(row["step"]), float(value)))
    return points


def final(points: list[tuple[int, float]]) -> dict[int, float]:
    """The points of a metric. If a step has several, the last one counts."""
    return dict(points)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_logger_and_callback_record_what_lightnings_logger_does(recorded: Experiment, accumulated: int) -> None:
    project = f"equal-{accumulated}"
    csv_logger = CSVLogger("csv")
    logger = TensormeterLogger("logger", project=project)
    callback = TensormeterCallback(project, name="callback")
    for options in ({"logger": [csv_logger, logger]}, {"logger": False, "callbacks": [callback]}):
        pl.seed_everything(0, verbose=False)
        trainer, model = make_trainer(accumulate_grad_batches=accumulated, **options), Model()
        trainer.fit(model)
        trainer.test(model, verbose=False)
    expected = rows_of_csv(csv_logger)
    assert {"loss_step", "loss_epoch", "batches", "odd", "highest", "epoch_end", "constant", "test_loss"} < set(
        expected
    )
    logger.experiment.finish()
    assert callback.run is not None
    callback.run.finish()
    for stored in recorded.runs(project, 2):
        points = {name: final(recorded.points(stored, name)) for name in expected}
        assert points == {name: pytest.approx(final(values)) for name, values in expected.items()}, stored.name
    assert callback.run.config.as_dict() == {"hidden": 3, "optimizer": None}
    assert logger.experiment.config.as_dict() == {"hidden": 3, "optimizer": None}


def test_the_callback_records_each_step_without_a_logger(recorded: Experiment) -> None:
    callback = TensormeterCallback("every", every=1)
    make_trainer(logger=False, callbacks=[callback], max_epochs=2).fit(Model())
    assert callback.run is not None
    callback.run.finish()
    (stored,) = recorded.runs("every", 1)
    assert recorded.points(stored, "batches") == [(step, step + 1.0) for step in range(10)]
    assert recorded.points(stored, "highest") == [(4, 5.0), (9, 10.0)]
    assert recorded.points(stored, "epoch_end") == [(4, 0.0), (9, 1.0)]
    assert recorded.points(stored, "constant") == [(4, 5.0), (9, 5.0)]


def test_a_callback_with_a_logger_records_the_rows_between(recorded: Experiment) -> None:
    logger = TensormeterLogger(project="both")
    callback = TensormeterCallback(every=1)
    trainer, model = make_trainer(logger=logger, callbacks=[callback], max_epochs=2), Model()
    trainer.fit(model)
    trainer.test(model, verbose=False)
    assert callback.run is logger.experiment
    logger.experiment.finish()
    (stored,) = recorded.runs("both", 1)
    assert [step for step, _ in recorded.points(stored, "loss_step")] == list(range(10))
    assert [step for step, _ in recorded.points(stored, "loss_epoch")] == [4, 9]
    assert [step for step, _ in recorded.points(stored, "test_loss")] == [10]


def test_a_training_finishes_the_run_of_an_earlier_one(recorded: Experiment) -> None:
    together = [TensormeterLogger(name, project="folds") for name in ("first", "second")]
    callback = TensormeterCallback("folds", name="third")
    trainers = [make_trainer(logger=together), make_trainer(logger=False, callbacks=[callback])]
    runs = []
    for trainer in trainers:
        trainer.fit(Model())
        runs.append([logger.experiment.finished for logger in together])
    assert runs == [[False, False], [True, True]]
    assert callback.run is not None
    assert not callback.run.finished
    run_id = together[0].version
    trainers[0].test(Model(), verbose=False)
    assert callback.run.finished
    assert [logger.experiment.finished for logger in together] == [False, False]
    for logger in together:
        logger.experiment.finish()
    first, _, third = recorded.runs("folds", 3)
    assert (first.id, first.name, first.attempt, third.attempt) == (run_id, "first", 2, 1)
    assert [step for step, _ in recorded.points(first, "test_loss")] == [15]
    assert [step for step, _ in recorded.points(first, "loss_epoch")] == [4, 9, 14]


class FailingModel(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise ValueError("no training")


def test_an_exception_that_the_script_handles_makes_the_run_a_failed_one(recorded: Experiment) -> None:
    adapters: list[dict[str, Any]] = [
        {"logger": TensormeterLogger("logger", project="handled")},
        {"logger": False, "callbacks": [TensormeterCallback("handled", name="callback")]},
    ]
    for options in adapters:
        with pytest.raises(ValueError, match="no training"):
            make_trainer(**options).fit(FailingModel())
    make_trainer(logger=False, callbacks=[TensormeterCallback(mode="disabled")], fast_dev_run=True).fit(Model())
    assert [run.state for run in recorded.runs("handled", 2)] == ["failed", "failed"]


def test_the_callback_never_reads_a_tensor(recorded: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = TensormeterCallback(every=1, mode="disabled")
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(tensormeter.Run, "log", lambda run, values, step=None: logged.append(values))
    read: list[str] = []
    item = torch.Tensor.item

    def read_item(tensor: Any) -> Any:
        read.append(sys._getframe(1).f_globals["__name__"])
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", read_item)
    trainer = make_trainer(logger=False, callbacks=[callback], max_epochs=1, limit_val_batches=0)
    trainer.fit(Model())
    assert len(logged) == 6
    assert all(isinstance(values["loss_step"], torch.Tensor) for values in logged[:5])
    assert [name for name in read if not name.startswith("torch.")] == []


@pytest.mark.parametrize(("package", "model"), [(pl, BoringModel), (pytorch_lightning, OtherBoringModel)])
def test_both_packages_accept_logger_and_callback(recorded: Experiment, package: Any, model: Callable[[], Any]) -> None:
    logger = TensormeterLogger(project="both", offline=False, settings={"mode": "disabled"})
    trainer = make_trainer(package, logger=logger, callbacks=[TensormeterCallback()], max_steps=1)
    assert isinstance(logger, package.loggers.Logger)
    trainer.fit(model())
    assert trainer.callbacks[0].run is logger.experiment


def test_the_run_goes_on_after_fit_and_test(recorded: Experiment) -> None:
    logger = TensormeterLogger(project="goes-on", prefix="fold")
    trainer = make_trainer(logger=logger, max_epochs=1)
    assert (logger.name, logger.version) == ("goes-on", None)
    trainer.fit(Model())
    assert not logger.experiment.finished
    trainer.test(Model(), verbose=False)
    assert not logger.experiment.finished
    assert logger.version == logger.experiment.id
    assert Path(logger.log_dir) == Path("goes-on", logger.version)
    assert TensormeterLogger().experiment is not logger.experiment  # another Trainer's
    logger.experiment.finish()
    (stored,) = recorded.runs("goes-on", 1)
    assert [value for _, value in recorded.points(stored, "fold-test_loss")] == [0.5]


def test_the_scripts_run_is_used(recorded: Experiment) -> None:
    with tensormeter.init("script", mode="disabled") as run:
        assert TensormeterLogger().experiment is run
        callback = TensormeterCallback()
        make_trainer(logger=False, callbacks=[callback], max_epochs=1).fit(Model())
        assert callback.run is run
        assert not run.finished


def test_hyperparameters_of_all_kinds_become_configuration() -> None:
    logger = TensormeterLogger(settings={"mode": "disabled"})
    logger.log_hyperparams(
        argparse.Namespace(lr=0.1, act=torch.nn.ReLU, nested={"a": [1, 2], "b": argparse.Namespace(c=3)})
    )
    logger.log_hyperparams({"function": len}, metrics={"hp_metric": 0.5})
    config = logger.experiment.config.as_dict()
    assert config["lr"] == 0.1
    assert config["nested"] == {"a": [1, 2], "b": {"c": 3}}
    assert config["act"] == "torch.nn.modules.activation.ReLU"
    assert "function" in config
    assert dict(logger.experiment.summary) == {"hp_metric": 0.5}


class PrivateModel(BoringModel):
    def __init__(self, private: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def test_the_callback_leaves_out_hyperparameters_that_are_not_for_loggers() -> None:
    callback = TensormeterCallback(mode="disabled")
    for model in (PrivateModel(), Model()):
        make_trainer(logger=False, callbacks=[callback], fast_dev_run=True).fit(model)
    assert callback.run is not None
    assert callback.run.config.as_dict() == {"hidden": 3, "optimizer": None}


def test_media_have_the_arguments_of_wandbs_logger(recorded: Experiment) -> None:
    logger = TensormeterLogger(project="media")
    picture = np.zeros((8, 8, 3), np.uint8)
    logger.log_image("pictures", [picture, picture], step=1, caption=["a", "b"], masks=[None, None])
    logger.log_table("table", columns=["x", "y"], data=[[1, 2]], step=1)
    logger.log_text("texts", columns=["text"], data=[["hello"]], step=1)
    logger.log_audio("sounds", [np.zeros(8000, np.float32)], step=1, sample_rate=[8000], caption=["quiet"])
    logger.log_video("videos", [np.zeros((2, 3, 16, 16), np.uint8)], step=1, fps=[2], format=["gif"])
    with pytest.raises(TypeError, match="list"):
        logger.log_image("pictures", picture)
    with pytest.raises(ValueError, match="Expected 1 items but only found 2 for caption"):
        logger.log_audio("sounds", [picture], caption=["a", "b"])
    logger.experiment.finish()
    (stored,) = recorded.runs("media", 1)
    assert [(image.key, image.caption) for image in stored.images()] == [("pictures", "a"), ("pictures", "b")]
    assert sorted(table.key for table in stored.tables()) == ["table", "texts"]


@pytest.mark.parametrize("log_model", [True, "all"])
def test_checkpoints_become_artifacts(recorded: Experiment, tmp_path: Path, log_model: Any) -> None:
    project = f"checkpoints-{log_model}"
    logger = TensormeterLogger(project=project, save_dir=tmp_path / "saved", log_model=log_model)
    checkpoints = ModelCheckpoint(monitor="constant", save_top_k=1, filename="{epoch}", mode="min", save_last=False)
    make_trainer(logger=logger, callbacks=[checkpoints], enable_checkpointing=True).fit(Model())
    logger.experiment.finish()
    (stored,) = recorded.runs(project, 1)
    artifacts = stored.artifacts()
    assert {artifact.key for artifact in artifacts} == {"checkpoint"}
    assert artifacts[-1].place == checkpoints.best_model_path
    assert Path(artifacts[-1].place).parent == tmp_path / "saved" / project / logger.version / "checkpoints"
    assert "best" in artifacts[-1].aliases


def test_other_ranks_ignore_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensormeterLogger()
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_hyperparams({"lr": 1.0})
    logger.experiment.log({"loss": 1.0})
    logger.experiment.config.update({})
    logger.experiment.config.lr = logger.experiment.summary["best"] = 0.5
    with logger.experiment.step(), logger.experiment.phase("forward"):
        assert logger.experiment.url() is None
    pickle.loads(pickle.dumps(logger))
    assert tensormeter.run is None


def test_a_copy_of_the_logger_records_to_the_same_run(recorded: Experiment) -> None:
    logger = TensormeterLogger(project="copied")
    copy = pickle.loads(pickle.dumps(logger))  # as `Trainer(strategy="ddp_spawn")` does
    assert copy.experiment is logger.experiment


def test_fabric_accepts_the_logger(recorded: Experiment) -> None:
    logger = TensormeterLogger(project="fabric")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    fabric.log_dict({"loss": torch.tensor(0.5), "accuracy": 0.25}, step=3)
    logger.experiment.finish()
    (stored,) = recorded.runs("fabric", 1)
    assert recorded.points(stored, "loss") == [(3, 0.5)]
    assert recorded.points(stored, "accuracy") == [(3, 0.25)]


def test_wrong_options_are_refused_before_the_training() -> None:
    with pytest.raises(ValueError, match="every"):
        TensormeterCallback(every=0)
    with pytest.raises(TypeError, match="tag"):
        TensormeterCallback(tag=["a"])


def test_the_examples_of_the_page_run(recorded: Experiment) -> None:
    names: dict[str, Any] = {}
    for example in examples("integrations/lightning.md"):
        exec(example, names)
    runs = recorded.runs("boring", 2)
    assert {run.name: len(recorded.points(run, "loss")) for run in runs} == {"first": 2, "second": 4}
