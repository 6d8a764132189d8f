"""Reading of MLflow's folder `mlruns`, without MLflow, which reads one file per metric, parameter and tag."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tensormeter.importers.confined_folder import ConfinedFolder
from tensormeter.importers.mlflow.local_artifacts import LocalArtifacts, are_elsewhere, local_folder
from tensormeter.importers.mlflow.store import PARENT_TAG, MetricBlock, Relation, TrackedRun
from tensormeter.importers.registry import SourceError
from tensormeter.importers.tally import Tally

__all__ = ["FileStore", "is_file_store"]

_STATUSES: Final = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_META: Final = "meta.yaml"
_MOST_META: Final = 1 << 20
_MOST_FILES: Final = 100_000
"""Maximum number of metrics, of parameters, or of tags, of a run."""
_BLOCK: Final = 4 << 20
"""Bytes of a metric's file that are read at once."""
_LONGEST_TEXT: Final = 1 << 20
_NUMBER: Final = re.compile(r"\d+")


def is_file_store(path: Path) -> bool:
    """Return whether a folder contains experiments of MLflow."""
    try:
        store = ConfinedFolder(path)
        return any(_is_experiment(store, name) for name in store.folders())
    except OSError:
        return False


class FileStore:
    """A folder `mlruns`. It implements `TrackingStore`."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self._path = path
        self._tally = tally
        self._store = ConfinedFolder(path)
        self._left_out: dict[str, int] = {}
        self._experiments: dict[str, str] = {}
        """Name of the experiment of each active run."""
        self._folders: dict[str, ConfinedFolder] = {}
        """Folder of each active run."""
        self._scan()

    def relations(self) -> Iterator[Relation]:
        for run_id, folder in self._folders.items():
            name, parent = (_text(folder, f"tags/{tag}") for tag in ("mlflow.runName", PARENT_TAG))
            yield Relation(run_id, name, parent)

    def runs(self) -> Iterator[TrackedRun]:
        for run_id, folder in self._folders.items():
            meta = self._meta(folder)
            if meta is not None:
                yield self._run(run_id, folder, meta)

    def metrics(self, run: TrackedRun) -> Iterator[MetricBlock]:
        folder = self._folders[run.run_id].folder("metrics")
        for entry in folder.files(_MOST_FILES):
            try:
                with folder.locate(entry.path).open("rb") as file:
                    yield from self._blocks(entry.path, file)
            except OSError as error:
                self._tally.report(f"{folder.root / entry.path}: cannot read the metric: {error.strerror}")

    def artifacts(self, run: TrackedRun) -> LocalArtifacts | None:
        folder = self._folders[run.run_id].folder("artifacts")
        if not folder.root.is_dir():
            elsewhere = local_folder(run, self._path.parent)
            if elsewhere is None:
                if are_elsewhere(run, self._path.parent):
                    self._tally.leave_out("artifact folders that are not on this machine")
                return None
            folder = ConfinedFolder(elsewhere)
        return LocalArtifacts(folder, run.artifact_uri or folder.root.as_uri())

    def left_out(self) -> Mapping[str, int]:
        return self._left_out

    def close(self) -> None: ...

    def _scan(self) -> None:
        """Find the active runs."""
        deleted = len(self._store.folders(".trash"))
        self._left_out = {"deleted experiments": deleted, "deleted runs": 0, "traces": 0, "logged models": 0}
        runs: list[tuple[int, str, ConfinedFolder]] = []
        for experiment in self._store.folders():
            if not _is_experiment(self._store, experiment):
                continue
            meta = self._meta(self._store.folder(experiment))
            if meta is None:
                continue
            if meta.get("lifecycle_stage", "active") != "active":
                self._left_out["deleted experiments"] += 1
                continue
            for kind, folder in (("traces", "traces"), ("logged models", "models")):
                self._left_out[kind] += len(self._store.folders(f"{experiment}/{folder}"))
            runs += self._active_runs(experiment, _word(meta.get("name")) or experiment)
        self._folders = {run_id: folder for _, run_id, folder in sorted(runs, key=lambda run: run[:2])}

    def _active_runs(self, experiment: str, name: str) -> Iterator[tuple[int, str, ConfinedFolder]]:
        """Yield start, ID and folder of the runs of an experiment."""
        for run_id in self._store.folders(experiment):
            folder = self._store.folder(f"{experiment}/{run_id}")
            meta = self._meta(folder) if folder.has(_META) else None
            if meta is None or not isinstance(meta.get("run_id") or meta.get("run_uuid"), str):
                continue
            if meta.get("lifecycle_stage", "active") != "active":
                self._left_out["deleted runs"] += 1
                continue
            self._experiments[run_id] = name
            yield _integer(meta.get("start_time")) or 0, run_id, folder

    def _meta(self, folder: ConfinedFolder) -> dict[str, Any] | None:
        """Read the description of an experiment or a run; report it and return None if it is damaged."""
        yaml = _import_yaml()
        try:
            document = yaml.load(folder.read(_META, _MOST_META), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (SourceError, yaml.YAMLError, ValueError, RecursionError) as error:
            self._tally.report(f"{folder.root / _META} is damaged, so its folder was skipped: {error}")
            self._tally.leave_out("damaged runs or experiments")
            return None
        return document if isinstance(document, dict) else {}

    def _run(self, run_id: str, folder: ConfinedFolder, meta: Mapping[str, Any]) -> TrackedRun:
        tags = self._texts(folder, "tags")
        status = meta.get("status")
        return TrackedRun(
            run_id,
            _word(meta.get("run_name")) or tags.get("mlflow.runName", ""),
            self._experiments[run_id],
            _STATUSES.get(status, "") if isinstance(status, int) else _word(status),
            _integer(meta.get("start_time")),
            _integer(meta.get("end_time")),
            self._texts(folder, "params"),
            tags,
            _word(meta.get("artifact_uri")),
            left_out={"datasets": len(folder.folders("inputs"))},
        )

    def _texts(self, run: ConfinedFolder, kind: str) -> dict[str, str]:
        """Read the files of parameters or tags."""
        texts = {}
        try:
            files = run.folder(kind)
        except SourceError as error:
            self._tally.report(f"{run.root}: {error}")
            return {}
        for entry in files.files(_MOST_FILES):
            try:
                texts[entry.path] = files.read(entry.path, _LONGEST_TEXT).decode("utf-8", "replace")
            except SourceError as error:
                self._tally.report(f"{files.root}: {error}")
                self._tally.leave_out(f"unreadable {kind}")
        return texts

    def _blocks(self, name: str, file: Any) -> Iterator[MetricBlock]:
        rest = b""
        while data := file.read(_BLOCK):
            data, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield self._block(name, data)
            elif len(rest) > _BLOCK:
                self._tally.leave_out("damaged points")
                return
        if rest.strip():
            yield self._block(name, rest)

    def _block(self, name: str, data: bytes) -> MetricBlock:
        fields = data.split()
        try:
            if len(fields) != 3 * (data.count(b"\n") + 1):
                raise ValueError
            return _block_of(name, fields[0::3], fields[1::3], fields[2::3])
        except (ValueError, OverflowError):
            rows = [row for line in data.splitlines() if (row := _row_of(line)) is not None]
            self._tally.leave_out("damaged points", sum(1 for line in data.splitlines() if line.strip()) - len(rows))
            columns = zip(*rows, strict=True) if rows else ((), (), ())
            return _block_of(name, *columns)


def _block_of(name: str, times: Any, values: Any, steps: Any) -> MetricBlock:
    return MetricBlock(
        [name],
        np.zeros(len(times), np.int64),
        np.array(list(map(int, steps)), np.int64),
        np.array(list(map(int, times)), np.int64),
        np.array(list(map(float, values)), np.float64),
    )


def _row_of(line: bytes) -> tuple[int, float, int] | None:
    """Return time, value and step of a line; None if it is damaged. The first versions of MLflow stored no steps."""
    fields = line.split()
    try:
        time, value = int(fields[0]), float(fields[1])
        step = int(fields[2]) if len(fields) > 2 else 0
    except (ValueError, IndexError):
        return None
    return (time, value, step) if abs(time) < 1 << 62 and abs(step) < 1 << 62 else None


def _text(folder: ConfinedFolder, path: str) -> str:
    try:
        return folder.read(path, _LONGEST_TEXT).decode("utf-8", "replace")
    except SourceError:
        return ""


def _word(value: object) -> str:
    """Return a text or number as text, and "" for others. The text of a list with aliases could have any length."""
    return str(value) if isinstance(value, str | int | float) else ""


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _is_experiment(store: ConfinedFolder, name: str) -> bool:
    return bool(_NUMBER.fullmatch(name)) and store.has(f"{name}/{_META}")


def _import_yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise SourceError("reading `mlruns` needs the package pyyaml; run pip install 'tensormeter[mlflow]'") from None
    return yaml
