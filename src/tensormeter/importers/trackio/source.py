"""The projects at a path, as sources of an import."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tensormeter.importers.registry import FileSource, ImportContext, Options, SourceError, skipping_damage
from tensormeter.importers.tally import Tally
from tensormeter.importers.trackio.database import DatabaseStore, is_trackio_database
from tensormeter.importers.trackio.parquet import ParquetStore, projects_in
from tensormeter.importers.trackio.run_import import RunImport
from tensormeter.importers.trackio.store import ProjectStore

__all__ = ["ProjectSource", "find"]


def find(address: str, options: Options) -> Iterator["ProjectSource"]:
    """Yield the projects at a path: a database, a file with metrics as Parquet, or trackio's folder."""
    path = Path(address)
    if path.is_dir():
        for database in sorted(path.glob("*.db")):
            if is_trackio_database(database):
                yield ProjectSource(database, DatabaseStore)
        for metrics in projects_in(path):
            yield ProjectSource(metrics, ParquetStore)
    elif path.suffix == ".parquet":
        if path in projects_in(path.parent):
            yield ProjectSource(path, ParquetStore)
    elif path.is_file() and is_trackio_database(path):
        yield ProjectSource(path, DatabaseStore)


@dataclass(frozen=True)
class ProjectSource(FileSource):
    """A project with its runs.

    Attributes:
        path: The database, or the Parquet file with the metrics. The folder `media` is next to it.
        open: Function that opens the project.
    """

    open: Callable[[Path, Tally], ProjectStore]

    def send(self, context: ImportContext) -> None:
        """Send all runs. Damaged rows are counted and skipped."""
        store = self.open(self.path, context.tally)
        try:
            runs = store.runs()
            if context.options.name and len(runs) > 1:
                raise SourceError(f"{self.label}: --name is for one run, but there are {len(runs):,}; leave it out")
            for run in runs:
                with skipping_damage(context.tally, f"{self.label}: run {run.name}"):
                    RunImport(store, run, self.path, context).send()
            for kind, count in store.left_out().items():
                context.tally.leave_out(kind, count)
        finally:
            store.close()
