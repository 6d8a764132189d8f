"""Descriptions of git repositories, with the real `git`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tensormeter.agent.background import git as git_module
from tensormeter.agent.background.code import describe_code
from tensormeter.agent.background.git import describe_changes

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

LIMIT = 4096


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.com")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=300)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit of `train.py`."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "train.py").write_text("print(1)\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_changes_are_described(repository: Path) -> None:
    clean = {"dirty": False, "diff": "", "truncated": False, "untracked": [], "problem": ""}
    assert describe_changes(repository, LIMIT) == clean
    (repository / "train.py").write_text("print(2)\n")
    (repository / "weights.bin").write_bytes(bytes(range(255)))
    (repository / "new file.py").write_text("")
    (repository / "data").mkdir()
    (repository / "data" / "one").write_text("")
    (repository / ".gitignore").write_text("ignored\n")
    (repository / "ignored").write_text("")
    index = (repository / ".git" / "index").read_bytes()
    changes = describe_changes(repository, LIMIT)
    assert changes["dirty"] is True
    assert "-print(1)\n+print(2)\n" in changes["diff"]
    assert "Binary files a/weights.bin and b/weights.bin differ" in changes["diff"]
    assert changes["untracked"] == [".gitignore", "data/", "new file.py"]
    assert (changes["truncated"], changes["problem"]) == (False, "")
    assert (repository / ".git" / "index").read_bytes() == index


def test_a_long_diff_is_cut_at_the_end_of_a_line(repository: Path) -> None:
    (repository / "train.py").write_text("x = 12345\n" * 10_000)
    changes = describe_changes(repository, LIMIT)
    assert changes["truncated"] is True
    assert LIMIT - 20 < len(changes["diff"]) <= LIMIT
    assert changes["diff"].endswith("\n")


def test_a_hostile_repository_runs_nothing(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/sprung\ncat\n')
    trap.chmod(0o755)
    program = str(trap)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(trap, hooks / hook)
    filters = ["lfs", "with.dots", "a=b", 'quo"te']
    settings = {
        "core.fsmonitor": program,
        "core.hooksPath": str(hooks),
        "core.pager": program,
        "core.worktree": str(tmp_path),
        "core.sshCommand": program,
        "diff.external": program,
        "diff.evil.command": program,
        "diff.evil.textconv": program,
        "pager.diff": program,
        **{f"filter.{name}.{part}": program for name in filters for part in ("clean", "smudge", "process")},
        **{f"filter.{name}.required": "true" for name in filters},
    }
    for name in filters:
        (repository / f"{filters.index(name)}.txt").write_text("before\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "second")
    lines = [f"{filters.index(name)}.txt filter={name}" for name in filters]
    (repository / ".gitattributes").write_text("\n".join([*lines, "*.py diff=evil", "*.py filter=lfs"]) + "\n")
    for name in filters:
        (repository / f"{filters.index(name)}.txt").write_text("after\n")
    (repository / "train.py").write_text("print(3)\n")
    for name, value in settings.items():
        git(repository, "config", name, value)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", program)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    relative = tmp_path / "bin"
    relative.mkdir()
    shutil.copy(trap, relative / "git")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"bin{os.pathsep}{os.environ['PATH']}")
    changes = describe_changes(repository, LIMIT)
    assert changes["problem"] == ""
    assert changes["diff"].count("+after") == len(filters)
    assert "+print(3)" in changes["diff"]
    assert changes["untracked"] == [".gitattributes"]
    assert not (tmp_path / "sprung").exists()
    # The trap works: without these measures, git would have run it.
    monkeypatch.delenv("GIT_DIR")
    subprocess.run(["git", "status"], cwd=repository, check=False, capture_output=True, timeout=300)
    assert (tmp_path / "sprung").exists()


def test_without_git_or_a_commit_the_rest_is_described(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    assert describe_changes(empty, LIMIT)["problem"] == "there is no commit yet"
    (repository / "inner" / ".git").mkdir(parents=True)
    assert describe_changes(repository / "inner", LIMIT)["problem"] == "`git diff` failed"
    if os.geteuid() == 0:
        os.chown(empty, 12345, 12345)
        assert "belongs to another user" in describe_changes(empty, LIMIT)["problem"]
    assert describe_code({"folders": [str(tmp_path)]}, {})["git"] is None

    script = repository / "train.py"
    script.write_text("password = 'hunter22hunter'\n")
    git(repository, "remote", "add", "origin", "https://user:secret99@example.com/a/b.git")
    request = {"script": str(script), "folders": [str(repository)], "paths": [str(tmp_path)]}
    resource = {"process.runtime.version": "3.12.1", "tensormeter.gpu.models": ["H200"]}
    code = describe_code(request, resource)
    assert code["source"] == {"path": str(script), "text": "password = '***'\n", "truncated": False}
    assert "+password = '***'" in code["git"]["diff"]
    assert (code["git"]["remote"], code["git"]["branch"]) == ("https://example.com/a/b.git", "main")
    assert (code["python"], code["gpus"], code["packages"]) == ("3.12.1", ["H200"], {})

    script.write_bytes(b"\x01" * 200_000 + b"\n")
    large = describe_code(request, resource)
    assert (large["git"]["diff"], large["git"]["truncated"], large["git"]["dirty"]) == ("", True, True)
    assert len(large["source"]["text"]) == 200_001

    monkeypatch.setenv("PATH", str(tmp_path))
    without = describe_code(request, resource)
    assert without["git"]["commit"] == code["git"]["commit"] != ""
    assert (without["git"]["dirty"], without["git"]["problem"]) == (None, "git is not installed")


def test_a_git_that_hangs_is_killed(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(git_module, "_TIMEOUT", 0.5)
    assert describe_changes(repository, LIMIT)["problem"] == "git took longer than 0 seconds"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
