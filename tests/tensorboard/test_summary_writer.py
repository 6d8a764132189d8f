"""`SummaryWriter` compared with torch's: the same calls, the same names, steps and values."""

import gc
import inspect
import math
import multiprocessing
import os
import weakref
from collections import defaultdict

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter as TorchWriter

import tensormeter
from support.processes import run_python
from tensormeter.session import open_runs
from tensormeter.tensorboard import SummaryWriter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def shape_of(function):
    """Names, kinds and defaults of a function's parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def public_methods(kind):
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_it_has_every_public_method_of_torch_with_the_same_signature():
    methods = public_methods(TorchWriter)
    assert len(methods) > 20
    assert methods <= public_methods(SummaryWriter)
    for name in methods:
        assert shape_of(getattr(SummaryWriter, name)) == shape_of(getattr(TorchWriter, name)), name


def test_the_constructor_takes_torchs_arguments_and_keywords_of_init():
    torchs, ours = shape_of(TorchWriter.__init__), shape_of(SummaryWriter.__init__)
    assert ours[: len(torchs)] == torchs
    assert all(
        kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD) for _, kind, _ in ours[len(torchs) :]
    )


def write_scalars(writer):
    """Scalars as scripts write them: of all types, in any order of steps, with odd names."""
    parameter = torch.nn.Parameter(torch.tensor([0.25]))
    for step in range(20):
        writer.add_scalar("charts/episodic_return", step * 1.5, step * 128)
        writer.add_scalar("losses/value loss", torch.tensor(1 / (step + 1)), global_step=step)
        writer.add_scalar("Lässt/sich%n", np.float32(step / 3), step, new_style=True)
        writer.add_scalar("integer", step, np.int64(step))
        writer.add_scalar("double", step / 7, step, new_style=True, double_precision=True)
    writer.add_scalar("parameter", parameter, 3)
    writer.add_scalar("array", np.array([[2.5]]), 4)
    writer.add_scalar("bf16", torch.tensor(1.5, dtype=torch.bfloat16), 5)
    writer.add_scalar("bool", True, 6)
    writer.add_scalar("text", "1.25", 7)
    writer.add_scalar("nan", float("nan"), 8)
    writer.add_scalar("inf", float("-inf"), 9)
    writer.add_scalar("float step", 1.0, 10.0)
    writer.add_scalar("float32 step", 1.0, np.float32(10.75))
    writer.add_scalar("text step", 1.0, "11")
    writer.add_scalar("backwards", 1.0, 10)
    writer.add_scalar("backwards", 2.0, 5)


def test_scalars_have_the_names_steps_and_values_that_torch_writes(recorded, tmp_path):
    with TorchWriter(str(tmp_path / "torch")) as writer:
        write_scalars(writer)
    with SummaryWriter("runs/scalars") as writer:
        write_scalars(writer)
    accumulator = EventAccumulator(str(tmp_path / "torch"), {"scalars": 0, "tensors": 0}).Reload()
    expected = defaultdict(list)
    for tag in accumulator.Tags()["scalars"]:
        expected[tag] = sorted((event.step, event.value) for event in accumulator.Scalars(tag))
    for tag in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors(tag):
            (value,) = event.tensor_proto.float_val or event.tensor_proto.double_val
            expected[tag].append((event.step, value))
    points = recorded.points("scalars")
    assert points.keys() == expected.keys()
    for tag, pairs in expected.items():
        written = [(step, value if tag == "double" else float(np.float32(value))) for step, value in points[tag]]
        assert repr(sorted(written)) == repr(pairs), tag
    assert recorded.run("scalars").lost == 0


def test_scalars_without_a_step_are_counted_for_each_tag(recorded):
    with SummaryWriter("runs/counted") as writer:
        for value in range(3):
            writer.add_scalar("a", value)
            writer.add_scalars("b", {"x": value, "y": -value})
        writer.add_scalar("c", 1, 10)
        writer.add_scalar("c", 2)
    assert recorded.points("counted") == {
        "a": [(0, 0), (1, 1), (2, 2)],
        "b/x": [(0, 0), (1, 1), (2, 2)],
        "b/y": [(0, 0), (1, -1), (2, -2)],
        "c": [(10, 1), (11, 2)],
    }


def test_tensors_reach_the_run_without_being_read(recorded, monkeypatch):
    def fail(self):
        raise AssertionError("it waits for the device")

    writer = SummaryWriter("runs/unread")
    with monkeypatch.context() as patch:
        for method in ("item", "cpu", "tolist", "__float__"):
            patch.setattr(torch.Tensor, method, fail)
        logged = []
        patch.setattr(writer.run, "log", lambda values, step: logged.append(values))
        loss = torch.tensor(0.5)
        writer.add_scalar("loss", loss, 0)
        writer.add_scalars("losses", {"a": loss}, 0)
    assert logged[0]["loss"] is loss
    assert logged[1]["losses/a"] is loss
    writer.close()


def test_writers_of_several_folders_have_separate_runs_in_one_group(recorded):
    train, val = SummaryWriter("runs/exp 1/train"), SummaryWriter("runs/exp 1/val")
    train.add_scalar("loss", 1.0, 0)
    val.add_scalar("loss", 2.0, 0)
    train.add_scalar("loss", 3.0, 1)
    val.close()
    train.add_scalar("loss", 4.0, 2)
    train.close()
    assert recorded.points("exp 1/train") == {"loss": [(0, 1), (1, 3), (2, 4)]}
    assert recorded.points("exp 1/val") == {"loss": [(0, 2)]}
    assert {recorded.run(f"exp 1/{name}").group for name in ("train", "val")} == {"exp 1"}


def test_log_dir_names_the_run(recorded, tmp_path):
    names = {
        "runs/plain": "plain",
        tmp_path / "runs" / "path": "path",
        f"{tmp_path}/logs/under here": "logs/under here",
        "./runs/a b/ü%2F=1,x": "a b/ü%2F=1,x",
    }
    for folder, name in names.items():
        with SummaryWriter(folder) as writer:
            assert writer.run.name == name
            assert writer.log_dir == folder
            assert writer.get_logdir() == str(folder)
            assert os.path.isdir(folder)  # scripts store checkpoints there
            assert writer.run.project == "tensorboard"
    with SummaryWriter(comment="_lr0.1") as writer:
        assert writer.run.name.endswith("_lr0.1")
        assert writer.get_logdir() == f"runs/{writer.run.name}"


def test_the_environment_and_arguments_beat_the_default_project(monkeypatch, recorded):
    monkeypatch.setenv("TENSORMETER_PROJECT", "from the environment")
    with SummaryWriter("runs/p1") as writer:
        assert writer.run.project == "from the environment"
    with SummaryWriter("runs/p2", project="stated", config={"lr": 0.1}, tags=["a"]) as writer:
        assert writer.run.project == "stated"
    assert recorded.run("p2", "stated").config == {"lr": 0.1}
    with pytest.raises(TypeError, match="projekt"):
        SummaryWriter("runs/p3", projekt="x")


def test_a_stated_run_id_does_not_join_two_folders(monkeypatch, recorded):
    monkeypatch.setenv("TENSORMETER_RUN_ID", "stated-id")
    with SummaryWriter("runs/ids/train") as train, SummaryWriter("runs/ids/val") as val:
        assert train.run.id == "stated-id"
        assert val.run.id.startswith("stated-id-")


def test_a_writer_logs_to_the_run_that_the_script_has_started(recorded):
    with tensormeter.init("mine", name="script run") as run:
        with SummaryWriter("runs/whole") as writer:
            assert writer.run is run
            writer.add_scalar("loss", 1.0, 0)
        other = SummaryWriter("runs/other")
        other.add_scalar("loss", 2.0, 0)
        other.close()
        with SummaryWriter("runs/separate", project="mine") as separate:
            assert separate.run is not run
        assert not run.finished
    assert recorded.points("script run") == {"loss": [(0, 1)], "other/loss": [(0, 2)]}


def test_writers_of_several_folders_in_one_run_have_prefixes(recorded):
    with tensormeter.init("mine", name="both") as run:
        train, val = SummaryWriter("runs/x/train"), SummaryWriter("runs/x/val")
        train.add_scalar("loss", 1.0, 0)
        val.add_scalar("loss", 2.0, 0)
        assert train.run is val.run is run
        train.close()
        val.close()
    assert recorded.points("both") == {"train/loss": [(0, 1)], "val/loss": [(0, 2)]}


def test_a_writer_logs_to_a_stated_run(recorded):
    run = tensormeter.init("mine", name="stated run")
    current = tensormeter.init("mine", name="current run")
    with SummaryWriter(run=run) as writer:
        writer.add_scalar("loss", 1.0, 0)
    assert not run.finished
    current.finish()
    run.finish()
    assert recorded.points("stated run") == {"loss": [(0, 1)]}
    assert recorded.points("current run") == {}


def test_writers_of_trials_in_one_folder_log_to_their_own_trial(recorded):
    trials = [tensormeter.init("mine", name=name, concurrent=True) for name in ("trial 1", "trial 2")]
    for value, trial in enumerate(trials):
        with trial.as_current():
            writer = SummaryWriter("logs")  # stays open, as the next trial begins
        writer.add_scalar("loss", value, 0)
    for trial in trials:
        trial.finish()
    assert [recorded.points(trial.name) for trial in trials] == [{"loss": [(0, 0)]}, {"loss": [(0, 1)]}]


def test_a_finished_run_is_forgotten_with_its_open_writers():
    def record(name):
        run = tensormeter.init(name=name, mode="disabled")
        SummaryWriter(name).add_scalar("loss", 1.0, 0)
        run.finish()
        return weakref.ref(run)

    first, _ = (record(f"forgotten {number}") for number in range(2))
    gc.collect()
    assert first() is None


def test_writers_of_one_folder_share_a_run(recorded):
    """Scripts open a second writer on `writer.get_logdir()`, to write hyperparameters next to the scalars."""
    writer = SummaryWriter("runs/shared")
    with SummaryWriter(log_dir=writer.get_logdir()) as second:
        assert second.run is writer.run
        second.add_scalar("second", 1.0, 0)
    writer.add_scalar("first", 2.0, 0)
    writer.close()
    assert recorded.points("shared") == {"second": [(0, 1)], "first": [(0, 2)]}
    assert recorded.run("shared").attempt == 1


def test_a_closed_writer_may_be_used_again(recorded):
    """A tutorial of PyTorch closes the writer after each section and in a loop, and goes on with it."""
    writer = SummaryWriter("runs/reopened")
    writer.add_scalar("loss", 1.0, 0)
    first = writer.run
    writer.close()
    assert first.finished
    assert writer.file_writer is None
    for step in range(1, 4):
        writer.add_scalar("loss", 2.0, step)
        writer.flush()
        writer.close()
        writer.close()
    second = writer.run
    assert not second.finished
    open_runs.finish_all()  # as the end of the program does
    run = recorded.run("reopened")
    assert recorded.points(run) == {"loss": [(0, 1), (1, 2), (2, 2), (3, 2)]}
    assert (run.state, run.attempt, second.id) == ("finished", 2, first.id)


def test_a_writer_of_a_purged_run_hides_the_steps_that_it_repeats(recorded):
    """An example of tensorboardX resumes at step 42, in the same folder."""
    for first, last, value in ((0, 100, 1.0), (42, 100, 2.0)):
        with SummaryWriter(logdir="runs/purge", purge_step=first) as writer:
            for step in range(first, last):
                writer.add_scalar("x", value, step)
    open_runs.finish_all()
    assert recorded.points("purge") == {"x": [(step, 1.0 if step < 42 else 2.0) for step in range(100)]}


def test_an_exception_in_the_block_fails_the_run(recorded):
    with pytest.raises(ZeroDivisionError), SummaryWriter("runs/failing") as writer:
        writer.add_scalar("loss", 1 / 0)
    assert recorded.run("failing").state == "failed"


def test_hyperparameters_become_configuration_and_metrics_summary(recorded):
    with SummaryWriter("runs/hparams") as writer:
        writer.add_hparams(
            {"lr": 0.1, "bsize": 8, "opt": "sgd", "ema": True}, {"hparam/accuracy": 0.5, "hparam/loss": 10}
        )
    run = recorded.run("hparams")
    assert run.config == {"lr": 0.1, "bsize": 8, "opt": "sgd", "ema": True}
    assert recorded.points(run) == {"hparam/accuracy": [(0, 0.5)], "hparam/loss": [(0, 10)]}
    assert run.summary["hparam/accuracy"].value == 0.5


def test_each_set_of_hyperparameters_becomes_an_experiment(recorded):
    """The example in torch's documentation calls `add_hparams` in a loop."""
    with SummaryWriter("runs/sweep") as writer:
        for i in range(3):
            writer.add_hparams({"lr": 0.1 * i}, {"hparam/accuracy": 10 * i}, run_name=f"trial {i}")
    runs = {run.name: run for run in recorded.client.runs() if run.name.startswith("sweep")}
    assert {name: run.config["lr"] for name, run in runs.items()} == {
        "sweep": 0.0,
        "sweep/trial 1": 0.1,
        "sweep/trial 2": 0.2,
    }
    assert {run.group for name, run in runs.items() if name != "sweep"} == {"sweep"}


def test_bad_values_are_counted_and_never_raise(recorded, caplog):
    class Unreadable:
        def __str__(self):
            raise RuntimeError("no")

    with SummaryWriter("runs/bad") as writer:
        for value in (Unreadable(), object(), {1: Unreadable()}, None):
            writer.add_scalar("scalar", value, 0)
            writer.add_scalars("scalars", value, 0)
            writer.add_histogram("histogram", value, 0)
            writer.add_histogram_raw("raw", value, 1, 1, 1, 1, value, value, 0)
            writer.add_image("image", value, 0)
            writer.add_image_with_boxes("boxes", value, value, 0)
            writer.add_figure("figure", value, 0)
            writer.add_video("video", value, 0)
            writer.add_audio("audio", value, 0)
            writer.add_text("text", value, 0)
            writer.add_pr_curve("curve", value, value, 0)
            writer.add_pr_curve_raw("curve", *[value] * 6)
            writer.add_hparams(value, value)
            writer.add_tensor("tensor", value, 0)
        writer.add_scalar(5, 1.0, 0)
        writer.add_scalar([], 1.0, 0)
        writer.add_scalars([], {"a": 1.0}, 0)
        writer.add_scalar("step", 1.0, "ten")
        writer.add_image("image", np.zeros((3, 8, 8)), 0, dataformats="HW")
        writer.add_histogram("bins", [1.0, 2.0], 0, bins="unknown")
        writer.add_audio("audio", np.zeros(8), 0, sample_rate=0)
        writer.add_scalar("good", 1.0, 0)
    run = recorded.run("bad")
    assert recorded.points(run)["good"] == [(0, 1)]
    assert run.lost > 20
    assert "image is not recorded" in caplog.text.replace("'", "")


def test_ignored_methods_warn_once(recorded, caplog, monkeypatch):
    monkeypatch.setattr("tensormeter.tensorboard.ignored_methods._notices._warned", set())
    with SummaryWriter("runs/ignored") as writer:
        for _ in range(2):
            writer.add_graph(torch.nn.Linear(1, 1), torch.zeros(1))
            writer.add_embedding(torch.zeros(2, 2), ["a", "b"])
            writer.add_mesh("m", torch.zeros(1, 3, 3))
            writer.add_custom_scalars({})
            writer.add_custom_scalars_multilinechart(["a"])
            writer.add_custom_scalars_marginchart(["a", "b", "c"])
            writer.add_onnx_graph("file")
    warnings = [record.message for record in caplog.records if "is ignored" in record.message]
    assert len(warnings) == 7
    assert "SummaryWriter.add_graph is ignored: tensormeter does not keep graphs of models" in warnings


def test_a_disabled_writer_records_nothing(recorded):
    with SummaryWriter("runs/disabled", mode="disabled") as writer:
        write_scalars(writer)
        writer.add_text("t", "x")
        writer.add_hparams({"a": 1}, {"b": 2})
    with SummaryWriter("runs/disabled", write_to_disk=False, comet_config={"disabled": True}) as writer:  # tensorboardX
        writer.add_scalar("a", 1, 0)
    assert not [run for run in recorded.client.runs() if run.name == "disabled"]


def test_messages_for_the_file_writer_are_recorded(recorded):
    """A common snippet writes hyperparameters into the run's folder with `file_writer`."""
    from torch.utils.tensorboard.summary import hparams, scalar

    writer = SummaryWriter("runs/messages")
    experiment, start, end = hparams({"lr": 0.5, "layers": 3, "name": "x"}, {"loss": 0})
    with SummaryWriter(log_dir=writer._get_file_writer().get_logdir()) as second:
        for message in (experiment, start, end):
            second.file_writer.add_summary(message)
        second.file_writer.add_summary(scalar("a", 2.0), 7)
        second.file_writer.add_summary(scalar("a", 3.0))
    assert list(writer.all_writers) == ["runs/messages"]
    writer.close()
    assert recorded.run("messages").config == {"lr": 0.5, "layers": 3, "name": "x"}
    assert recorded.points("messages") == {"a": [(7, 2), (8, 3)]}


def test_nan_and_infinity_stay(recorded):
    with SummaryWriter("runs/special") as writer:
        writer.add_scalar("nan", math.nan, 0)
        writer.add_scalar("inf", math.inf, 0)
    points = recorded.points("special")
    assert math.isnan(points["nan"][0][1])
    assert points["inf"] == [(0, math.inf)]


def test_in_a_notebook_writers_of_several_folders_stay_open(tmp_path):
    """A run of the script itself ends when another run begins in a notebook; see `tensormeter.init`."""
    script = """
import sys, types
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: object())
import tensormeter
from tensormeter.tensorboard import SummaryWriter
given = {"settings": {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "mode": "offline", "agent": "off"}}
train, val = SummaryWriter("runs/x/train", **given), SummaryWriter("runs/x/val", **given)
first = tensormeter.init(**given)
second = tensormeter.init(**given)
assert first.finished and not train.run.finished and not val.run.finished
train.close()
assert not val.run.finished and not second.finished
"""
    run_python("-c", script, tmp_path, folder=tmp_path, check=True)


def test_a_spawned_process_writes_to_the_run_of_the_writer(recorded, tmp_path):
    context = multiprocessing.get_context("spawn")
    with SummaryWriter("runs/spawned") as writer:
        writer.add_scalar("parent", 1.0, 0)
        child = context.Process(target=writer.add_scalar, args=["child", 2.0, 5])
        child.start()
        child.join()
        assert child.exitcode == 0
    assert recorded.points("spawned") == {"parent": [(0, 1)], "child": [(5, 2)]}


def test_it_needs_neither_torch_nor_tensorboard(tmp_path):
    script = """
import sys
from tensormeter.tensorboard import SummaryWriter
writer = SummaryWriter("runs/light", mode="disabled")
writer.add_scalar("loss", 0.5, 0)
writer.add_scalars("losses", {"a": 0.5})
writer.add_text("text", "text")
writer.close()
assert not {"torch", "tensorboard", "tensorboardX", "numpy", "google.protobuf"} & sys.modules.keys()
"""
    run_python("-c", script, folder=tmp_path, check=True)


def test_ranks_with_one_id_share_a_run(recorded, tmp_path):
    script = """
import os
import weakref
from tensormeter.tensorboard import SummaryWriter
with SummaryWriter("runs/ranks") as writer:
    writer.add_scalar(f"loss/{os.environ['RANK']}", 0.5, 0)
"""
    for rank in ("0", "1"):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "TENSORMETER_RUN_ID": "of-both-ranks"}
        run_python("-c", script, environment={**os.environ, **variables}, folder=tmp_path, check=True)
    run = recorded.run("of-both-ranks")
    assert recorded.points(run) == {"loss/0": [(0, 0.5)], "loss/1": [(0, 0.5)]}
    assert [process.rank for process in run.processes()] == [0, 1]
