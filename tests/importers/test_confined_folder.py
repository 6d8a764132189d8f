"""Files that a source names are read only below its folder, and only regular ones of a limited size."""

import os

import pytest

from tensormeter.importers.confined_folder import ConfinedFolder, FileTooLargeError
from tensormeter.importers.registry import SourceError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file.txt").write_bytes(b"inside")
    (root / "a" / "b" / "other").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folders").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "a")
    os.mkfifo(root / "pipe")
    return ConfinedFolder(root)


def test_regular_files_are_listed_and_read(folder):
    assert list(folder.files(10)) == [("a/file.txt", 6), ("a/b/other", 5)]
    assert list(folder.files(1)) == [("a/file.txt", 6)]
    assert folder.folders() == ["a"]
    assert folder.read("a/b/../file.txt", 6) == folder.read("inner/file.txt", 6) == b"inside"
    assert folder.folder("a").read("b/other", 5) == b"12345"


@pytest.mark.parametrize("path", ["link", "folders/secret", "../secret", "a/../../secret", "/etc/passwd", "..\\secret"])
def test_paths_out_of_the_folder_are_refused(folder, path):
    with pytest.raises(SourceError, match="leads out of"):
        folder.read(path, 100)
    assert not folder.has(path)


@pytest.mark.parametrize("path", ["", "a\0b", "a", "pipe", "missing", "a/file.txt/x"])
def test_other_paths_are_reported_without_waiting(folder, path):
    with pytest.raises(SourceError):
        folder.read(path, 100)


def test_larger_files_are_refused(folder):
    with pytest.raises(FileTooLargeError, match="larger than 5 bytes"):
        folder.read("a/file.txt", 5)


def test_folders_out_of_the_folder_are_refused(folder):
    with pytest.raises(SourceError, match="leads out of"):
        folder.folder("folders")
    assert folder.folders("folders") == []
