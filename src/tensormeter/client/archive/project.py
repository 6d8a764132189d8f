"""Export of projects to an archive: the folder, its runs one after another, and its manifest."""

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final, Protocol

from tensormeter.archive.checksums import file_digest, sums_text
from tensormeter.archive.layout import (
    FORMAT,
    MANIFEST,
    MEDIA,
    PROGRESS,
    README,
    README_TEXT,
    RUNS,
    SUMS,
    VERSION,
)
from tensormeter.archive.manifest import Manifest, is_archive
from tensormeter.client.archive.json_text import json_text
from tensormeter.client.archive.run_tables import RunExport
from tensormeter.client.archive.table_file import TableFile
from tensormeter.client.connection import ApiError, Connection
from tensormeter.disk.fsync import fsync_folder
from tensormeter.disk.locks import wait_for_lock
from tensormeter.errors import TensormeterError, UsageError

__all__ = ["ExportProgress", "ExportSummary", "export_archive"]

_PAGE: Final = 1000
_GONE: Final = 404
_ALL: Final = "archived = true or archived = false"
_OPEN: Final = ("running", "stalled")
_VOLATILE: Final = ("lag", "state")
"""Fields of a run that change although no data arrives."""


class ExportProgress(Protocol):
    """Receiver of an export's progress."""

    def begin(self, runs: int, points: int) -> None:
        """Note the number of runs, and of points that are to be read."""
        ...

    def points(self, count: int) -> None:
        """Note that points have been written."""
        ...

    def run(self, name: str) -> None:
        """Note that a run begins. `name` is its project and ID."""
        ...


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export.

    Attributes:
        counts: Number of rows of each table, of media files, and of runs.
        running: Runs that were not finished, each as `project/id`.
        missing: Descriptions of data that the server could not return.
        resumed: Number of runs that an interrupted export had already written.
    """

    counts: Mapping[str, int]
    running: Sequence[str]
    missing: Sequence[str]
    resumed: int


@dataclass
class _Entry:
    """A finished run: its document when the export began, and what was written."""

    document: Mapping[str, Any]
    row: Mapping[str, Any]
    sums: Mapping[str, str]
    missing: Sequence[str]
    counts: Mapping[str, int] = field(default_factory=dict)


def export_archive(
    connection: Connection, projects: Sequence[str], folder: Path, progress: ExportProgress, *, force: bool = False
) -> ExportSummary:
    """Write everything that a server has of some projects to a folder.

    The files are written to `FOLDER.partial`, which is renamed at the end. If an earlier export of the same projects was
    interrupted, its finished runs are kept. At most one row group of a table is in memory at a time.

    Args:
        connection: Connection to the server.
        projects: Names of the projects.
        folder: Folder to create.
        progress: Receiver of the progress.
        force: Whether to replace an existing archive.

    Raises:
        UsageError: The folder exists, a project does not exist, or pyarrow is not installed.
        TensormeterError: The server does not respond or returns an error, or another process exports to the same folder.
        OSError: A file cannot be written.
    """
    _check_target(folder, force=force)
    documents = [document for project in projects for document in _list_runs(connection, project)]
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _progress_file(partial) as file:
        origin = {"format": FORMAT, "version": VERSION, "server": connection.endpoint, "projects": sorted(projects)}
        finished = _finished(file, partial, origin, documents)
        progress.begin(len(documents), sum(document["points"] for document in documents))
        entries: list[_Entry] = []
        names: set[str] = set()
        for document in documents:
            name = _file_name(document["id"], names)
            entry = finished.get(_key(document))
            if entry is None or entry.row["file"] != name:
                progress.run("/".join(_key(document)))
                try:
                    entry = _export_run(connection, document, partial, name, progress)
                except ApiError as error:
                    if error.status != _GONE:
                        raise
                    continue  # the run was deleted meanwhile
                _append(file, dataclasses.asdict(entry))
            else:
                progress.points(document["points"])
            entries.append(entry)
        summary = _finish(partial, projects, entries, resumed=len(finished))
    (partial / PROGRESS).unlink()
    _move(partial, folder)
    return summary


def _check_target(folder: Path, *, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output")
    if any(folder.iterdir()) and not is_archive(folder):
        raise UsageError(f"{folder} exists and is not an archive; choose another --output")
    if not force:
        raise UsageError(f"{folder} exists; choose another --output, or replace it with --force")


def _list_runs(connection: Connection, project: str) -> list[dict[str, Any]]:
    """Return the documents of a project's runs without config and summary, ordered by ID."""
    documents: dict[str, dict[str, Any]] = {}
    offset: int | None = 0
    while offset is not None:
        page = connection.get("runs", project=project, filter=_ALL, sort="id", limit=_PAGE, offset=offset, fields="")
        documents.update((document["id"], document) for document in page["runs"])
        if "damaged" in page:
            raise TensormeterError(f"the server cannot read all runs: {page['damaged'][0]}; see `tensormeter check`")
        offset = page["next"]
    if not documents:
        raise UsageError(f"there are no runs in project {project!r}; `tensormeter runs` lists the runs of all projects")
    return [documents[run] for run in sorted(documents)]


@contextlib.contextmanager
def _progress_file(partial: Path) -> Iterator[IO[bytes]]:
    with (partial / PROGRESS).open("a+b") as file:
        is_locked = True
        with contextlib.suppress(OSError):  # some file systems have no locks
            is_locked = wait_for_lock(file.fileno())
        if not is_locked:
            raise TensormeterError(f"another process exports to {partial}; wait for it, or choose another --output")
        yield file


def _finished(
    file: IO[bytes], partial: Path, origin: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], _Entry]:
    """Return the runs that an interrupted export has written and that have not changed since. Otherwise, begin again."""
    file.seek(0)
    lines = file.readlines()
    entries: dict[tuple[str, str], _Entry] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError):  # the last line may be incomplete
        if lines and json.loads(lines[0]) == origin:
            current = {_key(document): document for document in documents}
            for line in lines[1:]:
                entry = _Entry(**json.loads(line))
                document = current.get(_key(entry.document))
                if document is not None and _stable(document) == _stable(entry.document) and _has_files(partial, entry):
                    entries[_key(document)] = entry
    kept = {path for entry in entries.values() for path in entry.sums}
    for path in partial.rglob("*"):
        is_medium = path.parent.name == MEDIA and not path.name.startswith(".")  # others were being written
        is_kept = path.name == PROGRESS or (entries and is_medium)
        if not is_kept and path.is_file() and path.relative_to(partial).as_posix() not in kept:
            path.unlink()  # of a run that was not finished, or of another export
    file.truncate(0)
    _append(file, origin)
    for entry in entries.values():
        _append(file, dataclasses.asdict(entry))
    return entries


def _has_files(partial: Path, entry: _Entry) -> bool:
    return not entry.missing and all((partial / path).is_file() for path in entry.sums)


def _stable(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in _VOLATILE}


def _append(file: IO[bytes], document: Mapping[str, Any]) -> None:
    file.write(json_text(document).encode() + b"\n")
    file.flush()


def _key(document: Mapping[str, Any]) -> tuple[str, str]:
    return document["project"], document["id"]


def _file_name(run_id: str, names: set[str]) -> str:
    """Return a name that no other run's files have, even if the file system ignores case, and add it to `names`."""
    name, number = run_id, 1
    while name.casefold() in names:
        number += 1
        name = f"{run_id}~{number}"  # an ID contains no ~
    names.add(name.casefold())
    return name


def _export_run(
    connection: Connection, document: Mapping[str, Any], partial: Path, name: str, progress: ExportProgress
) -> _Entry:
    run = RunExport(connection, document, partial, name, progress.points)
    details = run.write()
    sums = {path: file_digest(partial / path) for path in run.paths()}
    counts = {str(kind): rows for kind, rows in run.rows.items()} | {"media": run.media}
    return _Entry(document, _run_row(details, name, counts), sums, run.missing, counts)


def _run_row(details: Mapping[str, Any], name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    parent = details["parent"] or {}
    names = ("project", "id", "name", "state", "attempt", "group", "tags", "notes", "archived", "lost")
    return {
        **{field: details[field] for field in names},
        "job_type": details.get("job_type", ""),
        "file": name,
        "started": int(details["started"]),
        "ended": None if details["ended"] is None else int(details["ended"]),
        "parent_run": parent.get("run"),
        "parent_step": parent.get("step"),
        **{field: json_text(details[field]) for field in ("config", "results", "definitions")},
        **counts,
    }


def _finish(partial: Path, projects: Sequence[str], entries: Sequence[_Entry], *, resumed: int) -> ExportSummary:
    """Write the files that describe the whole archive."""
    with TableFile(partial / RUNS, "runs") as table:
        for entry in entries:
            table.add(entry.row, len(entry.row["config"]))
    counts: Counter[str] = Counter({"runs": len(entries)})
    for entry in entries:
        counts.update(entry.counts)
    media = sorted(path.name for path in (partial / MEDIA).iterdir()) if (partial / MEDIA).is_dir() else []
    counts["media"] = len(media)
    running = ["/".join(_key(entry.row)) for entry in entries if entry.row["state"] in _OPEN]
    missing = [text for entry in entries for text in entry.missing]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(list(projects), dict(counts), running, missing, version("tensormeter"), created)
    (partial / MANIFEST).write_text(manifest.text(), "utf-8")
    (partial / README).write_text(README_TEXT, "utf-8")
    with (partial / SUMS).open("w", encoding="utf-8") as file:
        sums = [(path, file_digest(partial / path)) for path in (MANIFEST, README, RUNS)]
        sums += [item for entry in entries for item in entry.sums.items()]
        file.writelines(sums_text(sums))
        file.writelines(sums_text((f"{MEDIA}/{name}", name.partition(".")[0]) for name in media))
    return ExportSummary(counts, running, missing, resumed)


def _move(partial: Path, folder: Path) -> None:
    """Rename a complete archive, and remove the one that it replaces."""
    fsync_folder(partial)
    replaced = None
    if folder.exists():
        replaced = folder.with_name(f"{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    fsync_folder(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
