"""The tracking store at an address, as a source of an import."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from tensormeter.importers.mlflow.database import DatabaseStore, database_path, is_mlflow_database
from tensormeter.importers.mlflow.file_store import FileStore, is_file_store
from tensormeter.importers.mlflow.run_import import RunImport
from tensormeter.importers.mlflow.server import ServerStore
from tensormeter.importers.mlflow.store import Lineage, TrackingStore
from tensormeter.importers.registry import ImportContext, Options, SourceError, skipping_damage
from tensormeter.importers.tally import Tally
from tensormeter.redaction import mask_address

__all__ = ["StoreSource", "find"]

_SERVERS: Final = ("http", "https")
_DATABASES: Final = ("postgresql", "mysql", "mssql", "databricks")


def find(address: str, options: Options) -> Iterator["StoreSource"]:
    """Yield the tracking store at an address: an SQLite database, a folder of runs, a folder with one of these, or a server."""
    scheme = urlsplit(address).scheme.partition("+")[0] if "://" in address else ""
    if scheme in _SERVERS:
        yield StoreSource(mask_address(address), 0, lambda tally: ServerStore(address, tally))
        return
    if scheme in _DATABASES:
        raise SourceError(
            f"{mask_address(address)}: this database cannot be read directly; start `mlflow server --backend-store-uri` "
            "with it, and import from the server's address"
        )
    if scheme not in ("", "sqlite", "file"):
        return
    path = database_path(address) if scheme == "sqlite" else Path(address)
    if scheme == "file":
        path = Path(unquote(urlsplit(address).path))
    if scheme == "sqlite" and not path.is_file():
        raise SourceError(f"{address}: no such file; check the path")
    for candidate in (path, path / "mlflow.db", path / "mlruns"):
        if is_file_store(candidate):
            yield _file_source(candidate)
            return
        if is_mlflow_database(candidate):
            yield _database_source(candidate)
            return
    if path.name == "mlruns" and is_mlflow_database(path.with_name("mlflow.db")):
        raise SourceError(
            f"{address}: contains only artifacts; import {path.with_name('mlflow.db')}, which refers to them"
        )


@dataclass(frozen=True)
class StoreSource:
    """A tracking store with its runs.

    Attributes:
        label: Address of the store, without secrets.
        size: Number of bytes to read, or 0 if it is unknown.
        open: Function that opens the store.
    """

    label: str
    size: int
    open: Callable[[Tally], TrackingStore]

    def send(self, context: ImportContext) -> None:
        """Send all runs. A damaged run is reported, and the import continues with the next one."""
        store = self.open(context.tally)
        try:
            lineage = Lineage(store.relations())
            if context.options.name and len(lineage) > 1:
                raise SourceError(f"{self.label}: --name is for one run, but there are {len(lineage):,}; leave it out")
            for run in store.runs():
                with skipping_damage(context.tally, f"{self.label}: run {run.run_id}"):
                    RunImport(store, run, context, lineage.group_of(run.run_id)).send()
            for kind, count in store.left_out().items():
                context.tally.leave_out(kind, count)
        finally:
            store.close()


def _file_source(path: Path) -> StoreSource:
    return StoreSource(str(path), 0, lambda tally: FileStore(path, tally))


def _database_source(path: Path) -> StoreSource:
    return StoreSource(str(path), path.stat().st_size, lambda tally: DatabaseStore(path, tally))
