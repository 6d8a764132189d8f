"""Runs of the real wandb, imported from their `.wandb` files."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from support.import_server import counted, left_out
from support.processes import clean_environment, run_python
from support.record_logs import BLOCK, record_log
from tensormeter.cli.export import export
from tensormeter.importers.registry import Options
from tensormeter.importers.wandb import find
from tensormeter.importers.wandb.messages import record_kind
from tensormeter.importers.wandb.record_log import read_records

SCRIPT = Path(__file__).with_name("wandb_script.py")
ENVIRONMENT = 26


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The folder of an offline run that the real wandb has written."""
    folder = tmp_path_factory.mktemp("wandb")
    quiet = {"WANDB_SILENT": "true", "WANDB_DATA_DIR": str(folder / "data"), "WANDB_CACHE_DIR": str(folder / "cache")}
    run_python(SCRIPT, folder, environment=clean_environment("WANDB_") | quiet, check=True)
    (file,) = folder.glob("wandb/offline-run-*/run-abcd1234.wandb")
    return file.parent


@pytest.fixture
def copied(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "wandb" / recorded.name))


def logged_losses() -> list[float]:
    return np.random.default_rng(0).normal(size=200).tolist()


def test_a_run_arrives_with_all_that_wandb_recorded(server, run_import, recorded):
    result = run_import(recorded.parent, "--project", "whole")
    run = server.contents("whole")["renamed run"]
    about = run["run"]
    assert (about["id"], about["state"], about["group"], about["tags"]) == ("abcd1234", "finished", "sweep", ["a", "b"])
    assert about["notes"] == "some notes"
    assert about["config"] == {
        "lr": 0.1,
        "model": {"layers": [1, 2], "bias": None},
        "api_key": "***",
        "late": 1,
    }
    assert about["results"] == {"best": 0.25} or about["summary"]["best"]["value"] == 0.25
    assert about["summary"]["acc"]["value"] == 6
    (loss,) = run["series"]["loss"]
    assert (loss["step"], loss["value"]) == (list(range(200)), logged_losses())
    assert run["series"]["opt.deep.x"][0]["value"] == [-step for step in range(200)]
    assert run["series"]["big"][0]["value"] == [2**60 + step for step in range(200)]
    (sparse,) = run["series"]["sparse"]
    assert sparse["step"] == list(range(0, 200, 3))
    assert sparse["value"][:3] == [0.0, "NaN", 1e-30 * 6]
    assert run["series"]["later"][0]["step"] == [300]
    assert run["series"]["flag"][0]["value"] == [1]
    (weights,) = run["histograms"]["weights"]
    assert weights["counts"][1:-1] == [1, 2, 3] or weights["counts"] == [1, 2, 3]
    assert run["logs"] == ["hello from the script"]
    items = {event["attributes"].get("tensormeter.key"): event for event in run["events"]}
    assert items["picture"]["body"]["caption"] == "a caption"
    assert (items["picture"]["body"]["width"], items["picture"]["step"]) == (5, 200)
    assert len(items["pictures"]["body"]["images"]) == 2
    assert items["predictions"]["body"] == {"columns": ["i", "label"], "rows": [[1, "x"], [2.5, None]]}
    assert "<b>bold</b>" in items["page"]["body"]["html"]
    assert items["curve"]["body"] == {
        "columns": ["x", "y"],
        "rows": [[1, 2], [3, 4]],
        "chart": {"kind": "line", "x": "x", "y": "y", "title": "A line"},
    }
    start = next(event for event in run["events"] if event["name"] == "tensormeter.run.start")
    assert start["body"]["job_type"] == "train"
    alert = next(event for event in run["events"] if event["name"] == "tensormeter.alert")
    assert (alert["body"]["title"], alert["body"]["level"]) == ("careful", "WARN")
    phases = [event["body"] for event in run["events"] if event["attributes"].get("tensormeter.key") == "phase"]
    assert sorted(
        (phase["text"], phase.get("first_step"), phase.get("count", 1)) for phase in phases if "count" in phase
    ) == [
        ("decay", 20, 10),
        ("warmup", 0, 20),
    ]
    kinds = left_out(result)
    assert kinds["W&B objects of type object3D-file"] == 1
    assert kinds["lists in the history"] == 1
    assert kinds["null values in the history"] == 1
    assert kinds["files of W&B runs, such as requirements and code"] == 1
    assert counted(result)["runs"] == 1


def test_importing_twice_changes_nothing(server, run_import, recorded):
    run_import(recorded, "--project", "twice")
    before = server.contents("twice")
    run_import(recorded / "run-abcd1234.wandb", "--project", "twice")
    assert server.contents("twice") == before


def test_the_export_of_an_imported_run_equals_what_was_logged(server, run_import, recorded, tmp_path):
    run_import(recorded, "--project", "round")
    target = tmp_path / "run.jsonl"
    arguments = ["abcd1234", "--project", "round", "--endpoint", server.url, "--format", "jsonl", "-o", str(target)]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    exported = {(row["metric"], row["step"]): row["value"] for row in rows if "value" in row}
    for step, loss in enumerate(logged_losses()):
        assert exported["loss", step] == loss
        assert exported["acc", step] == step % 7
        assert exported["opt.lr", step] == 0.1 / (1 + step)
        assert exported["big", step] == 2**60 + step
    assert exported["sparse", 3] == "NaN"
    assert ("sparse", 1) not in exported


def test_a_file_that_ends_early_is_read_up_to_there(server, run_import, copied):
    (file,) = copied.glob("*.wandb")
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b"loss", len(data) // 2)])
    result = run_import(copied, "--project", "cut", status=1)
    assert "ends within a record" in result.output
    (run,) = server.contents("cut").values()
    assert run["run"]["state"] == "crashed"
    steps = run["series"]["loss"][0]["step"]
    assert 0 < len(steps) < 200
    assert steps == list(range(len(steps)))
    file.write_bytes(data)
    run_import(copied, "--project", "cut")
    run = server.contents("cut")["renamed run"]
    assert run["run"]["state"] == "finished"
    assert run["series"]["loss"][0]["value"] == logged_losses()


def test_damage_costs_only_the_block_with_the_damage(server, run_import, copied):
    (file,) = copied.glob("*.wandb")
    data = bytearray(file.read_bytes())
    assert len(data) > 2 * BLOCK
    data[BLOCK // 2] ^= 0xFF
    file.write_bytes(data)
    result = run_import(copied, "--project", "damaged", status=1)
    assert "damaged at byte" in result.output
    (run,) = server.contents("damaged").values()
    steps = run["series"]["loss"][0]["step"]
    assert steps[0] == 0
    assert 0 < len(steps) < 200
    assert run["series"]["later"][0]["step"] == [300]


def test_media_outside_the_folder_of_the_run_are_not_read(server, run_import, copied, tmp_path):
    (picture,) = copied.glob("files/media/images/picture_*.png")
    secret = tmp_path / "secret.png"
    shutil.move(picture, secret)
    picture.symlink_to(secret)
    (page,) = copied.glob("files/media/html/*.html")
    page.unlink()
    result = run_import(copied, "--project", "outside", status=1)
    assert "leads out of" in result.output
    kinds = left_out(result)
    assert kinds["W&B objects of type image-file without a readable file"] == 1
    assert kinds["W&B objects of type html-file without a readable file"] == 1
    keys = {event["attributes"].get("tensormeter.key") for event in server.contents("outside")["renamed run"]["events"]}
    assert "picture" not in keys
    assert "pictures" in keys


def test_a_resumed_run_becomes_an_attempt(server, run_import, copied):
    later = copied.parent / "offline-run-29990101_000000-abcd1234"
    shutil.copytree(copied, later)
    run_import(copied.parent, "--project", "resumed")
    (run,) = server.get("/api/v1/runs", project="resumed")["runs"]
    about = server.get(f"/api/v1/runs/{run['id']}", project="resumed")
    assert sorted(process["attempt"] for process in about["processes"]) == [1, 2]


def test_resumptions_within_a_second_are_attempts_too(copied):
    """W&B appends a number to the name of a folder that exists already."""
    for name in (f"{copied.name}-1", "offline-run-29990101_000000-1"):
        shutil.copytree(copied, copied.parent / name)
    attempts = {source.path.parent.name: source.attempt for source in find(str(copied.parent), Options())}
    assert attempts == {copied.name: 1, f"{copied.name}-1": 2, "offline-run-29990101_000000-1": 3}


def test_the_metadata_file_of_older_versions_describes_the_process(server, run_import, copied):
    """Versions before 0.19 have no record of the environment."""
    (file,) = copied.glob("*.wandb")
    file.write_bytes(record_log(record for record in read_records(file) if record_kind(record) != ENVIRONMENT))
    metadata = {"root": "/work", "program": "train.py", "args": ["--password", "hunter22"]}
    (copied / "files" / "wandb-metadata.json").write_text(json.dumps(metadata))
    run_import(copied, "--project", "older")
    resource = server.contents("older")["renamed run"]["run"]["environment"]
    assert resource["process.command_args"] == ["train.py", "--password", "***"]
    assert resource["process.working_directory"] == "/work"


def test_reading_needs_no_wandb(recorded, tmp_path):
    """The command runs in a process in which `wandb` cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['wandb'] = None")
    done = run_python(
        "-m",
        "tensormeter",
        "import",
        recorded,
        "--dry-run",
        environment=clean_environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would be imported" in done.stdout
