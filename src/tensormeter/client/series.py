"""Series of points as NumPy arrays and DataFrames."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.connection import Connection
from tensormeter.client.frame import import_pandas

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Series", "SeriesList", "query_series", "read_column"]

_MAX_NAMES: Final = 200
"""Maximum number of runs, and maximum number of metrics, in one request."""

_TYPES: Final = {"f64": "<f8", "i64": "<i8", "u8": "|u1"}


@dataclass(frozen=True, eq=False)
class Series:
    """Points of one metric of one process with one attribute set, sorted by x.

    Attributes:
        run: ID of the run.
        process: ID of the process.
        attempt: Number of the attempt; if the series combines several attempts, the number of the latest one.
        metric: Name of the metric.
        kind: "gauge" or "sum".
        attributes: Attributes of the series.
        scope: Name of the instrumentation scope; "" for tensormeter itself or if there is none.
        unit: UCUM unit; "" if there is none.
        temporality: "delta" or "cumulative" for a sum; "unspecified" if the sender did not specify it; None for a gauge.
        x: Steps, seconds or another metric's values: float64, shape (n,).
        y: Values: float64, shape (n,). Integers outside ±2^53 are rounded; `StoredRun.points` returns them exactly.
        total: Number of points in the range, which is greater than n if the points were sampled.
    """

    run: str
    process: str
    attempt: int
    metric: str
    kind: str
    attributes: Mapping[str, Any]
    x: NDArray[np.float64] = field(repr=False)
    y: NDArray[np.float64] = field(repr=False)
    total: int
    scope: str = field(default="", kw_only=True)
    unit: str = field(default="", kw_only=True)
    temporality: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.x)


class SeriesList(Sequence[Series]):
    """Sequence of non-empty series, sorted by run, metric and process."""

    def __init__(self, series: Sequence[Series], axis: str) -> None:
        """Create a list. `axis` is the x axis of the query; see `StoredRun.series`."""
        self._series = tuple(series)
        self.axis = axis

    def __repr__(self) -> str:
        return f"SeriesList({len(self._series)} series, {sum(map(len, self._series))} points, x={self.axis!r})"

    def __len__(self) -> int:
        return len(self._series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series)

    @overload
    def __getitem__(self, index: int) -> Series: ...

    @overload
    def __getitem__(self, index: slice) -> "SeriesList": ...

    def __getitem__(self, index: int | slice) -> "Series | SeriesList":
        if isinstance(index, slice):
            return SeriesList(self._series[index], self.axis)
        return self._series[index]

    def to_pandas(self) -> "pd.DataFrame":
        """Return a DataFrame with one row per point.

        The columns are `run`, `process`, `metric`, `attributes.NAME` for each attribute, a column named after the x
        axis, and `value`. A column `scope`, `unit`, `kind` or `temporality` is added if series of one metric differ in
        this field. The column for the axis `metric:NAME` is named `NAME`, unless another column has that name. All
        columns except the x axis and `value` are categorical.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = import_pandas()
        lengths = [len(series) for series in self._series]
        texts: dict[str, list[Any]] = {
            "run": [series.run for series in self._series],
            "process": [series.process for series in self._series],
            "metric": [series.metric for series in self._series],
        }
        for name in ("scope", "unit", "kind", "temporality"):
            if len({(series.metric, getattr(series, name)) for series in self._series}) > len(set(texts["metric"])):
                texts[name] = [getattr(series, name) for series in self._series]
        for name in sorted({name for series in self._series for name in series.attributes}):
            values = [series.attributes.get(name) for series in self._series]
            texts[f"attributes.{name}"] = [value if _is_scalar(value) else str(value) for value in values]
        columns: dict[str, Any] = {}
        for name, per_series in texts.items():
            categories = list(dict.fromkeys(value for value in per_series if value is not None))
            code_of = {value: code for code, value in enumerate(categories)}
            codes = [-1 if value is None else code_of[value] for value in per_series]
            columns[name] = pandas.Categorical.from_codes(np.repeat(np.array(codes, np.intp), lengths), categories)
        axis = self.axis.removeprefix("metric:")
        columns[axis if axis not in columns and axis != "value" else self.axis] = _concatenate(
            [series.x for series in self._series]
        )
        columns["value"] = _concatenate([series.y for series in self._series])
        return pandas.DataFrame(columns)


def query_series(
    connection: Connection,
    runs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    *,
    x: str,
    **options: Any,
) -> SeriesList:
    """Read series of several runs and metrics with as few requests as the API allows.

    Args:
        connection: Connection to the server.
        runs: Project and ID of each run.
        metrics: Names of gauges and sums.
        x: X axis; see `StoredRun.series`.
        options: Additional fields of the API query. Fields with the value None are omitted.
    """
    series: list[Series] = []
    fields = {name: value for name, value in options.items() if value is not None}
    for run_names in _slices([f"{project}/{run}" for project, run in runs]):
        for metric_names in _slices(metrics):
            document = {"runs": run_names, "metrics": metric_names, "x": x, **fields}
            header, data = connection.columns("query", document=document)
            for item in header["series"]:
                item["x"], item["y"] = read_column(data, item["x"]), read_column(data, item["y"])
                series.append(Series(**{name: item[name] for name in Series.__dataclass_fields__ if name in item}))
    return SeriesList(series, x)


def read_column(data: memoryview, column: Mapping[str, Any]) -> NDArray[Any]:
    """Copy a column of a binary response to an array of shape (length,) in this machine's byte order."""
    dtype = np.dtype(_TYPES[column["type"]])
    view: NDArray[Any] = np.frombuffer(data, dtype, column["length"], column["offset"])
    return view.astype(dtype.newbyteorder("="))


def _slices(names: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(names), _MAX_NAMES):
        yield list(names[first : first + _MAX_NAMES])


def _concatenate(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
