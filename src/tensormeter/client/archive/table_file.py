"""Writer of one table of an archive."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tensormeter.archive.arrow import load_arrow, load_parquet
from tensormeter.archive.layout import schema_of
from tensormeter.disk.fsync import fsync

__all__ = ["Row", "TableFile"]

Row = Mapping[str, Any]

_GROUP_ROWS: Final = 50_000
_GROUP_TEXT: Final = 8 << 20
"""Number of characters in text columns from which on waiting rows are written."""

_INCREASING: Final = frozenset({"time", "step", "start_time", "observed_time", "integer"})


class TableFile:
    """A table that is written row group by row group. The file is created with the first row.

    Use it as a context manager: the file is complete and synced after the block. If the block raises, the file is removed.
    """

    def __init__(self, path: Path, table: str) -> None:
        """
        Args:
            path: Path of the file, whose folder is created if necessary.
            table: Name of the table; see `schema_of`.
        """
        self.path = path
        self.rows = 0
        self.schema = schema_of(table)
        self._writer: Any = None
        self._waiting: list[Row] = []
        self._text = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)
        elif self._writer is not None:
            with self.path.open("rb") as file:
                fsync(file.fileno())

    def add(self, row: Row, size: int = 0) -> None:
        """Append a row. `size` is the approximate number of characters of its long texts. Missing columns are null."""
        self._waiting.append(row)
        self._text += size
        if len(self._waiting) >= _GROUP_ROWS or self._text >= _GROUP_TEXT:
            self._flush()

    def write(self, columns: Sequence[Any]) -> None:
        """Append a row group. `columns` contains a pyarrow array for each column of the schema."""
        self._flush()
        self.write_group(load_arrow().Table.from_arrays(columns, schema=self.schema))

    def write_group(self, table: Any) -> None:
        """Append a pyarrow table of this schema as one row group."""
        if not len(table):
            return
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = _open(self.path, self.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self.rows += len(table)

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting, self._text = self._waiting, [], 0
            arrow = load_arrow()
            arrays = [
                arrow.array([row.get(name) for row in waiting], self.schema.field(name).type)
                for name in self.schema.names
            ]
            self.write_group(arrow.Table.from_arrays(arrays, schema=self.schema))


def _open(path: Path, schema: Any) -> Any:
    arrow = load_arrow()
    names = [field.name for field in schema if arrow.types.is_dictionary(field.type)]
    encodings = {
        field.name: "DELTA_BINARY_PACKED"
        for field in schema
        if field.name in _INCREASING and (arrow.types.is_timestamp(field.type) or arrow.types.is_int64(field.type))
    }
    return load_parquet().ParquetWriter(
        path, schema, compression="zstd", use_dictionary=names, column_encoding=encodings, write_page_checksum=True
    )
