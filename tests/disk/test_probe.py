"""The check of whether a disk responds."""

import os
from pathlib import Path

import pytest

from tensormeter.disk.probe import answers


@pytest.mark.parametrize("path", ["missing", "missing/too", "./missing", "../missing", ".", "there"])
def test_a_relative_path_gets_an_answer_and_leaves_no_process(tmp_path, monkeypatch, path):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there" if path.startswith("..") else tmp_path)
    assert answers(Path(path), 10)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
