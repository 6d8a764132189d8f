"""Files that neptune-exporter has written: their layout, and their columns.

The schema is that of `neptune_exporter/model.py`: a row is the value of an attribute, or a value of a series. Each project
has a folder with Parquet files `RUN_part_N.parquet`, and a folder with the same name for downloaded files.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.registry import SourceError

__all__ = ["MONITORING", "PARAMETER_TYPES", "RunExport", "find_runs", "micro_steps", "milliseconds", "step_multiplier"]

MONITORING: Final = "monitoring/"
"""Start of the paths of what Neptune's client has measured, such as the load of the processor."""

PARAMETER_TYPES: Final = ("float", "int", "string", "bool", "datetime", "string_set")
"""Types of attributes with a single value. Types of series are named after them."""

_FIRST_PART: Final = "_part_0.parquet"
_PART: Final = re.compile(r"_part_(\d{1,6})\.parquet")
_TYPES: Final = {
    "project_id": "string",
    "run_id": "string",
    "attribute_path": "string",
    "attribute_type": "string",
    "step": "decimal128(18, 6)",
    "timestamp": "timestamp[ms, tz=UTC]",
    "float_value": "double",
}
"""Arrow types of the columns that are read as arrays."""

_ROWS: Final = 50_000
_MICRO: Final = 1_000_000


@dataclass(frozen=True)
class RunExport:
    """The files of one run.

    Attributes:
        parts: Parquet files, in their order.
        files: Folder of the project's downloaded files, which may not exist.
    """

    parts: Sequence[Path]
    files: Path

    def batches(self, columns: Sequence[str], on_fault: Callable[[str], None]) -> Iterator[Any]:
        """Yield Arrow record batches of at most 50,000 rows.

        Args:
            columns: Names of the columns.
            on_fault: Function that is called with a description of each file that cannot be read any further.
        """
        parquet = _parquet()
        for part in self.parts:
            try:
                file = parquet.ParquetFile(part)
                present = _check_types(file.schema_arrow)
                yield from file.iter_batches(_ROWS, columns=[name for name in columns if name in present])
            except Exception as error:  # pyarrow raises many types for damaged files
                on_fault(f"{part}: cannot read it, so its rows are missing: {error}")


def find_runs(path: Path) -> list[RunExport]:
    """Return the runs below a folder: that of an export, its folder of Parquet files, or the folder of one project.

    Raises:
        SourceError: The package pyarrow is not installed.
    """
    for data in (path, path / "data"):
        projects = [folder for folder in sorted(data.iterdir()) if folder.is_dir()] if data.is_dir() else []
        runs = [run for project in projects for run in _runs_of(project, data.parent / "files")]
        if runs:
            return runs
    return _runs_of(path, path.parent.parent / "files")


def step_multiplier(runs: Sequence[RunExport]) -> int:
    """Return the smallest power of ten, up to one million, that makes all steps of series integers.

    Steps of Neptune are decimal numbers with six digits after the point. Damaged files are ignored.
    """
    unit = _MICRO
    for run in runs:
        for batch in run.batches(["attribute_path", "step"], lambda fault: None):
            steps, is_present = micro_steps(batch.column("step"))
            chosen = steps[is_present & ~_is_measured(batch.column("attribute_path"))]
            while unit > 1 and (chosen % unit).any():
                unit //= 10
    return _MICRO // unit


def micro_steps(column: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return millionths of the steps in an Arrow column of decimals, and whether each row has a step."""
    first, rows = column.offset, len(column)
    words = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)  # 18 digits fit into the lower of two words
    present: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return np.where(present, words[first : first + rows, 0], 0), present


def milliseconds(column: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return an Arrow column of times in milliseconds since the Unix epoch, and whether each row has a time."""
    import pyarrow as pa

    present: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), present


def _check_types(schema: Any) -> set[str]:
    """Return the names of the columns in an Arrow schema.

    Raises:
        ValueError: A column has another type than neptune-exporter gives it.
    """
    for name, expected in _TYPES.items():
        found = str(schema.field(name).type) if name in schema.names else "no column"
        if found != expected:
            raise ValueError(f"the column {name} has the type {found}, but neptune-exporter writes {expected}")
    return set(schema.names)


def _is_measured(paths: Any) -> NDArray[np.bool_]:
    """Return whether each path in an Arrow column is that of a measurement of Neptune's client, whose step is a counter."""
    import pyarrow.compute as pc

    measured: NDArray[np.bool_] = (
        pc.starts_with(paths, MONITORING).fill_null(fill_value=False).to_numpy(zero_copy_only=False)
    )
    return measured


def _runs_of(project: Path, files: Path) -> list[RunExport]:
    runs: list[RunExport] = []
    for first in sorted(project.glob(f"*{_FIRST_PART}")) if project.is_dir() else ():
        prefix = first.name.removesuffix(_FIRST_PART)
        numbered = [
            (int(match[1]), path)
            for path in project.glob(f"{_escape(prefix)}_part_*.parquet")
            if (match := _PART.fullmatch(path.name.removeprefix(prefix))) is not None
        ]
        if not runs and not _is_of_exporter(first):
            return []
        runs.append(RunExport([path for _, path in sorted(numbered)], files / project.name))
    return runs


def _is_of_exporter(path: Path) -> bool:
    try:
        return set(_parquet().read_schema(path).names) >= set(_TYPES)
    except SourceError:
        raise
    except Exception:  # pyarrow raises many types for damaged files
        return False


def _escape(text: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", text)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise SourceError(
            "reading Parquet files needs the package pyarrow; run pip install 'tensormeter[parquet]'"
        ) from None
    return pyarrow.parquet
