"""The manifest of an archive."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tensormeter.archive.layout import FORMAT, MANIFEST, VERSION
from tensormeter.errors import TensormeterError

__all__ = ["Manifest", "is_archive", "read_manifest"]

_MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Manifest:
    """Description of an archive.

    Attributes:
        projects: Names of the projects.
        counts: Number of rows of each table, of media files, and of runs.
        running: IDs of runs that were not finished when they were exported, each as `project/id`.
        missing: Descriptions of data that the server could not return.
        tensormeter: Version of tensormeter that wrote the archive.
        created: Time of the export, in ISO 8601.
        views: Saved views of the web page. Servers do not store views, so the list is empty.
    """

    projects: Sequence[str]
    counts: Mapping[str, int]
    running: Sequence[str] = ()
    missing: Sequence[str] = ()
    tensormeter: str = ""
    created: str = ""
    views: Sequence[Mapping[str, Any]] = field(default=())

    def text(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def is_archive(folder: Path) -> bool:
    """Return whether a folder is an archive, which has a manifest of this format in any version."""
    return isinstance(_document(folder / MANIFEST), dict)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an archive.

    Raises:
        TensormeterError: The folder is not an archive, or has a later version of the layout.
    """
    document = _document(folder / MANIFEST)
    if document is None:
        raise TensormeterError(f"{folder}: not an archive of tensormeter, because {MANIFEST} is missing or damaged")
    if document.get("version") != VERSION:
        raise TensormeterError(
            f"{folder}: the archive has version {document.get('version')!r}, but this tensormeter reads version {VERSION};"
            " upgrade tensormeter"
        )
    projects, counts, running, missing = (document.get(name) for name in ("projects", "counts", "running", "missing"))
    return Manifest(
        [name for name in projects if isinstance(name, str)] if isinstance(projects, list) else [],
        {name: n for name, n in counts.items() if isinstance(n, int)} if isinstance(counts, dict) else {},
        [name for name in running if isinstance(name, str)] if isinstance(running, list) else [],
        [text for text in missing if isinstance(text, str)] if isinstance(missing, list) else [],
        str(document.get("tensormeter", "")),
        str(document.get("created", "")),
    )


def _document(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None
