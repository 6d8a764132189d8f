"""The uncommitted changes of a git repository, as the `git` command reports them.

A repository may be hostile: its configuration can name programs that git runs, such as filters, external diffs and file
system monitors. This module switches all of them off, runs no hooks, and uses no network. It never changes the repository.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["describe_changes"]

_TIMEOUT: Final = 20.0
"""Maximum seconds for all commands on one repository."""

_MOST_SETTINGS_BYTES: Final = 1 << 20
_MOST_UNTRACKED: Final = 1000
_MOST_UNTRACKED_BYTES: Final = 64 << 10
_CHUNK: Final = 1 << 16
_NICE: Final = 10

_SETTINGS: Final = {
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.hooksPath": os.devnull,
    "core.bigFileThreshold": "8m",  # larger files count as binary
    "core.pager": "cat",
    "diff.submodule": "short",
    "diff.orderFile": os.devnull,
    "protocol.allow": "never",
    "submodule.recurse": "false",
}
"""Settings that override those of the repository."""

_KEPT: Final = frozenset({"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"})
"""Variables of git that apply. Others, such as `GIT_DIR` in a hook, would select another repository or run programs."""

_DIFF: Final = (
    *("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=dirty"),
    *("--submodule=short", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--inter-hunk-context=0"),
    *("--diff-algorithm=myers", "--"),
)
_HEAD: Final = ("rev-parse", "--verify", "HEAD")
_UNTRACKED: Final = ("ls-files", "--others", "--exclude-standard", "--directory", "-z")


class _GitError(Exception):
    """A command failed or was stopped. The message says why."""


def describe_changes(root: Path, limit: int) -> dict[str, Any]:
    """Describe how the working tree differs from its commit. Blocks for up to 20 seconds.

    Args:
        root: Folder that contains `.git`.
        limit: Maximum size of the diff in bytes.

    Returns:
        `dirty`: whether tracked files differ; None if unknown.
        `diff`: differences of tracked files; binary files are only named.
        `truncated`: whether the diff was cut at the end of a line, because it is larger than the limit.
        `untracked`: names of up to 1,000 untracked files and folders, without ignored ones.
        `problem`: reason why the changes are unknown or incomplete; "" if there is none.
    """
    changes: dict[str, Any] = {"dirty": None, "diff": "", "truncated": False, "untracked": [], "problem": ""}
    try:
        git = _Git(root)
        diff, is_cut = git.run(_DIFF, limit)
        if is_cut:
            diff = diff[: diff.rfind(b"\n") + 1]
        changes |= {"dirty": bool(diff) or is_cut, "diff": diff.decode(errors="replace"), "truncated": is_cut}
        names, is_cut = git.run(_UNTRACKED, _MOST_UNTRACKED_BYTES)
        untracked = [os.fsdecode(name).encode(errors="replace").decode() for name in names.split(b"\0")[:-1]]
        changes["untracked"] = untracked[:_MOST_UNTRACKED]
        if is_cut or len(untracked) > _MOST_UNTRACKED:
            changes["problem"] = "only some untracked files are listed"
    except _GitError as error:
        changes["problem"] = str(error)
    except OSError as error:
        changes["problem"] = f"cannot run git: {error.strerror}"
    return changes


class _Git:
    """Runs commands in a repository, with the programs in its configuration switched off."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            _GitError: Git is missing, too old, or refuses the repository.
            OSError: Git cannot be started.
        """
        path = os.pathsep.join(filter(os.path.isabs, os.environ.get("PATH", os.defpath).split(os.pathsep)))
        program = shutil.which("git", path=path)
        if program is None:
            raise _GitError("git is not installed")
        self._command = [program, "--no-pager", "--no-optional-locks", f"--work-tree={root}"]
        self._root = root
        self._deadline = time.monotonic() + _TIMEOUT
        # Versions before 2.31 ignore settings in the environment, so a random one shows whether they apply.
        canary = f"tensormeter.c{uuid.uuid4().hex}"
        self._environment = _environment(root, {**_SETTINGS, canary: "true"})
        pattern = rf"^(filter\..*|{canary.replace('.', '[.]')})$"
        names, is_cut = self.run(
            ("config", "--null", "--name-only", "--get-regexp", pattern), _MOST_SETTINGS_BYTES, (0, 1)
        )
        keys = {os.fsdecode(name) for name in names.split(b"\0")}
        if canary not in keys:
            raise _GitError("git is older than version 2.31 or cannot read its configuration")
        if is_cut:
            raise _GitError("the repository configures too many filters")
        filters = {key.rpartition(".")[0] for key in keys if key.startswith("filter.")}
        switched_off = {
            f"{name}.{part}": value
            for name in filters
            for part, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
        }
        self._environment = _environment(root, {**_SETTINGS, **switched_off})

    def run(self, arguments: Sequence[str], limit: int, statuses: Sequence[int] = (0,)) -> tuple[bytes, bool]:
        """Return the first bytes of a command's output, and whether there are more than `limit`.

        Raises:
            _GitError: The command failed or took too long.
            OSError: It cannot be started.
        """
        process = subprocess.Popen(
            [*self._command, *arguments],
            cwd=self._root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if arguments == _HEAD else subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
            assert process.stdout is not None
            output = self._read(process.stdout.fileno(), limit + 1)
            if len(output) > limit:
                return output[:limit], True
            try:
                status = process.wait(max(0.0, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise _GitError(f"git took longer than {_TIMEOUT:.0f} seconds") from None
            if status not in statuses:
                raise _GitError(self._explain(arguments[0]))
            return output, False
        finally:
            _end(process)

    def _explain(self, command: str) -> str:
        """Return the reason why a command failed."""
        words, _ = self.run(_HEAD, _CHUNK, range(256))
        if b"dubious ownership" in words:
            return "git refuses the repository, because it belongs to another user"
        if b"Needed a single revision" in words:
            return "there is no commit yet"
        return f"`git {command}` failed"

    def _read(self, descriptor: int, size: int) -> bytes:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        output = bytearray()
        while len(output) < size:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _GitError(f"git took longer than {_TIMEOUT:.0f} seconds")
            chunk = os.read(descriptor, min(_CHUNK, size - len(output)))
            if not chunk:
                break
            output += chunk
        return bytes(output)


def _environment(root: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command. Settings travel in it, because their names may contain any character."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _KEPT}
    environment |= {
        "GIT_CEILING_DIRECTORIES": os.fspath(
            root.parent
        ),  # if `.git` is no repository, the one above it does not apply
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_PAGER": "cat",
        "LC_ALL": "C",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for index, (name, value) in enumerate(settings.items()):
        environment[f"GIT_CONFIG_KEY_{index}"] = name
        environment[f"GIT_CONFIG_VALUE_{index}"] = value
    return environment


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its children. If it hangs on a disk, it is left alone."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
    if process.stdout is not None:
        process.stdout.close()
