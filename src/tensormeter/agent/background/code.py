"""Description of the code that a run uses: commit, uncommitted changes, source of the script, and installed packages."""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.background.git import describe_changes
from tensormeter.agent.background.masking import mask_lines
from tensormeter.conventions.fitting import json_bytes
from tensormeter.conventions.limits import CODE_BYTES, EVENT_BYTES
from tensormeter.conventions.semconv import GPU_MODELS
from tensormeter.resource.revision import describe_revision, find_repository

__all__ = ["code_of", "describe_code"]

_MOST_PACKAGES: Final = 5000
_LONGEST_NAME: Final = 100

_MOST_BYTES: Final = EVENT_BYTES // 2
"""Maximum size of a description as JSON, in bytes."""


def code_of(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description that a process's resource contains."""
    gpus = resource.get(GPU_MODELS)
    return {
        "python": str(resource.get("process.runtime.version", "")),
        "gpus": [str(gpu) for gpu in gpus] if isinstance(gpus, list | tuple) else [],
    }


def describe_code(request: Mapping[str, Any], resource: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the code that a process runs, with secrets masked. Blocks on the disk and on git.

    Args:
        request: Result of `session.code_request.request_code`.
        resource: Resource of the process.

    Returns:
        Body of the event. Parts that cannot be read are empty.
    """
    script = request.get("script")
    source = _read_source(Path(script)) if isinstance(script, str) and script else None
    git = _describe_git(request)
    body = {
        "git": git,
        "source": source,
        "packages": _packages(request.get("paths") or ()),
        **code_of(resource),
    }
    for part, name in ((git, "diff"), (source, "text")):
        if part is not None and json_bytes(body) > _MOST_BYTES:  # control characters take six bytes each
            part |= {name: "", "truncated": True}
    return body


def _describe_git(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe the repository of the script, or else that of the working folder."""
    for folder in request.get("folders") or ():
        with contextlib.suppress(OSError, RuntimeError):
            root = find_repository(Path(folder))
            if root is None:
                continue
            revision = describe_revision(root)
            changes = describe_changes(root, CODE_BYTES)
            return {
                "commit": revision.get("vcs.ref.head.revision", ""),
                "branch": revision.get("vcs.ref.head.name", ""),
                "remote": mask_lines(revision.get("vcs.repository.url.full", "")),
                **changes,
                "diff": mask_lines(changes["diff"]),
                "untracked": [mask_lines(name) for name in changes["untracked"]],
            }
    return None


def _read_source(path: Path) -> dict[str, Any] | None:
    """Return the beginning of a text file, or None if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            data = file.read(CODE_BYTES + 1)
    except OSError:
        return None
    if b"\0" in data:  # such as a frozen program
        return None
    is_cut = len(data) > CODE_BYTES
    if is_cut:
        data = data[: data.rfind(b"\n", 0, CODE_BYTES) + 1]
    text = data.decode(errors="replace").replace("\r\n", "\n")
    return {"path": mask_lines(os.fspath(path)), "text": mask_lines(text), "truncated": is_cut}


def _packages(paths: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that a program with this `sys.path` can import, by name."""
    packages: dict[str, str] = {}
    # Only files are read: other finders may run code of packages.
    for distribution in MetadataPathFinder.find_distributions(DistributionFinder.Context(path=list(paths))):
        with contextlib.suppress(Exception):  # damaged metadata
            name, version = distribution.metadata["Name"], distribution.version
            if name and version:
                packages.setdefault(str(name)[:_LONGEST_NAME], str(version)[:_LONGEST_NAME])
        if len(packages) >= _MOST_PACKAGES:
            break
    return dict(sorted(packages.items(), key=lambda item: item[0].lower()))
