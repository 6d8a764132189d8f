"""W&B's `Table`."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import tensormeter
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.outcomes import Refused

__all__ = ["Table"]


class Table(Media):
    """A table. Unlike `tensormeter.Table`, it keeps its rows readable: ``table.data``, ``table.get_column("loss")``.

    Attributes:
        columns: Names of the columns.
        data: Rows as lists of cells.
    """

    MAX_ROWS = 10_000
    MAX_ARTIFACT_ROWS = 200_000

    def __init__(
        self,
        columns: Any = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: Any = True,
        allow_mixed_types: bool = False,
        log_mode: str | None = None,
    ) -> None:
        """
        Args:
            columns: Names of the columns. Default: `Input`, `Output` and `Expected`, as in W&B. A frame has its own names.
            data: Rows of cells or mappings, a two-dimensional array, or a frame of pandas.
            rows: Another name of `data`.
            dataframe: A frame of pandas.
            dtype: Ignored, because cells of any type are accepted.
            optional: Ignored.
            allow_mixed_types: Ignored.
            log_mode: Ignored: each log call records the whole table.

        Raises:
            TypeError: The data has no rows.
        """
        self.log_mode = log_mode or "IMMUTABLE"
        self.chart: Mapping[str, Any] | None = None
        source = dataframe if dataframe is not None else data if data is not None else rows
        if hasattr(source, "columns") and hasattr(source, "iloc"):
            self.columns: list[Any] = list(source.columns)
            cells = (source.iloc[:, number].tolist() for number in range(len(self.columns)))
            self.data: list[list[Any]] = [list(row) for row in zip(*cells, strict=True)]
            return
        self.columns = list(columns) if columns is not None else ["Input", "Output", "Expected"]
        if hasattr(source, "tolist"):
            source = source.tolist()
        if source is not None and (isinstance(source, Mapping) or not hasattr(source, "__iter__")):
            raise TypeError(f"Table: expected rows of cells, got a {type(source).__name__}")
        given = [] if source is None else list(source)
        if columns is None and given:
            if all(isinstance(row, Mapping) for row in given):
                self.columns = list(dict.fromkeys(chain.from_iterable(given)))
            elif len(given[0]) != len(self.columns):
                self.columns = [str(number) for number in range(len(given[0]))]
        self.data = [
            [row.get(column) for column in self.columns] if isinstance(row, Mapping) else list(row) for row in given
        ]

    def add_data(self, *data: Any) -> None:
        """Add a row, with one argument per column.

        Raises:
            ValueError: The number of cells differs from the number of columns.
        """
        if len(data) != len(self.columns):
            raise ValueError(f"Table: expected {len(self.columns)} cells ({self.columns}), got {len(data)}")
        self.data.append(list(data))

    def add_row(self, *row: Any) -> None:
        """Add a row. See `add_data`."""
        self.add_data(*row)

    def add_column(self, name: str, data: Any, optional: bool = False) -> None:
        """Add a column.

        Args:
            name: Name of the column.
            data: One cell for each row. In a table without columns, it determines the rows.
            optional: Ignored.

        Raises:
            ValueError: The number of cells differs from the number of rows.
        """
        cells = data.tolist() if hasattr(data, "tolist") else list(data)
        if not self.data and not self.columns:
            self.data = [[] for _ in cells]
        if len(cells) != len(self.data):
            raise ValueError(f"Table: column {name!r} has {len(cells)} cells, but there are {len(self.data)} rows")
        self.columns.append(name)
        for row, cell in zip(self.data, cells, strict=True):
            row.append(cell)

    def add_computed_columns(self, fn: Any) -> None:
        """Add the columns that a function of the row's number and cells returns by name."""
        computed = [fn(number, dict(zip(self.columns, row, strict=True))) for number, row in enumerate(self.data)]
        for name in computed[0] if computed else ():
            self.add_column(name, [row[name] for row in computed])

    def get_column(self, name: Any, convert_to: str | None = None) -> Any:
        """Return the cells of a column, as a list or, with ``convert_to="numpy"``, as an array."""
        position = self.columns.index(name)
        cells = [row[position] for row in self.data]
        if convert_to == "numpy":
            import numpy as np

            return np.array(cells)
        return cells

    def get_index(self) -> list[int]:
        """Return the numbers of the rows."""
        return list(range(len(self.data)))

    def get_dataframe(self) -> Any:
        """Return the table as a frame of pandas."""
        import pandas as pd

        return pd.DataFrame.from_records(self.data, columns=self.columns)

    def iterrows(self) -> Iterator[tuple[int, list[Any]]]:
        """Return pairs of a row's number and its cells."""
        return enumerate(self.data)

    def cast(self, col_name: Any, dtype: Any, optional: bool = False) -> None:
        """Do nothing, because cells of any type are accepted."""

    set_pk = set_fk = cast

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and (self.columns, self.data) == (other.columns, other.data)

    __hash__ = Media.__hash__

    def __len__(self) -> int:
        return len(self.data)

    def pack(self) -> EventContent:
        if not isinstance(self.data, list):
            raise Refused(f"its data is a {type(self.data).__name__}; expected a list of rows")
        return tensormeter.Table(self.columns, self.data, chart=self.chart).pack()
