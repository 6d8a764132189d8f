"""Replacing files as a whole."""

import os
import stat
from pathlib import Path

import pytest

from tensormeter.disk import atomic
from tensormeter.disk.atomic import replacing, write_file


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask(request):
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o277])
def test_a_written_file_is_private_under_every_umask(tmp_path, umask, mask):
    umask(mask)
    write_file(tmp_path / "state", b"bytes ", "t\u00ebxt")
    assert (tmp_path / "state").read_text() == "bytes t\u00ebxt"
    assert mode(tmp_path / "state") == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "state.new").symlink_to(victim)
    with pytest.raises(OSError):
        write_file(tmp_path / "state", b"theirs")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "state").exists()


def test_a_link_in_the_place_of_the_target_is_replaced(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "state").symlink_to(victim)
    write_file(tmp_path / "state", b"new")
    assert (victim.read_text(), (tmp_path / "state").read_text()) == ("mine", "new")


def test_a_write_over_what_a_killed_writer_left(tmp_path):
    (tmp_path / "state.new").write_text("half of a longer content")
    write_file(tmp_path / "state", b"whole")
    assert (tmp_path / "state").read_bytes() == b"whole"


@pytest.mark.parametrize("write", [lambda path: write_file(path, b"new", sync=True), lambda path: fill(path, b"new")])
def test_the_disk_has_the_content_before_the_target_is_replaced(tmp_path, monkeypatch, write):
    target = tmp_path / "state"
    target.write_text("old")
    synced = []

    def record(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_bytes(), target.read_text()))

    monkeypatch.setattr(atomic, "fsync", record)
    write(target)
    assert synced == [(b"new", "old")]
    assert target.read_text() == "new"


def test_a_failed_sync_keeps_the_target_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(5, "Input/output error")

    (tmp_path / "state").write_text("old")
    monkeypatch.setattr(atomic, "fsync", refuse)
    with pytest.raises(OSError):
        write_file(tmp_path / "state", b"new", sync=True)
    with pytest.raises(OSError):
        fill(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_a_block_that_raises_keeps_the_target(tmp_path):
    (tmp_path / "table").write_text("old")
    with pytest.raises(TypeError):
        fill(tmp_path / "table", "no bytes")
    assert (tmp_path / "table").read_text() == "old"
    assert os.listdir(tmp_path) == ["table"]


def test_a_replaced_file_has_the_mode_of_any_new_file(tmp_path, umask):
    umask(0o027)
    fill(tmp_path / "table", b"rows")
    assert mode(tmp_path / "table") == 0o640


def fill(path, content):
    with replacing(path) as file:
        file.write(content)
