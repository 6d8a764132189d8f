"""The git commit of the code that a process runs.

This module reads git's files, because the `git` command may be missing, is slow, and refuses other users' folders.
"""

import configparser
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from tensormeter.redaction import strip_address

__all__ = ["describe_revision", "find_repository"]

_REVISION: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def describe_revision(folder: Path | None = None) -> dict[str, Any]:
    """Describe the commit, branch and remote of the repository that contains the running script.

    If the script is not in a repository, the working folder's repository is described.

    Args:
        folder: Folder to search instead of the script's folder and the working folder.

    Returns:
        Attributes; empty if there is no readable repository.
    """
    try:
        for start in [folder] if folder else _starts():
            root = find_repository(start)
            if root is not None:
                return _describe(root / ".git")
    except (OSError, UnicodeDecodeError, RuntimeError):
        pass
    return {}


def find_repository(folder: Path) -> Path | None:
    """Return the closest folder that has a `.git`: the given one or one above it; None if there is none."""
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)


def _starts() -> list[Path]:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return [*([Path(script).resolve().parent] if isinstance(script, str) and script else []), Path(os.getcwd())]


def _describe(entry: Path) -> dict[str, Any]:
    folder = entry
    if entry.is_file():  # a worktree or a submodule: `gitdir: PATH`
        folder = (entry.parent / entry.read_text().partition(":")[2].strip()).resolve()
    common = folder
    if (folder / "commondir").exists():
        common = (folder / (folder / "commondir").read_text().strip()).resolve()
    head = (folder / "HEAD").read_text().strip()
    attributes: dict[str, Any] = {}
    if head.startswith("ref:"):
        reference = head.removeprefix("ref:").strip()
        attributes["vcs.ref.head.name"] = reference.removeprefix("refs/heads/")
        head = _resolve(folder, common, reference)
    if _REVISION.fullmatch(head):
        attributes["vcs.ref.head.revision"] = head
    url = _remote(common / "config")
    if url:
        attributes["vcs.repository.url.full"] = url
    return attributes


def _resolve(folder: Path, common: Path, reference: str) -> str:
    for place in (folder, common):
        if (place / reference).is_file():
            return (place / reference).read_text().strip()
    packed = common / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), "")


def _remote(config: Path) -> str:
    """Return the address of the remote `origin`, without user, password and parameters."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    try:
        parser.read_string("\n".join(line.strip() for line in config.read_text().splitlines()))
        address = parser.get('remote "origin"', "url", fallback="") or ""
        return strip_address(address.strip().strip('"'))
    except (OSError, configparser.Error):
        return ""
