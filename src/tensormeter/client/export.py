"""Export of a run to a file as a table with one row per point or distribution, in bounded memory."""

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol, get_args

import numpy as np

from tensormeter.client.distributions import BLOCK_DISTRIBUTIONS, DistributionBlock
from tensormeter.client.points import BLOCK_POINTS, PointBlock
from tensormeter.client.run import StoredRun
from tensormeter.client.run_parts import Metric
from tensormeter.disk.atomic import replacing
from tensormeter.errors import UsageError, join_choices

__all__ = ["COLUMNS", "DISTRIBUTION_COLUMNS", "VARIANT_COLUMNS", "Format", "export_points", "export_run"]

Format = Literal["parquet", "csv", "jsonl"]

COLUMNS: Final = ("project", "run", "process", "rank", "attempt", "metric", "attributes", "step", "time", "value")

VARIANT_COLUMNS: Final = ("scope", "unit", "kind", "temporality")
"""Columns that follow `metric` if metrics with the same name differ in one of these fields."""

DISTRIBUTION_COLUMNS: Final = ("kind", "temporality", "count", "sum", "min", "max", "bounds", "counts", "quantiles")
"""Columns of distributions. They are empty in rows with numbers, and `value` is empty in rows with distributions."""

_ROW_GROUP: Final = 8 << 20
"""Size in bytes from which waiting blocks are written to Parquet as a row group.

The metadata of a row group takes about 2 kB of the file, and more of the memory of its writer and readers.
"""

_ROW_GROUP_BLOCKS: Final = 1024
"""Maximum number of blocks in a row group. Each block takes a few kilobytes of memory while it waits."""

_FORMULA: Final = re.compile(r"[=+\-@\t\r]")

_MISSING: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class _Writer(Protocol):
    """Writer of a table's rows in one format."""

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        """Append one row per point. `about` contains the values of the columns before `step`."""
        ...

    def write_distributions(self, about: Mapping[str, Any], block: DistributionBlock) -> None:
        """Append one row per distribution. `about` contains the values of the columns before `step`."""
        ...

    def close(self) -> None:
        """Write the end of the file."""
        ...


def export_run(
    run: StoredRun,
    target: Path,
    format: Format,
    *,
    choose: Callable[[str], bool] = lambda _: True,
    block: int | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the points and distributions of all attempts of a run to a file, which appears only once it is complete.

    Points are written before distributions. The rows are sorted by metric, process and time. If a metric has several
    attribute sets in one process, blocks of rows of these sets alternate.

    Args:
        run: Run to export.
        target: Path of the file. An existing file is replaced.
        format: `csv` or `jsonl` (both UTF-8), or `parquet`.
        choose: Function that receives the name of a metric, and returns whether to export it. Default: all metrics.
        block: Maximum number of points or distributions in memory. Default: 500,000 points and 2,048 distributions.
        on_rows: Function that is called after each block with the number of rows written so far.

    Returns:
        Number of rows written.

    Raises:
        UsageError: The format is unknown, or pyarrow is not installed.
        TensormeterError: The server does not respond or returns an error. An existing file remains unchanged.
        OSError: The file cannot be written. An existing file remains unchanged.
    """
    with replacing(target) as file:
        return export_points(run, file, format, choose=choose, block=block, on_rows=on_rows)


def export_points(
    run: StoredRun,
    file: IO[bytes],
    format: Format,
    *,
    choose: Callable[[str], bool] = lambda _: True,
    block: int | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the points and distributions of a run to an open binary file. See `export_run` for the arguments."""
    writers: dict[str, Callable[[IO[bytes], _Header], _Writer]] = {
        "parquet": _Parquet,
        "csv": _Csv,
        "jsonl": _JsonLines,
    }
    if format not in writers:
        raise UsageError(f"format: expected {join_choices(*get_args(Format))}; got {format!r}")
    metrics = [metric for metric in run.metrics() if choose(metric.name) and metric.last_time is not None]
    header = _Header.of(metrics)
    writer = writers[format](file, header)
    ranks = {process.id: process.rank for process in run.processes()}

    def about(block: PointBlock | DistributionBlock) -> dict[str, Any]:
        return {
            "project": run.project,
            "run": run.id,
            "process": block.process,
            "rank": ranks.get(block.process),
            "attempt": block.attempt,
            "metric": block.metric,
            **{name: getattr(block, name) for name in header.variants},
            "attributes": _json(block.attributes),
        }

    rows = 0
    for points in run.points_of((metric for metric in metrics if metric.numeric), block=block or BLOCK_POINTS):
        writer.write(about(points), points)
        rows += len(points)
        on_rows(rows)
    for name, stop in _stops(metric for metric in metrics if not metric.numeric).items():
        for distributions in run.distributions(name, stop=stop, block=block or BLOCK_DISTRIBUTIONS):
            writer.write_distributions(about(distributions), distributions)
            rows += len(distributions)
            on_rows(rows)
    writer.close()
    return rows


def _stops(metrics: Iterable[Metric]) -> dict[str, int]:
    """Return the exclusive end of the time range of each metric name."""
    stops: dict[str, int] = {}
    for metric in metrics:
        stops[metric.name] = max(stops.get(metric.name, 0), (metric.last_time or 0) + 1)
    return stops


@dataclass(frozen=True)
class _Header:
    """Columns of a table.

    Attributes:
        variants: `VARIANT_COLUMNS` if the table needs them; otherwise empty.
        distributions: `DISTRIBUTION_COLUMNS` except those in `variants`; empty if there are no distributions.
    """

    variants: tuple[str, ...]
    distributions: tuple[str, ...]

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> "_Header":
        """Return the columns that the metrics need."""
        identities = {(m.name, scope, m.unit, m.kind, m.temporality) for m in metrics for scope in m.scopes}
        variants = VARIANT_COLUMNS if len(identities) > len({metric.name for metric in metrics}) else ()
        columns = DISTRIBUTION_COLUMNS if any(not metric.numeric for metric in metrics) else ()
        return cls(variants, tuple(name for name in columns if name not in variants))

    @property
    def common(self) -> tuple[str, ...]:
        """Columns that all rows have."""
        end = COLUMNS.index("metric") + 1
        return COLUMNS[:end] + self.variants + COLUMNS[end:]


class _Csv:
    """Writer of CSV (RFC 4180) with a header.

    Missing steps, numbers and temporalities are empty cells. NaN and infinities are written as `NaN`, `Infinity` and
    `-Infinity`. Attributes, bounds, counts and quantiles are written as JSON. Text that a spreadsheet would evaluate as
    a formula gets the prefix `'`.
    """

    def __init__(self, file: IO[bytes], header: _Header) -> None:
        self._header = header
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        self._rows.writerow(header.common + header.distributions)
        self._empty = ("",) * len(header.distributions)

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        first = _cells(about)
        columns = zip(_steps(block, ""), block.time.tolist(), _values(block, str), strict=True)
        self._rows.writerows([*first, *cells, *self._empty] for cells in columns)

    def write_distributions(self, about: Mapping[str, Any], block: DistributionBlock) -> None:
        first = _cells(about)
        for step, time, document in zip(_steps(block, ""), block.time.tolist(), _documents(block), strict=True):
            values = (document[name] for name in self._header.distributions)
            cells = [_json(value) if isinstance(value, list) else value for value in values]
            self._rows.writerow([*first, step, time, "", *cells])

    def close(self) -> None:
        self._text.flush()
        self._text.detach()


class _JsonLines:
    """Writer of JSON Lines, with one object per row.

    NaN and infinities are strings. A missing step or number is null. Points have a `value`; distributions have the
    distribution columns instead.
    """

    def __init__(self, file: IO[bytes], header: _Header) -> None:
        self._file = file
        self._header = header

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        head = _head(about)
        columns = zip(_steps(block, "null"), block.time.tolist(), _values(block, '"{}"'.format), strict=True)
        lines = (f'{head},"step":{step},"time":{time},"value":{value}}}\n' for step, time, value in columns)
        self._file.write("".join(lines).encode())

    def write_distributions(self, about: Mapping[str, Any], block: DistributionBlock) -> None:
        head = _head(about)
        for step, time, document in zip(_steps(block, "null"), block.time.tolist(), _documents(block), strict=True):
            cells = {name: document[name] for name in self._header.distributions}
            self._file.write(f'{head},"step":{step},"time":{time},{_json(cells)[1:]}\n'.encode())

    def close(self) -> None:
        pass


class _Parquet:
    """Writer of Parquet with zstd compression. Small blocks share a row group.

    The column `integer` contains the exact value of a logged integer, and null for other values. Bounds and counts are
    lists of numbers. Quantiles are lists of structs.
    """

    def __init__(self, file: IO[bytes], header: _Header) -> None:
        try:
            self._arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "pyarrow":
                raise
            raise UsageError(
                "parquet needs pyarrow; run pip install 'tensormeter[parquet]', or choose the format csv"
            ) from None
        arrow = self._arrow
        text = arrow.dictionary(arrow.int32(), arrow.string())
        types = {"rank": arrow.int64(), "attempt": arrow.int64(), "step": arrow.int64(), "integer": arrow.int64()}
        types["time"] = arrow.timestamp("ns", "UTC")
        quantile = arrow.struct([("quantile", arrow.float64()), ("value", arrow.float64())])
        types |= {"count": arrow.uint64(), "counts": arrow.list_(arrow.uint64())}
        types |= {"bounds": arrow.list_(arrow.float64()), "quantiles": arrow.list_(quantile)}
        types |= dict.fromkeys(("value", "sum", "min", "max"), arrow.float64())
        names = (*header.common, "integer", *header.distributions)
        self._schema = arrow.schema([(name, types.get(name, text)) for name in names])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[Any] = []
        self._waiting_bytes = 0

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        arrow = self._arrow
        columns = {
            "value": arrow.array(block.value, from_pandas=False),  # NaN is a value, not a gap
            "integer": arrow.array(block.integer, mask=~block.is_integer),
        }
        self._write(about, block, columns)

    def write_distributions(self, about: Mapping[str, Any], block: DistributionBlock) -> None:
        arrow = self._arrow
        pairs = [[{"quantile": q, "value": value} for q, value in quantiles] for quantiles in block.quantiles]
        columns = {
            "count": arrow.array(block.count),
            **{name: arrow.array(getattr(block, name), from_pandas=True) for name in ("sum", "min", "max")},
            "bounds": arrow.array(block.bounds, self._schema.field("bounds").type),
            "counts": arrow.array(block.counts, self._schema.field("counts").type),
            "quantiles": arrow.array(pairs, self._schema.field("quantiles").type),
        }
        variant = {"kind": block.kind, "temporality": block.temporality}
        self._write({**about, **variant}, block, columns)

    def _write(
        self, about: Mapping[str, Any], block: PointBlock | DistributionBlock, columns: Mapping[str, Any]
    ) -> None:
        """Append a block of rows, which all have the values `about`. Columns without values are null."""
        arrow, n = self._arrow, len(block)
        arrays = dict(columns)
        arrays["step"] = arrow.array(block.step, mask=~block.stepped)
        arrays["time"] = arrow.array(block.time).cast(arrow.timestamp("ns", "UTC"))
        for name, value in about.items():
            if name in ("rank", "attempt"):
                number = value if isinstance(value, int) else None
                arrays[name] = arrow.array([number], arrow.int64()).take(arrow.array(np.zeros(n, np.int64)))
            elif value is not None:
                codes = arrow.array(np.zeros(n, np.int32))
                arrays[name] = arrow.DictionaryArray.from_arrays(codes, arrow.array([value], arrow.string()))
        ordered = [
            arrays[column.name] if column.name in arrays else arrow.nulls(n, column.type) for column in self._schema
        ]
        batch = arrow.record_batch(ordered, schema=self._schema)
        if batch.nbytes >= _ROW_GROUP:
            self._write_waiting()  # instead of copying a large block to join it
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= _ROW_GROUP or len(self._waiting) == _ROW_GROUP_BLOCKS:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Write the waiting blocks as one row group."""
        if self._waiting:
            table = self._arrow.Table.from_batches(self._waiting).unify_dictionaries().combine_chunks()
            self._waiting, self._waiting_bytes = [], 0
            self._writer.write_table(table, row_group_size=len(table))

    def close(self) -> None:
        self._write_waiting()
        self._writer.close()


def _cells(about: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a CSV row that precede `step`."""
    return ["" if value is None else _no_formula(value) for value in about.values()]


def _no_formula(cell: Any) -> Any:
    """Add the prefix `'` to text that a spreadsheet would evaluate as a formula. Senders can choose any name."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _head(about: Mapping[str, Any]) -> str:
    """Return the beginning of a JSON line, up to the attributes. `about` contains the attributes as JSON text."""
    first = _json({key: value for key, value in about.items() if key != "attributes"})[:-1]
    return f'{first},"attributes":{about["attributes"]}'


def _documents(block: DistributionBlock) -> Iterator[dict[str, Any]]:
    """Iterate over distributions as mappings from the names in `DISTRIBUTION_COLUMNS` to JSON values."""
    for index, count in enumerate(block.count.tolist()):
        yield {
            "kind": block.kind,
            "temporality": block.temporality,
            "count": count,
            **{name: _number(float(getattr(block, name)[index])) for name in ("sum", "min", "max")},
            "bounds": [_finite(bound) for bound in block.bounds[index].tolist()],
            "counts": block.counts[index].tolist(),
            "quantiles": [[_finite(part) for part in pair] for pair in block.quantiles[index]],
        }


def _number(value: float) -> float | str | None:
    return None if math.isnan(value) else _finite(value)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else _MISSING[repr(value)]


def _steps(block: PointBlock | DistributionBlock, missing: str) -> Iterator[int | str]:
    if block.stepped.all():
        return iter(block.step.tolist())
    pairs = zip(block.step.tolist(), block.stepped.tolist(), strict=True)
    return (step if stepped else missing for step, stepped in pairs)


def _values(block: PointBlock, quote: Callable[[str], str]) -> list[Any]:
    """Return the values for text formats: exact integers and floats. `quote` converts the names of NaN and infinities."""
    values: list[Any] = block.value.tolist()
    for index in np.flatnonzero(block.is_integer).tolist():
        values[index] = int(block.integer[index])
    for index in np.flatnonzero(~np.isfinite(block.value)).tolist():
        values[index] = quote(_MISSING[repr(values[index])])
    return values


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=False)
