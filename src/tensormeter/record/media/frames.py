"""Columns and rows of data frames: pandas, polars, Arrow, and mappings of columns."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tensormeter.record.values.outcomes import Refused

__all__ = ["Frame", "as_frame", "is_frame"]


class Frame(NamedTuple):
    """A data frame.

    Attributes:
        columns: Names of the columns.
        length: Number of rows.
        column: Function that returns the first cells of a column, given its position and the number of rows to read.
    """

    columns: Sequence[Any]
    length: int
    column: Callable[[int, int], Sequence[Any]]


def is_frame(value: object) -> bool:
    """Return whether a value is a data frame or a series of pandas, polars or Arrow."""
    kind = type(value)
    for module, names in _KINDS.items():
        loaded = sys.modules.get(module)
        types = [getattr(loaded, name, None) for name in names]
        if any(frame_type is not None and issubclass(kind, frame_type) for frame_type in types):
            return True
    return False


_KINDS: Mapping[str, Sequence[str]] = {
    "pandas": ("DataFrame", "Series"),
    "polars": ("DataFrame", "Series", "LazyFrame"),
    "pyarrow": ("Table", "RecordBatch"),
}


def as_frame(value: Any) -> Frame | None:
    """Return a frame, a series or a mapping of columns as a frame; None for any other value.

    Raises:
        Refused: The frame has no rows that can be read, because it is lazy.
    """
    if not is_frame(value):
        if issubclass(type(value), Mapping):
            return _of_mapping(value)
        return None
    match type(value).__module__.partition(".")[0]:
        case "polars":
            return _of_polars(value)
        case "pyarrow":
            return Frame(value.schema.names, value.num_rows, lambda i, n: value.column(i).slice(0, n).to_pylist())
        case _:
            return _of_pandas(value)


def _of_pandas(value: Any) -> Frame:
    frame = value
    if hasattr(value, "to_frame"):  # a series
        frame = value.to_frame()
    if any(name is not None for name in frame.index.names):  # such as the groups of a `groupby`
        frame = frame.reset_index() if not set(frame.index.names) & set(frame.columns) else frame
    columns = ["/".join(map(str, name)) if isinstance(name, tuple) else name for name in frame.columns]

    def column(position: int, rows: int) -> Sequence[Any]:
        cells = frame.iloc[:rows, position]
        listed: list[Any] = cells.tolist()
        if getattr(cells.dtype, "kind", "O") in "biuf" and not hasattr(cells.dtype, "na_value"):
            return listed
        return [None if missing else cell for cell, missing in zip(listed, cells.isna().tolist(), strict=True)]

    return Frame(columns, len(frame), column)


def _of_polars(value: Any) -> Frame:
    if hasattr(value, "collect") and not hasattr(value, "height"):
        raise Refused("a LazyFrame has no rows yet; log Table(frame.collect())")
    frame = value.to_frame() if hasattr(value, "to_frame") else value
    return Frame(frame.columns, frame.height, lambda i, n: frame.to_series(i).head(n).to_list())


def _of_mapping(value: Mapping[Any, Any]) -> Frame:
    columns = {name: _cells(cells) for name, cells in value.items()}
    listed = list(columns.values())
    length = max(map(len, listed), default=0)
    if any(len(cells) != length for cells in listed):
        raise Refused("the columns have different lengths")
    return Frame(list(columns), length, lambda i, n: listed[i][:n])


def _cells(column: Any) -> Sequence[Any]:
    if isinstance(column, Mapping):  # as in pandas' `to_dict()`
        return list(column.values())
    if isinstance(column, str | bytes) or not isinstance(column, Iterable):
        raise Refused(
            f"expected a mapping of column names to lists of cells, got a {type(column).__name__} as a column"
        )
    return column.tolist() if hasattr(column, "tolist") else list(column)
