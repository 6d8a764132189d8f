"""Jobs of Hydra become runs."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import tensormeter
from support.documents import examples
from support.processes import run_python
from tensormeter.integrations.hydra import TensormeterCallback, _resolve

CALLBACK = "+hydra.callbacks.tensormeter._target_=tensormeter.integrations.hydra.TensormeterCallback"

SCRIPT = """
import hydra
import tensormeter

{before}

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(config):
    for step in range(3):
        tensormeter.log({{"loss": config.lr * step}}, step)
    if config.lr > 1:
        raise ValueError("the loss diverged")
    return float(config.lr)

main()
"""

CONFIG = """
lr: 0.5
model: {layers: [1, 2], width: "${oc.env:WIDTH,64}"}
path: ???
secret: ${unknown:resolver}
double: ${.lr}
"""


@pytest.fixture
def job(tmp_path, experiment):
    """Runs the script as Hydra's users do, and returns the process."""

    def run(*arguments: str, before: str = "", **variables: str):
        (tmp_path / "train.py").write_text(SCRIPT.format(before=before))
        (tmp_path / "config.yaml").write_text(CONFIG)
        environment = {**experiment.environment, "TENSORMETER_PROJECT": tmp_path.name, **variables}
        return run_python("train.py", *arguments, environment=environment, folder=tmp_path)

    return run


def test_a_job_is_a_run_with_its_configuration(job, experiment, tmp_path):
    assert job(CALLBACK, "lr=0.25").returncode == 0
    (run,) = experiment.runs(tmp_path.name, 1)
    assert (run.name, run.state, run.group) == ("train", "finished", "")
    config = dict(run.config)
    described = config.pop("hydra")
    assert config == {
        "lr": 0.25,
        "model": {"layers": [1, 2], "width": "64"},
        "path": "???",
        "secret": "***",  # the name looks like one
        "double": 0.25,
    }
    assert described["overrides"] == ["lr=0.25"]
    assert described["job"] == {"name": "train"}
    assert Path(described["output_dir"], "train.log").exists()
    assert experiment.points(run, "loss") == [(step, step / 4) for step in range(3)]
    assert experiment.last(run, "return_value") == 0.25


def test_a_job_that_raises_is_a_failed_run(job, experiment, tmp_path):
    assert job(CALLBACK, "lr=2").returncode == 1
    (run,) = experiment.runs(tmp_path.name, 1)
    assert run.state == "failed"
    assert "the loss diverged" in run.events("tensormeter.run.end")[0].body["traceback"]


def test_jobs_of_a_sweep_are_runs_of_a_group(job, experiment, tmp_path):
    assert job("-m", CALLBACK, "lr=0.5,0.75", TENSORMETER_RUN_ID="sweep").returncode == 0
    runs = experiment.runs(tmp_path.name, 2)
    assert [run.name for run in runs] == ["train-0", "train-1"]
    assert [run.id for run in runs] == ["sweep-0", "sweep-1"]
    assert [run.config["hydra"]["job"]["num"] for run in runs] == [0, 1]
    assert [recorded_lr(run) for run in runs] == [0.5, 0.75]
    (group,) = {run.group for run in runs}
    assert group.startswith("multirun/")


def recorded_lr(run) -> float:
    return run.config["lr"]


def test_the_script_run_gets_the_configuration_and_goes_on(job, experiment, tmp_path):
    before = (
        'run = tensormeter.init(name="mine")\nimport atexit\natexit.register(lambda: print("open", not run.finished))'
    )
    process = job(CALLBACK, before=before)
    assert process.returncode == 0
    (run,) = experiment.runs(tmp_path.name, 1)
    assert (run.name, run.config["lr"]) == ("mine", 0.5)


def test_values_that_cannot_be_resolved_become_their_text():
    OmegaConf.register_new_resolver("fails", lambda: 1 / 0, replace=True)
    config = OmegaConf.create(
        {"a": "${b}", "b": 1, "c": "${nowhere}", "d": ["${fails:}", {"e": "???", "f": "${a}"}], "g": None}
    )
    expected = {"a": 1, "b": 1, "c": "${nowhere}", "d": ["${fails:}", {"e": "???", "f": 1}], "g": None}
    assert _resolve(config) == expected


def test_invalid_options_are_refused_before_the_job():
    with pytest.raises(TypeError, match="projct"):
        TensormeterCallback(projct="a")
    with pytest.raises(tensormeter.SettingsError, match="tags"):
        TensormeterCallback(tags=5)


def test_a_failing_callback_warns_and_the_job_goes_on(monkeypatch, caplog):
    monkeypatch.setattr("tensormeter.integrations.shield._warned", set())
    callback = TensormeterCallback(tags=["a"])
    callback.on_job_start(DictConfig({"no": "hydra"}))
    assert "TensormeterCallback.on_job_start failed" in caplog.text
    assert tensormeter.run is None


def test_examples_of_the_page_run(experiment, tmp_path):
    (script,) = examples("integrations/hydra.md")
    (config,) = examples("integrations/hydra.md", "yaml")
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "config.yaml").write_text(config)
    for arguments in ((), ("-m", "lr=0.01,0.1")):
        run_python("train.py", *arguments, environment=experiment.environment, folder=tmp_path, check=True)
    runs = experiment.runs("digits", 3)
    assert [run.name for run in runs] == ["train", "train-0", "train-1"]
    assert all(experiment.points(run, "loss") for run in runs)
