"""The code and the artifacts of a run, as rows and texts for destinations. Any sender may send such events."""

from collections.abc import Mapping
from typing import Any

__all__ = ["artifact_place", "artifact_rows", "code_files", "code_rows"]


def code_rows(body: Mapping[str, Any]) -> list[list[str]]:
    """Return names and values of the commit and of the program, without empty ones."""
    git, source = _mapping(body.get("git")), _mapping(body.get("source"))
    dirty = git.get("dirty")
    rows = [
        ["commit", git.get("commit")],
        ["branch", git.get("branch")],
        ["remote", git.get("remote")],
        ["uncommitted changes", None if dirty is None else "yes" if dirty else "no"],
        ["script", source.get("path")],
        ["python", body.get("python")],
    ]
    return [[str(name), str(value)] for name, value in rows if value]


def code_files(body: Mapping[str, Any]) -> dict[str, str]:
    """Return texts by file name: the uncommitted changes, the source and the packages, without empty ones."""
    git, source = _mapping(body.get("git")), _mapping(body.get("source"))
    packages = "".join(f"{name}=={version}\n" for name, version in _mapping(body.get("packages")).items())
    files = {"uncommitted.diff": git.get("diff"), "script.py": source.get("text"), "packages.txt": packages}
    return {name: str(text) for name, text in files.items() if text}


def artifact_place(body: Mapping[str, Any]) -> str:
    """Return the path or address of an artifact."""
    return str(body.get("path") or body.get("uri") or "")


def artifact_rows(body: Mapping[str, Any]) -> list[list[str]]:
    """Return names and values of an artifact, without empty ones."""
    aliases = body.get("aliases")
    rows: list[list[Any]] = [
        ["name", body.get("name")],
        ["type", body.get("type")],
        ["aliases", ", ".join(map(str, aliases)) if isinstance(aliases, list | tuple) else ""],
        ["place", artifact_place(body)],
        ["size", body.get("size")],
        ["digest", body.get("digest")],
    ]
    return [[str(name), str(value)] for name, value in rows if value]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
