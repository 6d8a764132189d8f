"""The output format and the callback for Stable-Baselines3, with real algorithms and next to its TensorBoard output."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Figure,
    HParam,
    Image,
    Logger,
    TensorBoardOutputFormat,
    Video,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tensormeter
from support.documents import examples
from support.recorded_runs import RecordedRuns, record_runs
from tensormeter.integrations.sb3 import TensormeterCallback, TensormeterOutputFormat
from tensormeter.session import open_runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedRuns]:
    with record_runs(tmp_path_factory.mktemp("recorded")) as recorded:
        yield recorded


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small networks take longer with several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    open_runs.finish_all()


def make_ppo(**options):
    return PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu", **options)


def test_training_records_what_tensorboard_records(recorded, tmp_path):
    model = make_ppo(tensorboard_log="tb")
    with tensormeter.init("sb3 tests", name="ppo") as run:
        model.learn(256, log_interval=1, callback=TensormeterCallback())
        assert not run.finished
    tensorboard = EventAccumulator(str(tmp_path / "tb" / "PPO_1")).Reload()
    points = recorded.points("ppo")
    assert points.keys() == set(tensorboard.Tags()["scalars"])
    assert len(points) > 8
    for tag, pairs in points.items():
        expected = [(event.step, event.value) for event in tensorboard.Scalars(tag)]
        assert [(step, float(np.float32(value))) for step, value in pairs] == expected, tag
    assert [step for step, _ in points["rollout/ep_rew_mean"]] == [64, 128, 192, 256]


def test_the_configuration_of_the_algorithm_is_recorded(recorded):
    with tensormeter.init("sb3 tests", name="config"):
        make_ppo(learning_rate=lambda progress: 0.5 * progress, policy_kwargs={"net_arch": [8]}).learn(
            64, callback=TensormeterCallback()
        )
    config = recorded.run("config").config
    expected = {
        "algorithm": "PPO",
        "policy": "ActorCriticPolicy",
        "env": "CartPole-v1",
        "n_envs": 1,
        "n_steps": 64,
        "batch_size": 32,
        "gamma": 0.99,
        "clip_range": 0.2,
        "learning_rate": 0.5,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [8]},
        "total_timesteps": 64,
    }
    assert {name: config.get(name) for name in expected} == expected
    assert config["parameters"] > 0


def test_a_run_of_the_callback_stays_open_for_further_training(recorded, monkeypatch):
    monkeypatch.delenv("TENSORMETER_PROJECT", raising=False)
    model = make_ppo()
    callback = TensormeterCallback(name="twice")
    model.learn(128, callback=callback)
    run = callback.run
    assert run.project == "stable-baselines3"
    assert not run.finished
    model.learn(128, callback=callback, reset_num_timesteps=False)
    assert callback.run is run
    other = TensormeterCallback(name="another training")
    make_ppo().learn(64, callback=other)
    assert run.finished
    assert other.run is not run
    other.finish()
    assert [step for step, _ in recorded.points("twice")["rollout/ep_rew_mean"]] == [64, 128, 192, 256]


def test_a_logger_of_the_script_loses_the_outputs_of_earlier_trainings(recorded, caplog):
    logger = Logger(None, [])
    runs = []
    for name in ("first output", "second output"):
        model = make_ppo()
        model.set_logger(logger)
        callback = TensormeterCallback(name=name)
        model.learn(64, callback=callback)
        runs.append(callback.run)
    callback.finish()
    assert [output.run for output in logger.output_formats] == runs[1:]
    assert [step for step, _ in recorded.points("first output")["rollout/ep_rew_mean"]] == [64]
    assert not [record for record in caplog.records if "after the run finished" in record.getMessage()]


@pytest.mark.parametrize("adapter", [TensormeterCallback, TensormeterOutputFormat])
def test_misspelt_arguments_are_refused_before_the_training(adapter):
    with pytest.raises(TypeError, match="projct"):
        adapter(projct="cartpole")


class LogsEverything(BaseCallback):
    """Logs a value of each type once, as the documentation of SB3 does."""

    def _on_training_start(self):
        import matplotlib as mpl

        mpl.use("agg")
        import matplotlib.pyplot as plt

        media = ("stdout", "log", "json", "csv")
        frame = gym.make("CartPole-v1", render_mode="rgb_array")
        self.logger.record("image", Image(np.zeros((8, 10, 3), np.uint8), "HWC"), exclude=media)
        self.logger.record("figure", Figure(plt.figure(figsize=(1, 1)), close=True), exclude=media)
        self.logger.record("video", Video(torch.zeros(1, 3, 3, 8, 10, dtype=torch.uint8), fps=4), exclude=media)
        self.logger.record("hparams", HParam({"alpha": 0.5, "kind": "x"}, {"rollout/ep_len_mean": 0}), exclude=media)
        self.logger.record("tensor", torch.arange(5.0), exclude=media)
        self.logger.record("array", np.arange(6.0), exclude=media)
        self.logger.record("text", "hello", exclude=media)
        self.logger.record("numpy", np.float32(0.5))
        self.logger.record("not here", 1.0, exclude="tensorboard")
        self.logger.record("not there", 1.0, exclude=("csv", "tensormeter"))
        self.logger.record("unknown", object(), exclude=media)
        self.logger.record("none", None, exclude=media)
        self.logger.dump(7)
        frame.close()
        assert not plt.get_fignums()

    def _on_step(self):
        return True


def test_values_of_each_type_are_recorded_and_other_outputs_stay(recorded, tmp_path):
    model = make_ppo()
    csv = CSVOutputFormat("progress.csv")
    with tensormeter.init("sb3 tests", name="types"):
        output = TensormeterOutputFormat()
        model.set_logger(Logger("logs", [csv, output]))
        model.learn(64, callback=LogsEverything())
        output.close()
    csv.close()
    run = recorded.run("types")
    points = recorded.points(run)
    assert points["numpy"] == [(7, 0.5)]
    assert not {"not here", "not there", "none", "rollout/ep_len_mean"} & {
        name for name, pairs in points.items() if pairs[0][0] == 7
    }
    assert {image.key: image.step for image in run.images()} == {"image": 7, "figure": 7}
    assert [video.key for video in run.videos()] == ["video"]
    assert {name: run.histograms(name).count.tolist() for name in ("tensor", "array")} == {"tensor": [5], "array": [6]}
    assert [(text.key, text.text) for text in run.texts("text")] == [("text", "hello")]
    assert run.config["alpha"] == 0.5
    assert "numpy" in (tmp_path / "progress.csv").read_text()


def test_a_failing_value_does_not_stop_the_training(recorded):
    with tensormeter.init("sb3 tests", name="bad"):
        output = TensormeterOutputFormat()
        bad = {"image": Image("no file", "CHW"), "video": Video(None, "x"), "figure": Figure(5, close=True), "ok": 1.0}
        output.write(bad, dict.fromkeys(bad), 3)
    assert recorded.points("bad") == {"ok": [(3, 1.0)]}
    assert recorded.run("bad").lost == 3


def test_the_logger_of_tensorboard_is_not_needed(recorded):
    with tensormeter.init("sb3 tests", name="alone"):
        model = make_ppo()
        model.learn(64, callback=TensormeterCallback())
        assert not any(isinstance(output, TensorBoardOutputFormat) for output in model.logger.output_formats)
    assert recorded.points("alone")


def test_invalid_options_are_refused_before_the_training():
    with pytest.raises(TypeError, match="projct"):
        TensormeterCallback(projct="a")
    with pytest.raises(tensormeter.SettingsError, match="tags"):
        TensormeterCallback(tags=5)


def test_the_examples_of_the_page_run(recorded):
    for example in examples("integrations/stable-baselines3.md"):
        exec(example, {"__name__": "__main__"})
    runs = {run.name: recorded.points(run) for run in recorded.client.runs("cartpole")}
    assert len(runs) == 2
    assert "rollout/ep_rew_mean" in runs.pop("ppo")
    assert list(runs.values()) == [{"rollout/ep_rew_mean": [(64, 12.5)]}]
