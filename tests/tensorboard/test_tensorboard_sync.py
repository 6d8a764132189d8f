"""`sync.start` with the writers of torch and tensorboardX, whose event files stay as they are."""

import logging
import threading

import numpy as np
import pytest
import tensorboardX
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

import tensormeter
from tensormeter.tensorboard import sync
from tensormeter.tensorboard.folders import Namespaces

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write_everything(writer):
    generator = np.random.default_rng(0)
    for step in range(5):
        writer.add_scalar("train/loss", 1 / (step + 1), step)
        writer.add_scalar("train/accuracy", torch.tensor(step / 4), step * 10)
    writer.add_text("notes", "# title", 2)
    writer.add_image("image", torch.rand(3, 8, 8), 3)
    writer.add_histogram("weights", generator.normal(size=500), 4)
    if isinstance(writer, SummaryWriter):  # tensorboardX needs another package for it
        writer.add_audio("sound", torch.rand(1, 800), 5, sample_rate=8000)
    writer.add_pr_curve("curve", generator.integers(0, 2, 50), generator.random(50), 6)


@pytest.mark.parametrize("make", [SummaryWriter, tensorboardX.SummaryWriter])
def test_everything_that_a_writer_writes_is_recorded(recorded, make, tmp_path):
    name = f"sync {make.__module__}"
    original = EventFileWriter.add_event
    run = tensormeter.init("sync", name=name)
    stop = tensormeter.tensorboard.sync.start(run)
    writer = make("logs/run")
    write_everything(writer)
    stop()
    stop()
    writer.add_scalar("after", 1.0, 0)
    writer.close()
    run.finish()
    assert EventFileWriter.add_event is original
    run = recorded.run(name)
    points = recorded.points(run)
    assert points.keys() == {"train/loss", "train/accuracy"}
    assert points["train/loss"] == [(step, float(np.float32(1 / (step + 1)))) for step in range(5)]
    assert points["train/accuracy"] == [(step * 10, step / 4) for step in range(5)]
    ((text,), (image,), (curve,)) = run.texts(), run.images(), run.tables()
    assert (text.key, text.text, text.step) == ("notes", "# title", 2)
    assert (image.key, image.step) == ("image", 3)
    assert [(clip.key, clip.step) for clip in run.audio()] == ([("sound", 5)] if make is SummaryWriter else [])
    assert (curve.key, curve.step, len(curve.rows)) == ("curve", 6, 127)
    histogram = run.histograms("weights")
    assert (histogram.count[0], histogram.x[0]) == (500, 4)
    assert run.lost == 0
    files = EventAccumulator(str(tmp_path / "logs/run")).Reload().Tags()["scalars"]  # the files are complete
    assert sorted(files) == ["after", "train/accuracy", "train/loss"]


@pytest.mark.parametrize("make", [SummaryWriter, tensorboardX.SummaryWriter])
def test_hyperparameters_become_configuration(recorded, make):
    with tensormeter.init("sync", name="h") as run:
        stop = sync.start()
        with make("logs") as writer:
            writer.add_hparams({"lr": 0.5, "layers": 3, "optimizer": "sgd"}, {"score": 0.25})
        stop()
        assert run.config.as_dict() == {"lr": 0.5, "layers": 3, "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("folders", "prefixes"),
    [
        (["runs/x"], [""]),
        (["runs/x/train"], [""]),
        (["runs/x/train", "runs/x/val"], ["train/", "val/"]),
        (["runs/a", "runs/b/train", "runs/b/val"], ["a/", "b/train/", "b/val/"]),
        (["s3://bucket/x", "runs/b"], None),
    ],
)
def test_prefixes_are_those_of_wandb(folders, prefixes):
    """Recorded with `sync_tensorboard=True` of wandb 0.31, with all writers made before the first value."""
    namespaces = Namespaces()
    for folder in folders:
        namespaces.add(folder)
    found = [namespaces.prefix(folder) for folder in folders]
    assert found == [namespaces.prefix(folder) for folder in folders]
    assert prefixes is None or found == prefixes


def test_prefixes_of_scalars_with_a_folder_each_are_those_of_wandb():
    """`add_scalars` of torch makes a folder for each name, below the writer's."""
    namespaces = Namespaces()
    folders = ("runs/x", "runs/x/group_a", "runs/x/group_b")
    assert [namespaces.prefix(folder) for folder in folders] == ["", "group_a/", "group_b/"]


def test_writers_of_several_folders_and_threads_are_recorded(recorded):
    run = tensormeter.init("sync", name="threads")
    stop = sync.start()

    def write(writer):
        with writer:
            for step in range(10):
                writer.add_scalar("loss", step, step)

    threads = [threading.Thread(target=write, args=[SummaryWriter(f"runs/x/{name}")]) for name in ("train", "val")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop()
    run.finish()
    expected = [(step, step) for step in range(10)]
    assert recorded.points("threads") == {"train/loss": expected, "val/loss": expected}


def test_two_runs_record_the_same_writer_until_each_stops(recorded):
    original = EventFileWriter.add_event
    first, second = (tensormeter.init("sync", name=name) for name in ("first", "second"))
    stops = [sync.start(run) for run in (first, second)]
    with SummaryWriter("logs") as writer:
        writer.add_scalar("a", 1.0, 0)
        stops[0]()
        writer.add_scalar("a", 2.0, 1)
        second.finish()
        assert EventFileWriter.add_event is original
        writer.add_scalar("a", 3.0, 2)
    stops[1]()
    first.finish()
    assert recorded.points("first") == {"a": [(0, 1)]}
    assert recorded.points("second") == {"a": [(0, 1), (1, 2)]}


def test_values_that_have_no_place_warn_once(recorded, caplog, monkeypatch):
    monkeypatch.setattr("tensormeter.tensorboard.events._notices._warned", set())
    with tensormeter.init("sync", name="left out"):
        stop = sync.start()
        with SummaryWriter("logs") as writer:
            for step in range(2):
                writer.add_mesh("mesh", torch.zeros(1, 3, 3), global_step=step)
            writer.add_custom_scalars_multilinechart(["a"])
        stop()
    assert sum("3D meshes have no place" in record.message for record in caplog.records) == 1
    assert sum("custom scalar charts" in record.message for record in caplog.records) == 1


def test_without_a_run_nothing_is_patched(caplog):
    original = EventFileWriter.add_event
    sync.start()()
    assert EventFileWriter.add_event is original
    assert "there is no unfinished run" in caplog.text


def test_without_the_packages_nothing_is_raised(recorded, monkeypatch, caplog):
    monkeypatch.setattr(sync, "_MODULES", ("no_such_package_1.module", "tensorboard.no_such_module"))
    monkeypatch.setattr(sync._notices, "_warned", set())
    caplog.set_level(logging.WARNING)
    with tensormeter.init("sync", name="without"):
        sync.start()()
    assert "neither tensorboard nor tensorboardX is installed" in caplog.text
    assert "cannot import tensorboard.no_such_module" in caplog.text
