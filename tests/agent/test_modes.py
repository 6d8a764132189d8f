"""Files of a run are for its user alone, under every umask. Files that the user asked for follow the umask."""

from pathlib import Path

import pytest

from support.agents import agents_of
from support.processes import clean_environment, run_python

RECORD = """
import os
os.umask({umask})
import tensormeter
run = tensormeter.init("p", id="r")
for step in range(3):
    run.log({{"x": 1.0}}, step)
run.log({{"text": tensormeter.Text("a text")}}, 1)
run.finish()
"""
SYNC = """
import os
os.umask({umask})
from tensormeter.cli import main
main(["sync"])
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python as a user does who has never used tensormeter, without a server."""
    inherited = clean_environment("TENSORMETER_", "OTEL_", "XDG_")
    for name in ("home", "shm", "out"):
        (tmp_path / name).mkdir()

    def run(code, umask, **settings):
        variables = {f"TENSORMETER_{name.upper()}": value for name, value in settings.items()}
        return run_python(
            "-c",
            code.format(umask=umask),
            environment=inherited
            | {
                "HOME": str(tmp_path / "home"),
                "TENSORMETER_BUFFER_DIR": str(tmp_path / "shm"),
                "TENSORMETER_SAMPLE_INTERVAL": "0",
                "TENSORMETER_CONSOLE": "off",
                "TENSORMETER_ENDPOINT": "http://127.0.0.1:9",
                "TENSORMETER_EXPORTERS": "experiment,jsonl",
                "TENSORMETER_EXPORTER_OPTIONS": f"jsonl.directory={tmp_path}/out/made",
                "TENSORMETER_FINISH_TIMEOUT": "20",
                "TENSORMETER_LINGER_TIMEOUT": "0",
            }
            | variables,
        )

    return run


def loose(*folders: Path) -> dict[str, str]:
    """The files below these folders that others may read or write."""
    below = [path for folder in folders for path in folder.rglob("*")]
    assert below
    return {str(path): oct(path.lstat().st_mode & 0o777) for path in below if path.lstat().st_mode & 0o077}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_a_run_and_sync_keep_is_private(run, tmp_path, umask):
    home, shm = tmp_path / "home", tmp_path / "shm"
    done = run(RECORD, umask, agent="off", exporters="experiment")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in shm.rglob("*")} >= {".ring", ".lock", ".media"}
    assert loose(home, shm) == {}
    done = run(SYNC, umask)
    assert "not delivered" in done.stdout, done.stderr
    assert {path.name for path in home.rglob("*")} >= {"run.json", "spool.sqlite", "agent.lock", "reserve", ".lock"}
    assert loose(home) == {}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_an_agent_keeps_is_private(run, tmp_path, umask, wait_for):
    done = run(RECORD, umask, run_id="r")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not agents_of(tmp_path / "home/.local/state/tensormeter"), "the agent has ended")
    names = {path.name for path in (tmp_path / "home").rglob("*")}
    assert names >= {"run.json", "spool.sqlite", "agent.log", ".attempts", "appended.json"}
    assert loose(tmp_path / "home") == {}
    (target, *_) = (tmp_path / "out" / "made").glob("*.jsonl")
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask, "files that the user asked for follow the umask"


def test_folders_that_were_loose_are_tightened_and_the_run_goes_on(run, tmp_path):
    """As an earlier version, or a `mkdir` of the user, has made them."""
    state = tmp_path / "home/.local/state/tensormeter"
    (state / "runs").mkdir(parents=True)
    for path in (state, state / "runs"):
        path.chmod(0o777)
    done = run(RECORD, 0o022, agent="off")
    assert done.returncode == 0, done.stderr
    assert f"other users could write to {state / 'runs'} (mode 0777)" in done.stderr
    assert f"other users could write to {state} (mode 0777)" in done.stderr
    assert loose(state) == {}
    assert len(list(state.glob("runs/r@*/run.json"))) == 1
    assert "other users" not in run(RECORD, 0o022, agent="off").stderr


def test_a_run_that_was_loose_is_tightened_when_it_goes_on(run, tmp_path, wait_for):
    state = tmp_path / "home/.local/state/tensormeter"
    assert run(RECORD, 0o022, run_id="r").returncode == 0
    wait_for(lambda: not agents_of(state), "the agent has ended")
    for path in (state, *state.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    assert run(RECORD, 0o022, run_id="r", agent="off").returncode == 0
    assert loose(state) == {}
