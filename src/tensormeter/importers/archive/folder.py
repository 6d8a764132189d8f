"""The files of an archive, which may be damaged or malicious: checksums, sizes and columns are verified."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tensormeter.archive.arrow import load_arrow, load_parquet
from tensormeter.archive.checksums import file_digest, read_sums
from tensormeter.archive.layout import KINDS, RUNS, SUMS, Kind, media_path, schema_of, table_path
from tensormeter.archive.manifest import read_manifest
from tensormeter.conventions.limits import MEDIA_BYTES
from tensormeter.errors import TensormeterError
from tensormeter.importers.registry import SourceError
from tensormeter.settings import IDENTIFIER

__all__ = ["ArchiveFolder"]

_FILE: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,127}(~\d{1,9})?", re.ASCII)
_GROUP_ROWS: Final = 5_000_000
_GROUP_BYTES: Final = 1 << 30
"""Maximum size of a row group after decompression, as its metadata state it."""


@dataclass(frozen=True)
class ArchiveFolder:
    """An archive of this version. Raises SourceError if it is damaged."""

    path: Path

    def check(self) -> None:
        """Check that the manifest and the checksums can be read."""
        try:
            read_manifest(self.path)
            _ = self.sums
        except SourceError:
            raise
        except TensormeterError as error:
            raise SourceError(str(error)) from None

    @cached_property
    def sums(self) -> Mapping[str, str]:
        """Checksums of the files, by path."""
        return read_sums(self.path)

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of `runs.parquet`."""
        for table in self._read(RUNS, "runs"):
            for row in table.to_pylist():
                if not isinstance(row["file"], str) or not _FILE.fullmatch(row["file"]):
                    raise SourceError(f"{self.path / RUNS}: {row['file']!r} is not the name of a run's files")
                if not isinstance(row["id"], str) or not IDENTIFIER.fullmatch(row["id"]) or not row["project"]:
                    raise SourceError(f"{self.path / RUNS}: {row['id']!r} in {row['project']!r} is not a run")
                yield row

    def size(self, file: str) -> int:
        """Return the number of bytes of a run's tables."""
        paths = (self.path / table_path(kind, file) for kind in KINDS)
        return sum(path.stat().st_size for path in paths if path.is_file())

    def has(self, kind: Kind, file: str) -> bool:
        """Return whether a run's table should exist."""
        return table_path(kind, file) in self.sums

    def tables(self, kind: Kind, file: str, advance: Callable[[int], None] = lambda size: None) -> Iterator[Any]:
        """Yield the row groups of a run's table, in order, as pyarrow tables with the columns of the layout.

        Times are int64, in nanoseconds since the Unix epoch. Nothing is yielded if the table has no rows.

        Args:
            kind: Table to read.
            file: Column of this name in the run's row.
            advance: Function that is called with the number of bytes read since the last call.

        Raises:
            SourceError: The file is missing or damaged.
        """
        path = table_path(kind, file)
        if path in self.sums:
            yield from self._read(path, kind, advance)
        elif (self.path / path).exists():
            raise SourceError(f"{self.path / path}: {SUMS} has no checksum of the file, so it is left out")

    def media(self, digest: str, content_type: str) -> bytes | None:
        """Return the bytes of a media file; None if there is none.

        Raises:
            SourceError: The file is damaged.
        """
        path = self.path / media_path(digest, content_type)
        if not path.is_file():
            return None
        if path.is_symlink() or path.stat().st_size > MEDIA_BYTES or file_digest(path) != digest:
            raise SourceError(f"{path}: the file is damaged, because its checksum differs from its name")
        return path.read_bytes()

    def _read(self, name: str, table: str, advance: Callable[[int], None] = lambda size: None) -> Iterator[Any]:
        path = self.path / name
        self._verify(path, name)
        arrow, parquet = load_arrow(), load_parquet()
        schema = schema_of(table)
        numeric = _with_integer_times(arrow, schema)
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                missing = [column for column in schema.names if column not in file.schema_arrow.names]
                if missing:
                    raise SourceError(f"{path}: the columns {', '.join(missing)} are missing, so the file is left out")
                for number in range(file.num_row_groups):
                    group = file.metadata.row_group(number)
                    if group.num_rows > _GROUP_ROWS or group.total_byte_size > _GROUP_BYTES:
                        raise SourceError(
                            f"{path}: row group {number} has {group.num_rows:,} rows and {group.total_byte_size:,} bytes;"
                            f" the limit is {_GROUP_ROWS:,} rows and {_GROUP_BYTES:,} bytes"
                        )
                    rows = file.read_row_group(number, columns=schema.names).select(schema.names)
                    yield rows.cast(schema).cast(numeric).combine_chunks()
                    advance(sum(group.column(number).total_compressed_size for number in range(group.num_columns)))
        except (arrow.ArrowException, OSError) as error:
            raise SourceError(f"{path}: cannot read the file ({error}), so the rest of it is left out") from None

    def _verify(self, path: Path, name: str) -> None:
        try:
            digest = None if path.is_symlink() else file_digest(path)
        except OSError as error:
            raise SourceError(f"{path}: cannot read the file ({error.strerror or error})") from None
        if digest != self.sums.get(name):
            raise SourceError(
                f"{path}: the file is damaged, because its checksum differs from {SUMS}; it is left out. Copy the archive"
                " again, or export the project again"
            )


def _with_integer_times(arrow: Any, schema: Any) -> Any:
    """Return a schema in which times are int64."""
    fields = [
        arrow.field(field.name, arrow.int64()) if arrow.types.is_timestamp(field.type) else field for field in schema
    ]
    return arrow.schema(fields)
