"""Artifacts of MLflow in folders of this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from tensormeter.importers.confined_folder import ConfinedFolder, FileEntry
from tensormeter.importers.mlflow.store import TrackedRun

__all__ = ["LocalArtifacts", "are_elsewhere", "local_folder"]

_FOLDERS: Final = ("mlruns", "mlartifacts")
"""Folders next to a database in which MLflow and its server store artifacts by default."""


class LocalArtifacts:
    """The artifacts of a run in a folder. It implements `ArtifactSource`."""

    def __init__(self, folder: ConfinedFolder, uri: str) -> None:
        """
        Args:
            folder: Folder of the run's artifacts.
            uri: Address of the folder according to MLflow.
        """
        self._folder = folder
        self.uri = uri

    def files(self, at_most: int) -> Iterator[FileEntry]:
        return self._folder.files(at_most)

    def read(self, path: str, limit: int) -> bytes:
        return self._folder.read(path, limit)


def local_folder(run: TrackedRun, base: Path) -> Path | None:
    """Return the folder of a run's artifacts; None if the artifacts are in a remote store or the folder does not exist.

    The address comes from the database. Only folders that end as MLflow's do, in `EXPERIMENT/RUN/artifacts`, are
    accepted, also after links are resolved, so that a database cannot choose another folder of this machine.

    Args:
        run: The run.
        base: Folder of the database, for relative addresses and for databases that were moved with their artifacts.
    """
    parts = urlsplit(run.artifact_uri)
    path = Path(unquote(parts.path))
    if path.parts[-2:] != (run.run_id, "artifacts") or ".." in path.parts:
        return None
    candidates = [base / folder / Path(*path.parts[-3:]) for folder in _FOLDERS]
    if parts.scheme in ("", "file") and parts.netloc in ("", "localhost"):
        candidates.insert(0, base / path)
    elif parts.scheme != "mlflow-artifacts":
        return None
    return next(
        (folder for folder in candidates if folder.is_dir() and folder.resolve().parts[-2:] == path.parts[-2:]), None
    )


def are_elsewhere(run: TrackedRun, base: Path) -> bool:
    """Return whether a run without a folder on this machine may have artifacts on another one.

    MLflow creates the folder of a run with its first artifact, but that of the experiment earlier.
    """
    parts = urlsplit(run.artifact_uri)
    if not run.artifact_uri or parts.scheme not in ("", "file"):
        return bool(run.artifact_uri)
    experiment = Path(unquote(parts.path)).parent.parent
    return not ((base / experiment).is_dir() or any((base / folder / experiment.name).is_dir() for folder in _FOLDERS))
