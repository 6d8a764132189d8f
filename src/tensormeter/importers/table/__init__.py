"""Tables: CSV, Parquet and JSON lines with a column for the step, and the tables that `tensormeter export` writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensormeter.importers.registry import FileSource, ImportContext, Options
from tensormeter.importers.table.files import SUFFIXES, column_names, read_blocks
from tensormeter.importers.table.layout import choose_layout, is_long
from tensormeter.importers.table.long import LongTable
from tensormeter.importers.table.wide import WideTable

__all__ = ["TableFile", "find"]


def find(address: str, options: Options) -> Iterator["TableFile"]:
    """Yield the table at a path, or the tables in a folder. Folders below it are not searched."""
    path = Path(address)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.suffix in SUFFIXES and file.is_file() and not (path.is_dir() and file.is_symlink()):
            yield TableFile(file)


@dataclass(frozen=True)
class TableFile(FileSource):
    """A table with one or several runs."""

    def send(self, context: ImportContext) -> None:
        """Send the runs of the table. See `registry.RunSource`."""
        names = column_names(self.path)
        if is_long(names):
            context.note(f"{self.path}: a table of tensormeter export")
            table: LongTable | WideTable = LongTable(self.path, context)
        else:
            layout = choose_layout(self.label, names, context.options, context.note)
            table = WideTable(self.path, layout, context)
        try:
            for block in read_blocks(self.path, context.tally, context.advance):
                table.add(block)
        except Exception:  # the rows before any damage are kept, so their runs end
            table.finish()
            raise
        table.finish()
