"""Tables: CSV, Parquet and JSON lines with a column for the step, and the tables that `tensormeter export` writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensormeter.importers.registry import ImportContext, Options
from tensormeter.importers.table.files import SUFFIXES, column_names
from tensormeter.importers.table.layout import choose_layout, is_long
from tensormeter.importers.table.long import send_long
from tensormeter.importers.table.wide import send_wide

__all__ = ["TableFile", "find"]


def find(address: str, options: Options) -> Iterator["TableFile"]:
    """Yield the table at a path, or the tables in a folder. Folders below it are not searched."""
    path = Path(address)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.suffix in SUFFIXES and file.is_file() and not (path.is_dir() and file.is_symlink()):
            yield TableFile(file)


@dataclass(frozen=True)
class TableFile:
    """A table with one or several runs."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def send(self, context: ImportContext) -> None:
        """Send the runs of the table. See `registry.RunSource`."""
        names = column_names(self.path)
        if is_long(names):
            context.note(f"{self.path}: a table of tensormeter export")
            send_long(self.path, context)
        else:
            send_wide(self.path, choose_layout(self.label, names, context.options, context.note), context)
