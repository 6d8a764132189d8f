"""The check of whether a disk responds."""

from pathlib import Path

import psutil
import pytest

from tensormeter.disk.probe import answers


def children() -> set[int]:
    """Child processes of this process, also those that have ended and have not been waited for."""
    return {process.pid for process in psutil.Process().children()}


@pytest.mark.parametrize("path", ["missing", "missing/too", "./missing", "../missing", ".", "there"])
def test_a_relative_path_gets_an_answer_and_leaves_no_process(tmp_path, monkeypatch, path):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there" if path.startswith("..") else tmp_path)
    earlier = children()
    assert answers(Path(path), 10)
    assert children() <= earlier
