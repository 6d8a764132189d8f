"""Series of points as NumPy arrays, and as a pandas frame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.connection import Connection
from tensormeter.client.frame import import_pandas

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Series", "SeriesList", "query_series", "take"]

_MAX_NAMES: Final = 200
"""Runs, and metrics, that one request may name."""

_TYPES: Final = {"f64": "<f8", "i64": "<i8", "u8": "|u1"}


@dataclass(frozen=True, eq=False)
class Series:
    """Points of one metric of one process with one attribute set, by ascending x.

    Attributes:
        run: Id of the run.
        process: Id of the process.
        attempt: Which attempt at the run it belongs to; the latest, where it is a line made of several.
        metric: Name.
        kind: "gauge" or "sum".
        attributes: Of the metric.
        scope: Name of the instrumentation scope that recorded it; "" for tensormeter itself, and if it has none.
        unit: UCUM unit, or "".
        temporality: "delta" or "cumulative" for a sum, if that was said; else None.
        x: float64, shape (n,): steps, seconds, or another metric's values.
        y: float64, shape (n,). Integers outside ±2^53 are rounded; `StoredRun.points` has them exactly.
        total: How many points there are in the range; more than n if they were sampled.
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
    """What was read, one entry a series that has points, in order of run, metric and process."""

    def __init__(self, series: Sequence[Series], axis: str) -> None:
        """Hold `series`; `axis` is what x is."""
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
        """One row a point: `run`, `process`, `metric`, `attributes.NAME` for each attribute, x under its name, `value`.

        Where series of one metric differ in it, there are also `scope`, `unit`, `kind` and `temporality`.
        `metric:NAME` stands under `NAME`, unless a column has that name already. Texts are categorical.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = import_pandas()
        lengths = [len(one) for one in self._series]
        texts: dict[str, list[Any]] = {
            "run": [one.run for one in self._series],
            "process": [one.process for one in self._series],
            "metric": [one.metric for one in self._series],
        }
        for name in ("scope", "unit", "kind", "temporality"):
            if len({(one.metric, getattr(one, name)) for one in self._series}) > len(set(texts["metric"])):
                texts[name] = [getattr(one, name) for one in self._series]
        for name in sorted({name for one in self._series for name in one.attributes}):
            values = [one.attributes.get(name) for one in self._series]
            texts[f"attributes.{name}"] = [value if _is_scalar(value) else str(value) for value in values]
        columns: dict[str, Any] = {}
        for name, per_series in texts.items():
            known = list(dict.fromkeys(value for value in per_series if value is not None))
            number = {value: position for position, value in enumerate(known)}
            codes = [-1 if value is None else number[value] for value in per_series]
            columns[name] = pandas.Categorical.from_codes(np.repeat(np.array(codes, np.intp), lengths), known)
        axis = self.axis.removeprefix("metric:")
        columns[axis if axis not in columns and axis != "value" else self.axis] = _joined(
            [one.x for one in self._series]
        )
        columns["value"] = _joined([one.y for one in self._series])
        return pandas.DataFrame(columns)


def query_series(
    connection: Connection,
    runs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    *,
    x: str,
    **options: Any,
) -> SeriesList:
    """Series of several runs and metrics, in as few requests as the API allows.

    Args:
        runs: (project, id).
        options: Further fields of the API's query; those that are None are left out.
    """
    found: list[Series] = []
    given = {name: value for name, value in options.items() if value is not None}
    for run_names in _slices([f"{project}/{run}" for project, run in runs]):
        for metric_names in _slices(metrics):
            document = {"runs": run_names, "metrics": metric_names, "x": x, **given}
            header, data = connection.columns("query", document=document)
            for one in header["series"]:
                one["x"], one["y"] = take(data, one["x"]), take(data, one["y"])
                found.append(Series(**{name: one[name] for name in Series.__dataclass_fields__ if name in one}))
    return SeriesList(found, x)


def take(data: memoryview, where: Mapping[str, Any]) -> NDArray[Any]:
    """An array of a binary answer: a copy in this machine's byte order, shape (length,)."""
    dtype = np.dtype(_TYPES[where["type"]])
    view: NDArray[Any] = np.frombuffer(data, dtype, where["length"], where["offset"])
    return view.astype(dtype.newbyteorder("="))


def _slices(names: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(names), _MAX_NAMES):
        yield list(names[first : first + _MAX_NAMES])


def _joined(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
