"""A destination whose package is missing is named when the run begins, and by `finish`; the run itself goes on."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

import pytest

import tensormeter
from support.processes import clean_environment, run_python
from tensormeter.packages import PACKAGES, problem_with

SCRIPT = """
import sys, tensormeter
run = tensormeter.init(project="p", id="r")
run.log({"loss": 1.0}, 0)
print("-- end of training", file=sys.stderr, flush=True)
run.finish()
"""


def test_a_missing_package_is_named_at_the_start_and_at_the_end(tmp_path):
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')\n")
    environment = clean_environment("TENSORMETER_", "OTEL_", "WANDB_") | {
        "TENSORMETER_EXPORTERS": "wandb",
        "TENSORMETER_DIR": str(tmp_path / "state"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_FINISH_TIMEOUT": "60",
        "TENSORMETER_LINGER_TIMEOUT": "0",
        "PYTHONPATH": str(package.parent),
    }
    done = run_python("-c", SCRIPT, environment=environment, check=True)
    before, _, after = done.stderr.partition("-- end of training")
    assert before.count("wandb: ") == 1
    assert f"would be imported from {package}" in before
    assert "pip install 'tensormeter[wandb]'" in before
    assert (
        "run r has not been fully delivered to wandb yet (wandb: SettingsError: wandb needs the package 'wandb'"
        in after
    )
    assert "http://" not in after


@pytest.fixture
def begin(tmp_path, caplog, monkeypatch):
    """Begins a run to a destination, and returns what was said about it."""
    monkeypatch.chdir(tmp_path)  # TensorBoard writes into a folder next to the script
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)

    def begin(destination, **settings):
        given = {"agent": "thread", "finish_timeout": 0, "linger_timeout": 0, **settings}
        folders = {"directory": tmp_path / "runs", "buffer_directory": tmp_path / "rings", "buffer_bytes": 1 << 18}
        run = tensormeter.init(settings={"exporters": [destination], **folders, **given})
        warnings = [record.getMessage() for record in caplog.records if "pip install" in record.getMessage()]
        run.finish()
        return warnings

    return begin


def test_a_folder_of_that_name_is_no_package(begin, monkeypatch):
    """W&B writes into a folder `wandb` where a script was started, and Python takes that for a package."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin=None))
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    (line,) = begin("tensorboard")
    assert "tensorboard: the package 'tensorboard' is not installed" in line
    assert begin("tensorboard", mode="offline")[1:] == [], "another machine may deliver it"
    assert begin("console")[1:] == []


def test_packages_that_are_installed_are_no_problem():
    installed = [package for package in PACKAGES if importlib.util.find_spec(package)]
    assert {"wandb", "mlflow", "tensorboard", "prometheus_client"} <= set(installed)
    assert [problem_with(package) for package in installed] == [""] * len(installed)
