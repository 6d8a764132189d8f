"""Folders and files for one user alone: how they are made, and which ones count."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import make_directory, make_file, open_file, tighten_directory, weakness


@pytest.fixture
def reachable():
    """A folder that every user can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder.resolve()
    shutil.rmtree(folder)


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077, 0o277, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_all_levels_and_files_are_private_under_every_umask(umask, reachable):
    folder = reachable / "a" / "b" / "c"
    make_directory(folder)
    write_file(folder / "written", "text")
    os.close(open_file(folder / "opened"))
    make_file(folder / "made")
    assert [mode(path) for path in (folder, folder.parent, folder.parents[1])] == [0o700] * 3
    assert {path.name: mode(path) for path in folder.iterdir()} == dict.fromkeys(("written", "opened", "made"), 0o600)
    assert weakness(folder) == ""


def test_files_that_were_loose_are_tightened(reachable):
    for name in ("written", "opened", "made"):
        (reachable / name).touch()
        (reachable / name).chmod(0o666)
    (reachable / "written.new").touch(0o666)
    write_file(reachable / "written", "text")
    os.close(open_file(reachable / "opened"))
    make_file(reachable / "made")
    assert {mode(path) for path in reachable.iterdir()} == {0o600}


def test_a_loose_folder_of_this_user_is_tightened_with_a_warning(reachable, caplog):
    reachable.chmod(0o777)
    tighten_directory(reachable)
    assert mode(reachable) == 0o700
    assert [record.getMessage() for record in caplog.records] == [
        f"other users could write to {reachable} (mode 0777), which contains runs; changed its mode to 0700"
    ]


def test_no_link_or_fifo_is_opened(reachable):
    (reachable / "target").write_text("kept")
    (reachable / "link").symlink_to(reachable / "target")
    os.mkfifo(reachable / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(OSError, match=name):
            open_file(reachable / name, os.O_RDONLY)
    (reachable / "file.new").symlink_to(reachable / "target")
    with pytest.raises(OSError, match=r"file\.new"):
        write_file(reachable / "file", "text")
    assert (reachable / "target").read_text() == "kept"


@pytest.mark.parametrize("loose", [0o777, 0o770, 0o757])
def test_a_folder_counts_only_if_no_other_user_can_replace_it(reachable, loose, monkeypatch):
    monkeypatch.setattr("tensormeter.disk.private._is_alone_in", lambda _: False)
    folder = reachable / "open" / "run"
    make_directory(folder)
    folder.parent.chmod(loose)
    assert weakness(folder) == f"other users can write to {folder.parent} (mode {loose:#05o})".replace("0o", "0")
    assert weakness(folder / "not there yet") != ""
    folder.parent.chmod(0o1777)
    assert weakness(folder) == "", "a sticky folder keeps what is in it"
    folder.parent.chmod(loose)
    reachable.chmod(0o700)
    assert weakness(folder) == "", "others cannot reach it"
    folder.chmod(0o777)
    assert weakness(folder) != "", "its own mode counts in any case"


def test_a_group_without_other_members_is_no_weakness(reachable, monkeypatch):
    folder = reachable / "open" / "run"
    make_directory(folder)
    folder.parent.chmod(0o775)
    monkeypatch.setattr("tensormeter.disk.private._is_alone_in", lambda _: True)
    assert weakness(folder) == ""


def test_links_that_lead_to_a_folder_count(reachable):
    folder, other = reachable / "open", reachable / "private"
    make_directory(folder / "run")
    make_directory(other)
    (other / "link").symlink_to("../open")
    assert weakness(other / "link" / "run") == ""
    folder.chmod(0o757)
    assert weakness(other / "link" / "run") == f"other users can write to {folder} (mode 0757)"
    (other / "round").symlink_to("round")
    assert "too many links" in weakness(other / "round")
