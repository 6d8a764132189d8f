"""`tensormeter spool`, `sync` and `doctor`, on a state directory of the test."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.processes import clean_environment
from tensormeter import Settings
from tensormeter.agent.run_directory.directory import RunDirectory, list_runs, runs_locked
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.cli.doctor_checks import CHECKS


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def new_run(state, tmp_path, url):
    """Makes runs that have left two requests."""

    def create(name):
        settings = Settings(directory=state, buffer_directory=tmp_path / "rings", project="left", endpoint=url)
        with runs_locked(state):
            run = RunDirectory.create(settings, name, name)
        spool = Spool(run.spool)
        requests = [Encoded("metrics", gzip.compress(b""), 5), Encoded("logs", gzip.compress(b""), 1, Priority.SYSTEM)]
        spool.put(requests, ["experiment"], "p", {}, started=True, ended=True)
        spool.close()
        return run

    return create


@pytest.fixture
def cli(run_cli, state, tmp_path):
    state.mkdir()
    places = {"TENSORMETER_DIR": str(state), "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings")}
    return lambda *arguments, **variables: run_cli(*arguments, **places | variables)


def reject(run):
    spool = Spool(run.spool)
    sequence, _ = spool.next("experiment")
    spool.quarantine("experiment", sequence, "answered 400 \x1b[2J[red]")
    spool.close()


def test_spool_ls_and_show_list_waiting_requests(cli, new_run):
    assert cli("spool", "ls").stdout == "nothing is waiting\n"
    run = new_run("first")
    reject(run)
    run.agent_log.write_text("a line\n")
    (line,) = [line for line in cli("spool", "ls").stdout.splitlines() if line.startswith("first@")]
    assert line.split()[1] == "left"
    assert [line.split()[-k] for k in (5, 4, 2, 1)] == ["none", "1", "5", "0"]
    done = cli("spool", "show", "first")
    assert done.returncode == 0, done.stderr
    assert "experiment" in done.stdout
    assert "system" in done.stdout
    assert "rejected by experiment: 5 items, answered 400 �[2J[red]" in done.stdout
    assert "agent.log: a line" in done.stdout
    assert "no run 'other' on this machine" in cli("spool", "show", "other").stderr


@pytest.mark.parametrize("given", [False, True])
def test_a_disk_that_hangs_is_named(cli, new_run, state, odd_disk, given):
    """Each command ends."""
    new_run("first")
    disk = odd_disk(kind="odd")
    shutil.move(state / "runs", disk.path / "runs")
    disk.behave(hang=True)
    try:
        for command, option in (("sync", ()), ("spool", ("--dir",))):
            arguments = [
                command,
                *(["ls"] if command == "spool" else []),
                *([*option, str(disk.path)] if given else []),
            ]
            done = cli(*arguments, TENSORMETER_DIR=str(disk.path))
            output = done.stdout + done.stderr
            assert (done.returncode, f"{disk.path}: " in output, "did not respond within 5 s" in output) == (
                1,
                True,
                True,
            ), output
    finally:
        disk.behave()


def test_spool_purge_removes_requests(cli, new_run, state):
    run = new_run("first")
    reject(run)
    assert cli("spool", "purge", "first").returncode == 1, "the user has not confirmed it"
    assert "5 items" in cli("spool", "purge", "first", "--rejected", "--yes").stdout
    spool = Spool(run.spool)
    assert (spool.quarantined_items(), spool.pending_items()) == (0, 1)
    spool.close()
    lock = run.try_agent_lock()
    assert "has a running agent" in cli("spool", "purge", "first", "--yes").stderr
    os.close(lock)
    assert cli("spool", "purge", "first", "--yes").returncode == 0
    assert list_runs(state) == []


def test_spool_retry_sends_requests_again(cli, new_run, url):
    assert cli("spool", "retry").stdout == "no rejected data\n"
    first, second = new_run("first"), new_run("second")
    reject(first)
    reject(second)
    done = cli("spool", "retry", "first")
    assert (done.returncode, done.stdout) == (
        0,
        f"{first.path.name}: queued 5 items (1 requests); deliver them with `tensormeter sync`\n",
    )
    assert "quarantined" in cli("sync").stdout, "the items of the second"
    assert not first.path.exists()
    done = cli("spool", "retry")
    assert second.path.name in done.stdout
    assert cli("sync").returncode == 0
    assert not second.path.exists()
    assert "no run 'other' on this machine" in cli("spool", "retry", "other").stderr


def test_a_damaged_spool_can_be_purged(cli, new_run):
    run = new_run("first")
    run.spool.write_bytes(b"no database" * 1000)
    assert "cannot" in cli("spool", "ls").stdout
    done = cli("spool", "purge", "first", "--yes")
    assert done.returncode == 0, done.stderr
    assert not run.path.exists()


def test_doctor_names_runs_whose_description_is_damaged(cli, new_run):
    run = new_run("first")
    (run.path / "run.json").write_text("{")
    done = cli("doctor")
    assert f"the run.json of {run.path.name} is unusable" in " ".join(done.stdout.split())


def test_sync_delivers_runs_from_another_machine(cli, new_run, state, tmp_path):
    """Copied here, with paths in them that are not there, and one of them broken."""
    for name in ("first", "second", "third"):
        run = new_run(name)
        description = json.loads((run.path / "run.json").read_text())
        description["settings"] |= {"directory": "/nonexistent/there", "buffer_directory": "/nonexistent/shm"}
        description |= {"rings": "/nonexistent/shm/rings", "created": 1_000_000_000_000_000_000}
        (run.path / "run.json").write_text(json.dumps(description))
    copies = tmp_path / "copies"
    shutil.copytree(state / "runs", copies)
    (broken,) = copies.glob("second@*")
    description = json.loads((broken / "run.json").read_text())
    description["settings"]["temporality"] = "of_the_future"
    del description["checksum"]
    (broken / "run.json").write_text(json.dumps(description))
    done = cli("sync", str(copies))
    assert done.returncode == 1
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if "@" in line.partition(":")[0])
    outcomes = {name.split("/")[1].split("@")[0]: outcome for name, outcome in lines.items()}
    assert (outcomes["first"], outcomes["third"]) == ("delivered", "delivered")
    assert "temporality: expected cumulative, delta or lowmemory" in outcomes["second"]
    assert [run.run["run_id"] for run in list_runs(copies)] == ["second"]
    assert "nothing to deliver" in cli("sync", str(tmp_path)).stdout
    (single,) = (state / "runs").glob("first@*")
    assert "delivered" in cli("sync", str(single)).stdout
    assert not single.exists()


def test_sync_watches_until_it_is_told_to_stop(new_run, state, url):
    variables = clean_environment()
    process = subprocess.Popen(
        [sys.executable, "-m", "tensormeter", "sync", "--watch", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env=variables
        | {
            "TENSORMETER_DIR": str(state),
            "TENSORMETER_BUFFER_DIR": str(state),
            "TENSORMETER_ENDPOINT": url,
            "TENSORMETER_TOKEN": "token-of-the-test",
        },
    )
    try:
        assert "watching" in process.stdout.readline()
        for name in ("first", "second"):
            new_run(name)
            line = process.stdout.readline()
            assert f"left/{name}@" in line
            assert "delivered" in line
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(300)
        process.stdout.close()
    assert list_runs(state) == []


def test_doctor_finds_nothing_wrong(cli, tmp_path):
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else tmp_path  # GPUs do not store into rings on a disk
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        (tmp_path / "temporary").mkdir()
        done = cli("doctor", TENSORMETER_BUFFER_DIR=f"{folder}/not/there/yet", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "temporary").iterdir()) == [], "nothing is left of what it has tried"
    lines = done.stdout.splitlines()
    for check in CHECKS:
        (line,) = [line for line in lines if line.startswith(check.__name__.replace("_", " ") + " ")]
        assert " ok " in line or check.__name__ in ("shared_memory", "spool"), line


def test_doctor_advises_on_each_fault(cli, tmp_path):
    done = cli("doctor", TENSORMETER_ENDPOINT="http://127.0.0.1:1", TENSORMETER_DIR="/proc/nowhere")
    assert done.returncode == 1
    assert "Connection refused" in done.stdout
    assert "tensormeter serve" in done.stdout
    loose = tmp_path / "loose" / "runs"
    loose.mkdir(parents=True)
    loose.chmod(0o777)
    done = cli("doctor", TENSORMETER_DIR=str(loose.parent))
    assert f"other users can write to {loose} (mode 0777)" in " ".join(done.stdout.split())
    wrong = cli("doctor", TENSORMETER_TOKEN="wrong")
    assert wrong.returncode == 1
    assert "the server refuses the token" in wrong.stdout
    assert "wrong" not in wrong.stdout.replace("is wrong", "")
