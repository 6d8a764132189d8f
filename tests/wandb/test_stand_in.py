"""`install` in separate processes, because it replaces a module."""

import sys
from pathlib import Path

import pytest

from support.processes import clean_environment, run_python
from support.wandb_records import records, rows

THIRD_PARTY = """
import importlib.util
import tensormeter.wandb
tensormeter.wandb.install()
tensormeter.wandb.install()

def is_wandb_available():
    return importlib.util.find_spec("wandb") is not None and hasattr(__import__("wandb"), "run")

assert is_wandb_available()
import wandb
import wandb.plot
import wandb.sdk.wandb_run
from wandb.errors import CommError
from wandb.sdk.wandb_run import Run
from wandb import Table, init
from wandb.sdk.lib import RunDisabled
from wandb.sdk.lib.config_util import ConfigError
from wandb.sdk.lib.runid import generate_id
from wandb.wandb_run import Run as SameRun
assert SameRun is Run and issubclass(ConfigError, wandb.Error) and generate_id()
assert Run is tensormeter.wandb.Run is wandb.sdk.wandb_run.Run is wandb.wandb_sdk.wandb_run.Run
assert wandb.plot is tensormeter.wandb.plot
assert wandb.__spec__.name == "wandb" and wandb.__name__ == "wandb"
assert wandb.run is None
with init(project="third") as run:
    assert wandb.run is run is tensormeter.wandb.run
    wandb.config = {"a": 1}
    assert run.config.a == 1
    wandb.log({"table": Table(columns=["a"], data=[[1]])})
try:
    import wandb.keras
except ImportError as error:
    print(error)
try:
    wandb.launch
except AttributeError as error:
    print(error)
"""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    return clean_environment("WANDB_", "TENSORMETER_") | {
        "TENSORMETER_DIR": str(folder / "state"),
        "TENSORMETER_EXPORTERS": "jsonl",
        "TENSORMETER_MODE": "offline",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        **variables,
    }


def test_third_party_code_finds_the_module(tmp_path: Path) -> None:
    process = run_python("-c", THIRD_PARTY, environment=environment(tmp_path), folder=tmp_path, check=True)
    assert "No module named 'wandb.keras'" in process.stdout
    assert "'launch': start the script with your scheduler" in process.stdout


WITH_DESTINATION = """
import tensormeter.wandb
tensormeter.wandb.install()
import wandb
run = wandb.init(project="both", id="both")
for step in range(3):
    wandb.log({"loss": step}, step=step)
wandb.finish()
assert wandb.init is tensormeter.wandb.init
"""


@pytest.mark.parametrize("agent", ["process", "thread"])
def test_the_wandb_destination_uses_the_real_package(tmp_path: Path, agent: str) -> None:
    pytest.importorskip("wandb")
    variables = environment(
        tmp_path,
        TENSORMETER_EXPORTERS="wandb",
        TENSORMETER_EXPORTER_OPTIONS=f"wandb.directory={tmp_path / 'out'}",
        TENSORMETER_MODE="online",
        TENSORMETER_AGENT=agent,
        TENSORMETER_FINISH_TIMEOUT="300",
    )
    process = run_python("-c", WITH_DESTINATION, environment=variables, folder=tmp_path, check=True)
    (path,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    assert [row["loss"] for row in rows(records(path)) if "loss" in row] == [0, 1, 2]
    assert ("runs in a process instead of a thread" in process.stderr) is (agent == "thread")
    assert "not installed" not in process.stderr


def test_the_check_of_packages_is_not_misled(tmp_path: Path) -> None:
    """A finder that hides W&B's package stands for an environment without it."""
    program = """
import importlib.abc, sys
import tensormeter.wandb
from tensormeter.packages import problem_with
tensormeter.wandb.install()
print(problem_with("wandb") or "found")
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "wandb": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
print(problem_with("wandb") or "found")
"""
    output = run_python("-c", program, environment=environment(tmp_path), folder=tmp_path, check=True).stdout
    assert output.splitlines()[-1] == "the package 'wandb' is not installed"
    if "wandb" in sys.modules or __import__("importlib.util").util.find_spec("wandb").origin:
        assert output.splitlines()[0] == "found"


def test_the_exporter_refuses_to_load_the_stand_in(tmp_path: Path) -> None:
    program = """
import tensormeter.wandb
tensormeter.wandb.install()
from tensormeter.exporter import load_exporter
try:
    load_exporter("wandb")(None)
except Exception as error:
    print(error)
"""
    output = run_python("-c", program, environment=environment(tmp_path), folder=tmp_path, check=True).stdout
    assert "wandb.install() has replaced it in this process" in output


def test_install_refuses_to_hide_the_package_from_a_destination_in_this_process(tmp_path: Path) -> None:
    program = """
import tensormeter
import tensormeter.wandb
run = tensormeter.init(id="first")
try:
    tensormeter.wandb.install()
except tensormeter.UsageError as error:
    print(error)
run.finish(timeout=0)
"""
    variables = environment(
        tmp_path,
        TENSORMETER_EXPORTERS="wandb",
        TENSORMETER_EXPORTER_OPTIONS=f"wandb.directory={tmp_path / 'out'}",
        TENSORMETER_MODE="online",
        TENSORMETER_AGENT="thread",
    )
    output = run_python("-c", program, environment=variables, folder=tmp_path, check=True).stdout
    assert "uses W&B's package in this process (agent='thread'); call install() before init()" in output


def test_uninstall_restores_the_real_package(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    program = """
import wandb
import tensormeter.wandb
real = wandb
tensormeter.wandb.install()
import wandb as stand_in
assert stand_in is not real and stand_in.init is tensormeter.wandb.init
tensormeter.wandb.uninstall()
import wandb, wandb.sdk.wandb_run
assert wandb is real and wandb.sdk.wandb_run.Run is not tensormeter.wandb.Run
"""
    process = run_python("-c", program, environment=environment(tmp_path), folder=tmp_path, check=True)
    assert "W&B's package was imported before" in process.stderr
