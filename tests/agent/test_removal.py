"""Removing a run: all that tensormeter has made, and nothing else."""

import importlib
import os
from pathlib import Path
from pkgutil import walk_packages

import pytest

import tensormeter_exporters
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.run_directory.removal import remove_rings, remove_run
from tensormeter.disk.private import make_directory
from tensormeter.settings import Settings

MADE = (
    "run.json",
    "run.json.new",
    "agent.lock",
    "agent.log",
    "reserve",
    "spool.sqlite",
    "spool.sqlite-wal",
    "spool.sqlite-shm",
    "spool.sqlite.damaged-17",
    "spool.sqlite.damaged-17-wal",
    "rings/a.ring",
    "rings/a.lock",
    "rings/a.names",
    "rings/a.documents",
    "rings/a.documents.new",
    "rings/a.console",
    "rings/a.relay.console",
    "rings/a.17.console",
    "rings/b.new",
    "rings/a.media/000000000001",
    "rings/a.media/000000000001.slow",
    "rings/a.media/000000000002.new",
    "exporters/experiment/outgoing.json",
    "exporters/jsonl:one/appended.json",
    "exporters/wandb/journal.json",
    "exporters/wandb/journal.json.damaged",
    "exporters/wandb/3.request",
)


def make(folder, names):
    for name in names:
        make_directory((folder / name).parent)
        (folder / name).write_text("x")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("whole", [True, False])
def test_all_that_a_run_makes_is_removed(tmp_path, whole):
    make(tmp_path / "run", MADE)
    remove_run(tmp_path / "run", whole=whole)
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_every_exporter_is_removed(tmp_path):
    modules = [
        importlib.import_module(module.name)
        for module in walk_packages(tensormeter_exporters.__path__, "tensormeter_exporters.")
    ]
    states = {module._STATE for module in modules if hasattr(module, "_STATE")}
    assert {"names.json", "cumulative.pb"} < states
    make(tmp_path / "run", [f"exporters/x/{state}{suffix}" for state in states for suffix in ("", ".new")])
    remove_run(tmp_path / "run", whole=False)
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_put_into_a_folder_stays_with_a_warning(tmp_path, caplog):
    others = {"thesis.tex", "rings/photo.jpg", "rings/a.media/photo.jpg", "exporters/code.py", "exporters/x/code.py"}
    make(tmp_path / "run", (*MADE, *others))
    remove_run(tmp_path / "run", whole=False)
    assert files(tmp_path / "run") == others
    (record,) = caplog.records
    assert "'exporters', 'rings', 'thesis.tex'" in record.getMessage()


@pytest.mark.parametrize("whole", [True, False])
def test_no_link_is_followed(tmp_path, whole):
    photos = tmp_path / "photos"
    make(photos, ["a.ring", "1.request", "appended.json", "000000000001", "agent.log"])
    make(tmp_path / "run", ["run.json", "rings/b.ring", "exporters/x/1.request"])
    for name in ("rings/b.media", "exporters/y", "agent.log"):
        (tmp_path / "run" / name).symlink_to(photos)
    (tmp_path / "run" / "rings" / "c.ring").symlink_to(photos / "a.ring")
    before = files(photos)
    remove_run(tmp_path / "run", whole=whole)
    assert files(photos) == before
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_that_is_a_link_is_not_removed(tmp_path):
    make(tmp_path / "photos", MADE)
    (tmp_path / "run").symlink_to(tmp_path / "photos")
    with pytest.raises(OSError, match="run"):
        remove_run(tmp_path / "run", whole=False)
    assert files(tmp_path / "photos") == set(MADE)


def test_a_folder_that_was_replaced_meanwhile_is_not_removed(tmp_path, monkeypatch):
    make(tmp_path / "run", MADE)
    make(tmp_path / "photos", ["1.jpg"])
    rename = Path.rename

    def replaced(path, target):
        monkeypatch.setattr(Path, "rename", rename)
        path.rename(tmp_path / "elsewhere")
        (tmp_path / "photos").rename(path)
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", replaced)
    with pytest.raises(OSError, match="was replaced"):
        remove_run(tmp_path / "run", whole=True)
    assert files(tmp_path / "run") == {"1.jpg"}


def test_of_a_ring_directory_only_ring_files_are_removed(tmp_path):
    make(tmp_path / "rings", ["a.ring", "a.lock", "a.media/000000000001", "1.jpg"])
    remove_rings(tmp_path / "rings")
    assert files(tmp_path / "rings") == {"1.jpg"}
    (tmp_path / "rings" / "1.jpg").unlink()
    remove_rings(tmp_path / "rings")
    assert not (tmp_path / "rings").exists()


def test_a_ring_directory_that_others_can_write_to_is_left_alone(tmp_path, caplog):
    make(tmp_path / "rings", ["a.ring"])
    (tmp_path / "rings").chmod(0o777)
    remove_rings(tmp_path / "rings")
    assert files(tmp_path / "rings") == {"a.ring"}
    assert "other users can write to" in caplog.text


@pytest.mark.parametrize("given", [True, False])
def test_the_rings_of_a_run_are_where_the_code_says_not_where_its_description_says(tmp_path, given, monkeypatch):
    """Neither for reading nor for removing is a folder used because `run.json` names it."""
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "shm")
    monkeypatch.setenv("TENSORMETER_BUFFER_DIR", str(tmp_path / "shm"))
    with runs_locked(settings.directory):
        made = RunDirectory.create(settings, "run-1", "a name")
    make(tmp_path / "photos", ["a.ring", "1.jpg"])
    text = (made.path / "run.json").read_text()
    (made.path / "run.json").write_text(text.replace(os.fspath(made.rings), os.fspath(tmp_path / "photos")))
    opened = RunDirectory.open(made.path, given=given)
    assert opened.run["rings"] == os.fspath(tmp_path / "photos")
    assert opened.rings == made.rings
    assert opened.ring_files() == []
    opened.remove()
    assert files(tmp_path / "photos") == {"a.ring", "1.jpg"}
    assert not made.path.exists()


def test_rings_are_found_after_the_folder_has_been_moved(tmp_path, monkeypatch):
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "shm")
    monkeypatch.setenv("TENSORMETER_BUFFER_DIR", str(tmp_path / "shm"))
    with runs_locked(settings.directory):
        made = RunDirectory.create(settings, "run-1", "a name")
    made.make_ring_directory()
    make(made.rings, ["a.ring"])
    made.path.rename(tmp_path / made.path.name)
    (ring,) = RunDirectory.open(tmp_path / made.path.name, given=True).ring_files()
    assert ring.parent == made.rings
