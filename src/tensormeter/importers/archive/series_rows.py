"""Stretches of consecutive rows of the same series in a row group of `points` or `distributions`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.archive.arrow import load_arrow
from tensormeter.importers.archive.json_columns import parse_object, parse_value
from tensormeter.importers.registry import SourceError
from tensormeter.otlp.batch import SCOPE, Scope, Temporality

__all__ = ["SeriesKey", "Stretch", "Variant", "int64_column", "stretches_of"]

_KEY: Final = ("process", "metric", "attributes", "scope", "unit", "kind", "temporality", "monotonic")

_TEMPORALITIES: Final = {
    "delta": Temporality.DELTA,
    "cumulative": Temporality.CUMULATIVE,
    "unspecified": Temporality.UNSPECIFIED,
}


Variant = tuple[str, str, str | None, bool | None, str]
"""Name, kind, temporality, monotonicity and unit of a metric."""


class SeriesKey(NamedTuple):
    """Identity of a series, as in the columns."""

    process: str
    metric: str
    attributes: str
    scope: str
    unit: str
    kind: str
    temporality: str | None
    monotonic: bool | None

    @property
    def variant(self) -> Variant:
        """Key of the metric's row in `metrics`."""
        return self.metric, self.kind, self.temporality, self.monotonic, self.unit

    def fields(self, description: str) -> dict[str, Any]:
        """Return the arguments of `Series` that all kinds have. Raises SourceError."""
        return {
            "unit": self.unit,
            "description": description,
            "attributes": parse_object(self.attributes),
            "scope": _scope(self.scope),
        }

    def period(self) -> Temporality:
        """Return the temporality."""
        return _TEMPORALITIES.get(self.temporality or "", Temporality.UNSPECIFIED)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive rows of one series.

    Attributes:
        key: Identity of the series.
        rows: Position of the rows in the row group.
        time: Times in nanoseconds since the Unix epoch: int64, shape (n,).
        step: Steps, with 0 for a missing step: int64, shape (n,).
        stepped: Whether each row has a step: bool, shape (n,).
    """

    key: SeriesKey
    rows: slice
    time: NDArray[np.int64] = field(repr=False)
    step: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)


def stretches_of(table: Any) -> Iterator[Stretch]:
    """Yield the stretches of a row group. Raises SourceError if a column contains null where there must be a value."""
    if not len(table):
        return
    columns = [_codes(table.column(name)) for name in _KEY]
    for name, (codes, _) in zip(_KEY[:6], columns, strict=False):
        if (codes < 0).any():
            raise SourceError(f"the column {name} is null in some rows")
    changes: NDArray[np.bool_] = np.zeros(len(table) - 1, np.bool_)
    for codes, _ in columns:
        changes |= codes[1:] != codes[:-1]
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(table)]
    time, timed = int64_column(table, "time")
    if not timed.all():
        raise SourceError("the column time is null in some rows")
    step, stepped = int64_column(table, "step")
    for first, last in pairwise(edges):
        part = slice(first, last)
        values = (None if codes[first] < 0 else names[codes[first]] for codes, names in columns)
        yield Stretch(SeriesKey(*values), part, time[part], step[part], stepped[part])  # type: ignore[arg-type]


def int64_column(table: Any, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a column of integers or times as int64, with 0 for null, and whether each value is not null."""
    column = _chunk(table.column(name))
    known = ~np.asarray(column.is_null()) if column.null_count else np.ones(len(column), np.bool_)
    return np.asarray(column.fill_null(0) if column.null_count else column, np.int64), known


def _codes(column: Any) -> tuple[NDArray[np.int32], Sequence[Any]]:
    """Return a number for each row, -1 for null, and the values by number."""
    arrow = load_arrow()
    chunk = _chunk(column)
    if not arrow.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_encode()
    return np.asarray(chunk.indices.fill_null(-1), np.int32), chunk.dictionary.to_pylist()


def _chunk(column: Any) -> Any:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _scope(text: str) -> Scope:
    if not text:
        return SCOPE
    if text.startswith("["):  # a scope with attributes
        try:
            name, attributes = parse_value(text)
        except (SourceError, TypeError, ValueError):
            return Scope(text)
        if isinstance(name, str) and isinstance(attributes, dict):
            return Scope(name, attributes=attributes)
    return Scope(text)
