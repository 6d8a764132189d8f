"""Folders of the user, and variables of ours that are empty, in any surroundings."""

import os
from pathlib import Path

import pytest

from support.processes import clean_environment, run_python
from tensormeter import SettingsError
from tensormeter.disk.user_folders import NO_FOLDER, user_data_folder, user_state_folder
from tensormeter.server.config import ServerConfig
from tensormeter.settings import Settings, describe_settings


@pytest.mark.parametrize("home", ["", "relative", "~no-such-user"])
@pytest.mark.parametrize("find", [user_state_folder, user_data_folder])
def test_the_folder_of_a_user_is_absolute_for_every_home(monkeypatch, find, home):
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", home)
    assert find().is_absolute()


@pytest.mark.parametrize("find", [user_state_folder, user_data_folder])
def test_a_user_without_home_and_name_has_no_folder(monkeypatch, find):
    def unknown(uid):
        raise KeyError(uid)

    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert find() == NO_FOLDER


def test_a_relative_base_directory_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert user_state_folder().is_absolute()


@pytest.mark.skipif(os.getuid() != 0, reason="only root could make it")
def test_root_cannot_make_the_folder_of_a_user_without_a_home():
    with pytest.raises(NotADirectoryError):
        NO_FOLDER.mkdir(parents=True)


@pytest.mark.parametrize("variable", [variables[0] for _, variables, _, _ in describe_settings()])
def test_an_empty_variable_of_ours_counts_as_unset(monkeypatch, variable):
    monkeypatch.delenv(variable, raising=False)
    expected = Settings()
    for empty in ("", "  "):
        monkeypatch.setenv(variable, empty)
        assert Settings() == expected


def test_a_server_without_a_home_says_what_to_do(monkeypatch):
    with pytest.raises(SettingsError, match="--data"):
        ServerConfig(directory=NO_FOLDER / "server")


@pytest.mark.parametrize("command", [["doctor"], ["spool", "ls"], ["sync"], ["token", "ls"], ["serve", "--port", "0"]])
def test_commands_without_a_home_end_without_a_traceback(tmp_path: Path, command: list[str]) -> None:
    environment = clean_environment("TENSORMETER_", "OTEL_", "XDG_")
    environment |= {"HOME": "", "TENSORMETER_BUFFER_DIR": str(tmp_path), "TENSORMETER_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = str(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(uid):\n    raise KeyError(uid)\npwd.getpwuid = unknown\n"
    )
    done = run_python("-m", "tensormeter", *command, environment=environment, folder=tmp_path)  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode >= 0
    if command[0] in ("serve", "token"):
        assert "--data" in done.stderr
