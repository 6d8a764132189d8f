"""A run as one long table in a file: a row a point, in bounded memory, and the file is there whole or not at all."""

import csv
import importlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol, get_args

import numpy as np

from tensormeter.client.points import BLOCK_POINTS, PointBlock
from tensormeter.client.run import StoredRun
from tensormeter.errors import UsageError

__all__ = ["COLUMNS", "Exported", "Format", "export_points", "export_run"]

Format = Literal["parquet", "csv", "jsonl"]

COLUMNS: Final = ("project", "run", "process", "rank", "attempt", "metric", "attributes", "step", "time", "value")

_MISSING: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@dataclass(frozen=True)
class Exported:
    """What was written: rows, and the names of metrics that are distributions, which such a table has no place for."""

    rows: int
    left_out: tuple[str, ...]


class _Writer(Protocol):
    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        """Append rows that share the columns before `step`."""
        ...

    def close(self) -> None:
        """Write what the format wants at its end."""
        ...


def export_run(
    run: StoredRun,
    target: Path,
    format: Format,
    *,
    choose: Callable[[str], bool] = lambda _: True,
    block: int = BLOCK_POINTS,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the points of a run's gauges and sums, of all attempts, to a file, which appears under its name when all is in it.

    Rows are in order of metric, then of process, then of time (of stretches of time, if a process has several attribute sets).

    Args:
        run: Whose points.
        target: The file; it is replaced.
        format: `csv` and `jsonl` (UTF-8), or `parquet`.
        choose: Which metrics, by name.
        block: Points in memory at once, at most.
        on_rows: Told how many rows there are, now and then.

    Raises:
        UsageError: The format is unknown, or pyarrow is not installed.
        TensormeterError: The server gives no answer, or an error. There is no file then, and an older one is untouched.
        OSError: The file cannot be written; the same.
    """
    with _whole_file(target) as file:
        return export_points(run, file, format, choose=choose, block=block, on_rows=on_rows)


def export_points(
    run: StoredRun,
    file: IO[bytes],
    format: Format,
    *,
    choose: Callable[[str], bool] = lambda _: True,
    block: int = BLOCK_POINTS,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Exported:
    """The same into a binary file that is open."""
    writers: dict[str, Callable[[IO[bytes]], _Writer]] = {"parquet": _Parquet, "csv": _Csv, "jsonl": _JsonLines}
    if format not in writers:
        raise UsageError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    writer = writers[format](file)
    ranks = {process.id: process.rank for process in run.processes()}
    metrics = [metric for metric in run.metrics() if choose(metric.name)]
    # A metric that was both a gauge and a sum is read once.
    stops: dict[str, int] = {}
    for metric in metrics:
        if metric.numeric and metric.last_time is not None:
            stops[metric.name] = max(stops.get(metric.name, 0), metric.last_time + 1)
    rows = 0
    for name, stop in stops.items():
        for points in run.points(name, stop=stop, block=block):
            about = {
                "project": run.project,
                "run": run.id,
                "process": points.process,
                "rank": ranks.get(points.process),
                "attempt": points.attempt,
                "metric": name,
                "attributes": _json(points.attributes),
            }
            writer.write(about, points)
            rows += len(points)
            on_rows(rows)
    writer.close()
    return Exported(rows, tuple(sorted({metric.name for metric in metrics if not metric.numeric})))


class _Csv:
    """RFC 4180 with a header. No step: empty. NaN and infinities: `NaN`, `Infinity`, `-Infinity`. Attributes: JSON."""

    def __init__(self, file: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        self._rows.writerow(COLUMNS)

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        first = list(about.values())
        columns = zip(_steps(block, ""), block.time.tolist(), _values(block, str), strict=True)
        self._rows.writerows([*first, *rest] for rest in columns)

    def close(self) -> None:
        self._text.flush()
        self._text.detach()


class _JsonLines:
    """An object a line, valid JSON: NaN and infinities are texts. No step: null."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        attributes = about["attributes"]
        head = _json({key: value for key, value in about.items() if key != "attributes"})[:-1]
        head += f',"attributes":{attributes}'
        columns = zip(_steps(block, "null"), block.time.tolist(), _values(block, '"{}"'.format), strict=True)
        lines = (f'{head},"step":{step},"time":{time},"value":{value}}}\n' for step, time, value in columns)
        self._file.write("".join(lines).encode())

    def close(self) -> None:
        pass


class _Parquet:
    """A row group a block, zstd. `integer` has the exact value where an integer was logged, else null."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            self._arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "pyarrow":
                raise
            raise UsageError("parquet needs pyarrow; pip install 'tensormeter[parquet]', or --format csv") from None
        arrow = self._arrow
        text = arrow.dictionary(arrow.int32(), arrow.string())
        types = {"rank": arrow.int64(), "attempt": arrow.int64(), "step": arrow.int64(), "value": arrow.float64()}
        types["time"] = arrow.timestamp("ns", "UTC")
        fields = [(name, types.get(name, text)) for name in COLUMNS]
        self._schema = arrow.schema([*fields, ("integer", arrow.int64())])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, about: Mapping[str, Any], block: PointBlock) -> None:
        arrow, n = self._arrow, len(block)
        columns = []
        for name in about:
            if name in ("rank", "attempt"):
                number = about[name] if isinstance(about[name], int) else None
                columns.append(arrow.array([number], arrow.int64()).take(arrow.array(np.zeros(n, np.int64))))
            else:
                codes = arrow.array(np.zeros(n, np.int32))
                columns.append(arrow.DictionaryArray.from_arrays(codes, arrow.array([about[name]], arrow.string())))
        columns.append(arrow.array(block.step, mask=~block.stepped))
        columns.append(arrow.array(block.time).cast(arrow.timestamp("ns", "UTC")))
        columns.append(arrow.array(block.value, from_pandas=False))  # NaN is a value, not a gap
        columns.append(arrow.array(block.integer, mask=~block.is_integer))
        self._writer.write_batch(arrow.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _steps(block: PointBlock, missing: str) -> Iterator[int | str]:
    if block.stepped.all():
        return iter(block.step.tolist())
    pairs = zip(block.step.tolist(), block.stepped.tolist(), strict=True)
    return (step if stepped else missing for step, stepped in pairs)


def _values(block: PointBlock, quote: Callable[[str], str]) -> list[Any]:
    """Floats in the shortest form that is read back the same, integers exactly, NaN and infinities as texts."""
    values: list[Any] = block.value.tolist()
    for index in np.flatnonzero(block.is_integer).tolist():
        values[index] = int(block.integer[index])
    for index in np.flatnonzero(~np.isfinite(block.value)).tolist():
        values[index] = quote(_MISSING[repr(values[index])])
    return values


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=False)


@contextmanager
def _whole_file(target: Path) -> Iterator[IO[bytes]]:
    """A file beside the target, which takes its place at the end; if anything fails, it is removed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # as any new file; a temporary one is private
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
