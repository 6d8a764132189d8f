"""A secret of a training script is in no file that its run writes, and in nothing that is delivered."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import tensormeter
from support.processes import clean_environment
from tensormeter import Settings

SECRET = "Zq7XWmK2pL"
SCRIPT = """
import argparse, tensormeter
parser = argparse.ArgumentParser()
parser.add_argument("--password")
parser.add_argument("--lr", type=float)
arguments = parser.parse_args()
with tensormeter.init("p", id="r", config=vars(arguments)) as run:
    run.log({"loss": 1.0}, 1)
    run.update_config({"service": {"access_token": arguments.password, "max_tokens": 512}})
    run.log({"loss": 2.0}, 2)
"""


def files_with_the_secret(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def delivered(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*.jsonl"))


@pytest.mark.parametrize("masked", [True, False])
def test_no_file_and_no_request_contains_the_secret(tmp_path, masked):
    variables = {
        "TENSORMETER_DIR": str(tmp_path / "runs"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_EXPORTERS": "jsonl",
        "TENSORMETER_EXPORTER_OPTIONS": f"jsonl.directory={tmp_path / 'out'}",
        "TENSORMETER_AGENT": "off",
        "TENSORMETER_MASK_CONFIG": str(masked),
    }
    clean = clean_environment("TENSORMETER_")
    command = [sys.executable, "-c", SCRIPT, "--password", SECRET, "--lr", "0.001"]
    for line in (command, [sys.executable, "-m", "tensormeter", "sync"]):
        if line is not command:
            rings = files_with_the_secret(tmp_path)
            assert bool(rings) != masked, rings
        done = subprocess.run(line, env=clean | variables, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if line is command:
            warned = "config: password is recorded as ***" in done.stderr
            assert (warned, "config: service.access_token is recorded as ***" in done.stderr) == (masked, masked), (
                done.stderr
            )
    assert bool(files_with_the_secret(tmp_path)) != masked
    text = delivered(tmp_path / "out")
    assert "access_token" in text
    assert "512" in text
    assert "0.001" in text
    assert ("***" in text, SECRET in text) == (True, not masked)  # the command line is masked in any case


@pytest.fixture
def settings(tmp_path):
    return Settings(directory=tmp_path / "runs", buffer_directory=tmp_path / "rings", mode="offline", agent="off")


def test_a_warning_names_each_masked_entry_once(settings, caplog):
    config = {"password": SECRET, "lr": 1e-3, "keys": {"api_key": SECRET}}
    with caplog.at_level(logging.WARNING, "tensormeter"), tensormeter.init(config=config, settings=settings) as run:
        assert run.config == {"password": "***", "lr": 1e-3, "keys": {"api_key": "***"}}
        run.update_config({"password": SECRET + "2", "steps": 5})
        assert run.config == {"password": "***", "lr": 1e-3, "keys": {"api_key": "***"}, "steps": 5}
        run.update_config({"url": f"https://u:{SECRET}@h/x"})
        assert run.config["url"] == "https://***@h/x"
    warnings = [record.getMessage() for record in caplog.records if "recorded as ***" in record.getMessage()]
    assert [f"config: {names} recorded as ***" in text for names, text in zip(
        ("password, keys.api_key are", "url is"), warnings, strict=True,
    )] == [True, True], warnings  # fmt: skip
    assert SECRET not in caplog.text
    assert config["password"] == SECRET


def test_a_secret_of_the_environment_is_masked_under_any_name(settings, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "correct-horse")
    with tensormeter.init(config={"x": ["correct-horse"], "y": "a correct-horse", "n": 1}, settings=settings) as run:
        assert run.config == {"x": ["***"], "y": "a ***", "n": 1}


def test_one_rank_of_many_warns(settings, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "tensormeter"):
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            tensormeter.init(config={"password": SECRET}, settings=settings, id="r").finish()
    levels = [record.levelname for record in caplog.records if "recorded as ***" in record.getMessage()]
    assert levels == ["WARNING", "INFO", "INFO"]


def test_many_masked_entries_make_a_short_warning(settings, caplog):
    tensormeter.init(config={f"password_{n}": SECRET for n in "abcdefghijkl"}, settings=settings).finish()
    assert "password_j and 2 more are recorded as ***, because they look like secrets" in caplog.text


def test_masking_of_the_configuration_can_be_switched_off(settings, caplog):
    config = {"password": SECRET}
    with tensormeter.init(config=config, settings=settings.replace(mask_config=False)) as run:
        assert run.config == config
        run.update_config({"token": SECRET})
        assert run.config == {"password": SECRET, "token": SECRET}
    assert "recorded as ***" not in caplog.text


def test_a_child_process_gets_the_masked_configuration(settings):
    with tensormeter.init(config={"password": SECRET}, settings=settings) as run:
        assert SECRET not in json.dumps(run.__reduce__()[1][0]["config"])
