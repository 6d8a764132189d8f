"""The command itself: interruptions, faults, dry runs and what it prints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from support.import_server import counted
from support.ports import reserve_port
from support.processes import clean_environment
from support.waiting import wait_for
from tensormeter.cli.import_ import import_
from tensormeter.importers.table import TableFile as TableSource

ROWS = 10_000


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "table.parquet"
    values = np.random.default_rng(0).normal(size=(ROWS, 40))
    pd.DataFrame({"step": np.arange(ROWS)} | {f"m{i}": values[:, i] for i in range(40)}).to_parquet(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_import_is_completed_by_the_next_one(server, run_import, table, number):
    project = f"interrupted-{number}"
    command = [
        sys.executable,
        "-m",
        "tensormeter",
        "import",
        str(table),
        "--endpoint",
        server.url,
        "--project",
        project,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), text=True
    )
    wait_for(lambda: server.get("/api/v1/runs", project=project)["runs"], "the run has begun to arrive")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    if number == signal.SIGINT and process.returncode:
        assert process.returncode == 130, output + errors
        assert "run the same command again to continue" in output
        assert errors == ""
    run_import(table, "--project", project)
    (run,) = server.contents(project).values()
    assert run["run"]["state"] == "finished"
    for metric in ("m0", "m39"):
        statistics = run["run"]["summary"][metric]
        assert (statistics["count"], statistics["last_step"]) == (ROWS, ROWS - 1)


def test_a_dry_run_counts_and_sends_nothing(server, run_import, table):
    result = run_import(table, "--project", "dry", "--dry-run")
    assert "would be imported" in result.output
    assert counted(result) == {"runs": 1, "points": 40 * ROWS, "media": 0, "log lines": 0}
    assert server.get("/api/v1/runs", project="dry")["runs"] == []


def test_paths_that_cannot_be_imported_are_reported_and_others_are(server, run_import, tmp_path):
    (tmp_path / "unknown.bin").write_bytes(b"\0" * 100)
    (tmp_path / "good.csv").write_text("step,loss\n0,1\n")
    paths = [tmp_path / name for name in ("missing", "unknown.bin", "good.csv")]
    result = run_import(*paths, "--project", "mixed kinds", status=1)
    assert "missing: no such file or folder; check the path" in result.output
    assert result.output.splitlines()[-1] == f"{server.url}/#/p/mixed%20kinds"
    nothing = run_import(tmp_path / "missing", status=1).output.splitlines()
    assert nothing == [f"{tmp_path / 'missing'}: no such file or folder; check the path"]
    assert "unknown.bin: found no runs of a known kind" in result.output
    assert counted(result)["runs"] == 1


def test_named_pipes_are_not_opened(run_import, tmp_path):
    """Nothing writes to these pipes, so an import that opened one would wait for ever."""
    names = ("pipe", "archive/manifest.json", "sums/SHA256SUMS", "mlflow/mlflow.db", "trackio/project.db", "tfevents.1")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "sums" / "runs.parquet").mkdir()
    paths = [tmp_path / name.split("/")[0] for name in names]
    assert run_import(*paths, "", status=1).output.count("found no runs of a known kind") == len(paths)


def test_an_unforeseen_error_costs_one_source(run_import, tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / f"{name}.csv").write_text("step,loss\n0,1\n")
    send = TableSource.send

    def fail(source, context):
        if "first" in source.label:
            raise RecursionError("odd contents")
        send(source, context)

    monkeypatch.setattr(TableSource, "send", fail)
    result = run_import(tmp_path, "--project", "unforeseen", status=1)
    assert "first.csv: damaged (RecursionError: odd contents); imported what had been read before" in result.output
    assert counted(result)["runs"] == 1


@pytest.mark.parametrize(
    ("header", "message"),
    [("step,time,loss", "run the same command again to continue"), ("step,x,loss", "no server at")],
)
def test_a_server_that_does_not_answer_ends_the_import(tmp_path, monkeypatch, header, message):
    monkeypatch.setattr("tensormeter.importers.sender._ATTEMPTS", 2)
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n0,1750000000,1\n")
    result = CliRunner().invoke(import_, [str(path), "--endpoint", f"http://127.0.0.1:{reserve_port()}"])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_a_name_is_for_one_run(run_import, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("step,loss\n0,1\n")
    result = run_import(tmp_path, "--name", "x", status=1)
    assert "--name is for one run, but there are 2" in str(result.exception)
