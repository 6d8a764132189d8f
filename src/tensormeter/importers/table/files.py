"""Readers of tables: CSV, Parquet and JSON lines, in blocks of rows."""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.nesting import flatten
from tensormeter.errors import EncodingError
from tensormeter.importers.bounded_parsing import parse_json
from tensormeter.importers.registry import SourceError
from tensormeter.importers.table.cells import Cells
from tensormeter.importers.tally import Tally

__all__ = ["SUFFIXES", "Block", "column_names", "read_blocks"]

Block = Mapping[str, Cells]
"""Cells of each column in a block of rows."""

SUFFIXES: Final = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")

_MOST_CELLS: Final = 50_000
_MOST_ROWS: Final = 1000
_MOST_COLUMNS: Final = 100_000
_LONGEST_CELL: Final = 1 << 24
_LONGEST_LINE: Final = 64 << 20


def column_names(path: Path) -> list[str]:
    """Return the names of a table's columns. For JSON lines, these are the keys of the first rows. Blocks on the disk.

    Raises:
        SourceError: The file cannot be read as a table.
        OSError: The file cannot be read.
    """
    if path.suffix == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    if path.suffix in (".jsonl", ".ndjson"):
        names: dict[str, None] = {}
        for rows in itertools.islice(_json_rows(path, Tally(), lambda size: None), 100):
            names.update(dict.fromkeys(rows))
        return list(names)
    with path.open("r", encoding=_encoding(path), errors="replace", newline="") as file:
        try:
            return next(_csv_rows(file, path), [])
        except csv.Error as error:
            raise SourceError(f"{path}: not a CSV table ({error})") from None


def read_blocks(path: Path, tally: Tally, advance: Callable[[int], None]) -> Iterator[Block]:
    """Yield a table in blocks of about 50,000 cells. Rows that cannot be read are counted and skipped.

    Raises:
        SourceError: The file cannot be read as a table, or only in part.
        OSError: The file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_blocks(path, advance)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _json_blocks(path, tally, advance)
    else:
        yield from _csv_blocks(path, tally, advance)


def _encoding(path: Path) -> str:
    """Return the encoding of a text: UTF-16 if it has a byte order mark for it, as Excel's Unicode texts have, or else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _csv_rows(file: Any, path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL)
    if path.suffix == ".tsv":
        return csv.reader(_lines(file), delimiter="\t")
    start = file.readline(_LONGEST_CELL)
    file.seek(0)
    delimiter = max(",;\t", key=start.count)
    return csv.reader(_lines(file), delimiter=delimiter)


def _lines(file: Any) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        if len(line) >= _LONGEST_LINE:
            raise csv.Error(f"a line is longer than {_LONGEST_LINE >> 20} MiB")
        yield line


def _csv_blocks(path: Path, tally: Tally, advance: Callable[[int], None]) -> Iterator[Block]:
    with path.open("rb") as raw, io.TextIOWrapper(raw, _encoding(path), "replace", newline="") as file:
        position = 0
        try:
            rows = _csv_rows(file, path)
            names = next(rows, [])
            if len(names) > _MOST_COLUMNS:
                raise csv.Error(f"more than {_MOST_COLUMNS:,} columns")
            tally.leave_out("columns with the name of another one", len(names) - len(set(names)))
            count = max(1, _MOST_CELLS // max(1, len(names)))
            fault: csv.Error | None = None
            while fault is None:
                block, fault = _take(rows, count)
                if not block:
                    break
                whole = [row for row in block if len(row) == len(names)]
                tally.leave_out(
                    "rows with another number of cells than the header", sum(1 for row in block if row) - len(whole)
                )
                reached = raw.tell()
                advance(reached - position)
                position = reached
                if whole:
                    yield dict(zip(names, zip(*whole, strict=True), strict=True))
            if fault is not None:
                raise fault
        except csv.Error as error:
            raise SourceError(f"{path}: the rest is not CSV ({error}); imported everything before it") from None


def _take(rows: Iterator[list[str]], count: int) -> tuple[list[list[str]], csv.Error | None]:
    """Return the next rows, and the error that follows them, or None."""
    block: list[list[str]] = []
    try:
        block.extend(itertools.islice(rows, count))
    except csv.Error as error:
        return block, error
    return block, None


def _json_rows(path: Path, tally: Tally, advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            advance(len(line))
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except EncodingError:
                row = None
            if not isinstance(row, Mapping):
                tally.leave_out("lines that are not JSON objects")
            elif row:
                yield flatten({str(key): value for key, value in row.items() if key != "attributes"}) | (
                    {"attributes": json.dumps(row["attributes"])} if "attributes" in row else {}
                )


def _json_blocks(path: Path, tally: Tally, advance: Callable[[int], None]) -> Iterator[Block]:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for row in itertools.chain(_json_rows(path, tally, advance), (None,)):
        if row is not None:
            rows.append(row)
            names |= dict.fromkeys(row)
        if rows and (row is None or len(rows) >= _MOST_ROWS or len(rows) * len(names) >= _MOST_CELLS):
            tally.leave_out(f"columns beyond the limit of {_MOST_COLUMNS:,}", len(names) - _MOST_COLUMNS)
            yield {name: [row.get(name) for row in rows] for name in itertools.islice(names, _MOST_COLUMNS)}
            rows, names = [], {}


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise SourceError(f"{path}: Parquet needs pyarrow; run pip install 'tensormeter[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file ({str(error)[:200]})") from None


def _parquet_blocks(path: Path, advance: Callable[[int], None]) -> Iterator[Block]:
    import pyarrow as pa

    file = _parquet(path)
    names: Sequence[str] = file.schema_arrow.names
    total, size = max(1, file.metadata.num_rows), path.stat().st_size
    try:
        for batch in file.iter_batches(batch_size=max(1, _MOST_CELLS // max(1, len(names)))):
            advance(size * batch.num_rows // total)
            yield dict(zip(names, batch.columns, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: the rest is damaged ({str(error)[:200]}); imported everything before it") from None
