"""Runs of an archive as sources of an import."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensormeter.archive.layout import RUNS, SUMS
from tensormeter.archive.manifest import is_archive
from tensormeter.importers.archive.folder import ArchiveFolder
from tensormeter.importers.archive.run_import import RunImport
from tensormeter.importers.registry import ImportContext, Options

__all__ = ["ArchivedRun", "find"]


def find(address: str, options: Options) -> Iterator["ArchivedRun"]:
    """Yield the runs of an archive.

    Raises:
        SourceError: The folder is an archive, but its manifest, its checksums or the list of its runs are damaged.
    """
    path = Path(address)
    if path.is_dir() and (is_archive(path) or all((path / name).is_file() for name in (SUMS, RUNS))):
        folder = ArchiveFolder(path)
        folder.check()
        for row in folder.runs():
            yield ArchivedRun(folder, row)


@dataclass(frozen=True)
class ArchivedRun:
    """One run.

    Attributes:
        folder: Archive of the run.
        row: Row of the run in `runs.parquet`.
    """

    folder: ArchiveFolder
    row: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.folder.path}: {self.row['project']}/{self.row['id']}"

    @property
    def size(self) -> int:
        return self.folder.size(self.row["file"])

    def send(self, context: ImportContext) -> None:
        """Read the run's tables and send them. Damaged tables are reported and left out; see `RunSource`."""
        RunImport(self.folder, self.row, context).send()
