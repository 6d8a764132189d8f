"""The lines that say where a run is, and the address of its page."""

import os
import shlex
import subprocess
import sys
import types
import urllib.request
from pathlib import Path

import pytest

import tensormeter
from support.processes import clean_environment, run_python
from support.servers import Server
from tensormeter import Settings
from tensormeter.session.announcement import page_address

SCRIPT = """
import sys, tensormeter
run = tensormeter.init(project="my project/1", id="run-1", name=sys.argv[1])
run.log({"loss": 1.0}, 0)
print(run.url)
exec(sys.argv[2])
run.finish()
"""


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def train(folder: Path, name: str, code: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **clean_environment(),
        "TENSORMETER_DIR": str(folder / "my runs"),
        "TENSORMETER_SAMPLE_INTERVAL": "0",
    }
    return run_python(
        "-c", SCRIPT, name, code, environment={**environment, "TENSORMETER_QUIET": "0", **variables}, check=True
    )


def lines(process: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in process.stderr.splitlines() if line.startswith("tensormeter: ")]


def test_the_lines_lead_to_the_run(tmp_path, server):
    process = train(tmp_path, "first run", TENSORMETER_ENDPOINT=server.url)
    address = process.stdout.strip()
    assert address == f"{server.url}/#/p/my%20project%2F1/runs/run-1"
    assert lines(process) == [
        f"tensormeter: run first run (run-1): {address}",
        f"tensormeter: run first run (run-1) finished; all data was delivered: {address}",
    ]
    with urllib.request.urlopen(address) as page:
        assert page.status == 200
    lossy = train(tmp_path, "run-1", "run.log({'x': object()}); run.finish(1)", TENSORMETER_ENDPOINT=server.url)
    assert lines(lossy)[-1] == (
        f"tensormeter: run run-1 failed; all data was delivered, except for the losses above: {address}"
    )


@pytest.mark.parametrize("variable", [("TENSORMETER_MODE", "offline"), ("TENSORMETER_AGENT", "off")], ids=str)
def test_an_offline_run_prints_the_command_that_delivers_it(tmp_path, server, variable):
    variables = dict([variable], TENSORMETER_ENDPOINT="http://127.0.0.1:9")
    process = train(tmp_path, "run-1", **variables)
    first, last = lines(process)
    command = f"tensormeter sync {shlex.quote(str(tmp_path / 'my runs'))}"
    assert first == f"tensormeter: run run-1 is recorded in {tmp_path / 'my runs'}; deliver it with `{command}`"
    assert (
        last == f"tensormeter: run run-1 finished; the data is in {tmp_path / 'my runs'}; deliver it with `{command}`"
    )
    environment = {**clean_environment(), "TENSORMETER_ENDPOINT": server.url}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(shlex.split(command), env=environment, check=True, capture_output=True)
    assert server.get("/api/v1/runs/run-1")["points"] > 0


@pytest.mark.parametrize(
    "variables",
    [
        {"TENSORMETER_QUIET": "true"},
        {"RANK": "1", "WORLD_SIZE": "2", "TENSORMETER_RUN_ID": "run-1"},
        {"TENSORMETER_MODE": "disabled"},
    ],
    ids=["quiet", "rank 1", "disabled"],
)
def test_other_processes_are_silent(tmp_path, variables):
    process = train(tmp_path, "run-1", **{"TENSORMETER_MODE": "offline", **variables})
    assert process.stderr == ""


def test_a_closed_standard_error_ends_no_training(tmp_path):
    process = train(
        tmp_path, "run-1", "sys.stderr.close(); sys.stderr = None; print('end')", TENSORMETER_MODE="offline"
    )
    assert process.stdout.splitlines()[-1] == "end"


def test_the_address_depends_on_the_destination(tmp_path):
    def address(**settings):
        return page_address(Settings(directory=tmp_path, **settings), "r/1")

    assert address(endpoint="https://host/base/", project="ä b") == "https://host/base/#/p/%C3%A4%20b/runs/r%2F1"
    assert address(exporters="otlp") is None
    both = {"exporters": "jsonl,experiment:team", "exporter_options": "experiment:team.endpoint=http://team:1"}
    assert address(**both) == "http://team:1/#/p/default/runs/r%2F1"


def test_a_notebook_shows_a_link(tmp_path, monkeypatch):
    shown = []
    shell = types.SimpleNamespace(kernel=None)
    display = types.SimpleNamespace(display=shown.append, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    settings = Settings(
        directory=tmp_path,
        agent="process",
        quiet=False,
        endpoint="http://127.0.0.1:9",
        finish_timeout=0,
        linger_timeout=0,
    )
    with tensormeter.init(name="<b>bold</b>", id="r", settings=settings):
        pass
    del shell.kernel  # a shell in a terminal
    tensormeter.init(id="s", settings=settings).finish()
    assert shown == [
        'Run <a href="http://127.0.0.1:9/#/p/default/runs/r" target="_blank" rel="noopener">&lt;b&gt;bold&lt;/b&gt;</a>'
    ]
