"""Tables whose cells contain numbers, text and images."""

from collections.abc import Iterable, Mapping, Sized
from itertools import chain, islice
from typing import Any, Final

from tensormeter.conventions.charts import ChartError, read_chart
from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import TABLE_BYTES, TABLE_CELLS, TABLE_IMAGES, too_large
from tensormeter.conventions.semconv import TABLE_EVENT
from tensormeter.record.media.frames import Frame, as_frame, is_frame
from tensormeter.record.media.image import Image, ImagePart, describe_excess, is_pil_image, matplotlib_figure
from tensormeter.record.media.item import EventContent, Media, refusal_of
from tensormeter.record.media.text import Text
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify
from tensormeter.record.warn_once import describe, text_of
from tensormeter.ring.format import Drop

__all__ = ["Table"]

_PLAIN: Final = frozenset({bool, float, str, type(None)})
_INT64: Final = 1 << 63

_MISSING: Final = frozenset({"NAType", "NaTType"})
"""Types of pandas' missing values, `NA` and `NaT`."""

_HISTOGRAM: Final = "tensormeter.record.histogram.histogram.Histogram"


class Table(Media):
    """A table with named columns: ``run.log({"samples": Table(["text", "loss"], [["a", 0.1], ["b", 0.2]])})``.

    A cell is a number, a string, a boolean, None or an image (an `Image`, a PIL image or a Matplotlib figure). NumPy scalars and
    one-element CPU tensors count as numbers. Other objects are converted with `str`.

    The limits are 12 MiB as JSON, 700,000 cells (each row and the heading count as one extra cell), and 256 images. All
    images of a table together may take up to 16 MiB in encoded form, and up to 60 MiB as pixels. A larger table is dropped and
    counted. The warning appears when the table is logged, or after the agent has encoded its images.

    With a `chart`, the page draws the rows, and offers the table next to it. A chart is a mapping with these fields; `x`, `y` and
    `series` are names of columns:

    - `kind` "line": `y` over `x`, in order of `x`. `x` contains numbers, dates (ISO 8601) or names. `y` may be a list of columns.
      `series` is a column; each of its values gets a separate line.
    - `kind` "scatter": one point for each row, with the same columns.
    - `kind` "bar": one bar for each value of `x`, as long as `y`. The values of rows with the same `x` are added. Several
      columns in `y`, or the values of `series`, become bars next to each other.
    - `kind` "histogram": the distribution of the column `x`. The page chooses the bins. The optional `y` contains the number of
      values that a row stands for. `series` separates several distributions.
    - `kind` "confusion_matrix": `x` contains the predicted class and `y` the actual class. Each row is one sample, or as many as
      the optional column `series` contains.
    - `kind` "pr_curve": `x` contains the recall and `y` the precision, `series` the class. The page adds the average precision.
    - `kind` "roc_curve": `x` contains the false positive rate and `y` the true positive rate, `series` the class. The page adds
      the area under the curve.
    - `title`: a text above the chart.

    An invalid chart causes a warning when the table is logged, and the table is recorded without it.

    Attributes:
        columns: Names of the columns.
        chart: Chart as passed to the constructor, or None.
    """

    def __init__(
        self,
        columns: Any = None,
        data: Any = None,
        *,
        dataframe: Any = None,
        chart: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            columns: Names of the columns, or a frame. Default: the frame's columns, the keys of the rows if these are
                mappings, or numbers. With a frame, these columns are selected.
            data: Rows of cells with one cell per column, rows as mappings, an array, or a frame.
            dataframe: A frame: a DataFrame or Series of pandas or polars, an Arrow table, or a mapping of column names to
                cells. An index with a name becomes the first column. Missing values of columns that are not plain numbers
                become None.
            chart: Chart that the page draws from the rows, such as ``{"kind": "line", "x": "step", "y": ["train", "test"]}``.
        """
        self.columns: list[str] = []
        self.chart = dict(chart) if type(chart) is dict else chart
        self._rows: list[list[Any]] = []
        self._images = 0
        self._excess_rows = 0  # number of rows that were not stored, because the table is too large to record
        self._max_rows = 0
        self._uneven = 0
        self._fault: Refused | None = None
        try:
            source = data if dataframe is None else dataframe
            if source is None and (is_frame(columns) or isinstance(columns, Mapping)):
                source, columns = columns, None
            self._fill(columns, source)
        except Exception as error:  # the data's own code may raise anything
            self._fault = refusal_of(error)

    def add_row(self, *row: Any) -> None:
        """Add a row, given as one argument per column, as one list, or as one mapping with names of columns.

        If the number of cells differs from the number of columns, the row is cut or filled with None, with a warning when the
        table is logged.
        """
        only = row[0] if len(row) == 1 else None
        if isinstance(only, Mapping) and not set(self.columns).isdisjoint(only):
            self._add_mapping(only, self.columns)
        else:
            self._add(tuple(only) if len(self.columns) != 1 and isinstance(only, list | tuple) else row)

    add = add_data = add_row

    def _add(self, row: tuple[Any, ...]) -> None:
        if len(row) != len(self.columns):
            self._uneven += 1
            row = (*row[: len(self.columns)], *[None] * (len(self.columns) - len(row)))
        if self._excess_rows or len(self._rows) >= max(self._max_rows, 0):
            self._excess_rows += 1
            return
        cells = [_cell(value) for value in row]
        images = sum(isinstance(cell, Media) for cell in cells)
        if self._images + images > TABLE_IMAGES:
            self._excess_rows += 1
            return
        self._images += images
        self._rows.append(cells)

    def _add_mapping(self, row: Mapping[Any, Any], columns: Iterable[Any]) -> None:
        self._uneven += not set(row).issubset(columns)
        self._add(tuple(map(row.get, columns)))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows) + self._excess_rows

    def _set_columns(self, columns: Iterable[Any]) -> None:
        self.columns = [text_of(column) for column in columns]
        self._max_rows = TABLE_CELLS // (len(self.columns) + 1) - 1  # the heading also counts as a row

    def _fill(self, columns: Any, data: Any) -> None:
        frame = as_frame(data)
        if frame is not None:
            self._fill_from_frame(frame, columns)
            return
        rows: Iterable[Any] = () if data is None else data
        if hasattr(data, "tolist") and hasattr(data, "ndim"):
            if data.ndim != 2:
                raise Refused(f"expected an array with rows and columns, got the shape {tuple(data.shape)}")
            rows = data.tolist()
        if columns is not None:
            if isinstance(columns, str):
                raise Refused("expected a list of column names, got a single text")
            self._set_columns(columns)
        elif data is not None:
            rows = iter(rows)
            head = list(islice(rows, 1))
            first = head[0] if head else ()
            if isinstance(first, Mapping):  # every row may have further columns
                head += islice(rows, TABLE_CELLS)
                columns = list(dict.fromkeys(key for row in head if isinstance(row, Mapping) for key in row))
            else:
                columns = range(_cells_of(first))
            self._set_columns(columns)
            rows = chain(head, rows)
        if isinstance(data, Sized):
            self._check_rows(len(data))
        for row in rows:
            if isinstance(row, Mapping):
                self._add_mapping(row, columns)
            else:  # a single value is a row with one cell
                self._add(tuple(row) if isinstance(row, Iterable) and not isinstance(row, str | bytes) else (row,))

    def _fill_from_frame(self, frame: Frame, names: Any) -> None:
        positions = list(range(len(frame.columns)))
        titles: list[Any] = list(frame.columns)
        if names is not None:
            wanted = list(names)
            if all(name in titles for name in wanted):
                positions, titles = [titles.index(name) for name in wanted], wanted
            elif len(wanted) == len(titles):
                titles = wanted
            else:
                raise Refused(
                    f"the frame has the columns {text_of(titles)[:200]}, which do not include all of those given"
                )
        self._set_columns(titles)
        self._check_rows(frame.length)
        columns = [[_cell(cell) for cell in frame.column(position, frame.length)] for position in positions]
        self._rows = [list(row) for row in zip(*columns, strict=True)]
        self._images = sum(isinstance(cell, Media) for column in columns for cell in column)
        if self._images > TABLE_IMAGES:
            self._excess_rows += 1

    def pack(self) -> EventContent:
        self._check_size()
        images: list[ImagePart] = []
        remarks: list[str] = []
        rows, omitted = self._rows, 0
        if self._images:
            rows = [list(row) for row in rows]
            for number, row in enumerate(rows):
                for position, cell in enumerate(row):
                    if not isinstance(cell, Media):
                        continue
                    try:
                        images.append(_image(cell))
                        row[position] = {"image": len(images) - 1}
                    except Refused as refusal:
                        row[position] = None
                        omitted += 1
                        remarks.append(f"the {type(cell).__name__} in row {number} is not recorded: {refusal}")
        if self._uneven:
            remarks.append(
                f"{self._uneven} of its rows did not have {len(self.columns)} cells ({', '.join(self.columns)[:200]}); they were "
                "cut or filled with None"
            )
        body: dict[str, Any] = {"columns": self.columns, "rows": rows}
        if self.chart is not None:
            try:
                body["chart"] = read_chart(self.chart, self.columns)
            except Exception as error:  # the chart's own values may raise anything
                reason = error if isinstance(error, ChartError) else describe(error)
                remarks.append(f"the table is recorded without its chart: {reason}")
        text = json_text(body)
        size = json_bytes(body, text)
        if size > TABLE_BYTES:
            raise _too_large_table(too_large(size, TABLE_BYTES, "it", "log it in parts, or with fewer columns"))
        excess = describe_excess(images, "all its images together", "log it in parts, or with smaller images")
        if excess:
            raise _too_large_table(excess)
        if images:
            remarks += dict.fromkeys(image.remark for image in images if image.remark)
            bodies = [{**image.body, "size": len(image.data)} for image in images]
            text = json_text({**body, "images": bodies})
        data = b"".join(image.data for image in images)
        return EventContent(TABLE_EVENT, text, data, remarks=remarks[:3], omitted=omitted)

    def _check_size(self) -> None:
        """Check the number of cells and images.

        Raises:
            Refused: There are too many, or the constructor's data cannot be read.
        """
        if self._fault is not None:
            raise self._fault
        if self._max_rows < 0:
            raise _too_large_table(
                f"it has {len(self.columns)} columns, but the limit is {TABLE_CELLS // 2}; log it in parts"
            )
        if self._excess_rows and len(self._rows) < self._max_rows:
            raise _too_large_table(
                f"it has more than {TABLE_IMAGES} images; log it in parts, or log the images separately"
            )
        if self._excess_rows:
            self._check_rows(len(self))

    def _check_rows(self, rows: int) -> None:
        """Check the number of rows before they are copied.

        Raises:
            Refused: There are too many.
        """
        if rows > self._max_rows >= 0:
            raise _too_large_table(
                f"it has {rows} rows of {len(self.columns)} cells, but the limit is {self._max_rows} such rows; log it in parts"
            )


def _cells_of(row: Any) -> int:
    return len(row) if isinstance(row, Sized) and not isinstance(row, str | bytes) else 1


def _too_large_table(reason: str) -> Refused:
    return Refused(f"the table is too large: {reason}", Drop.TABLE_TOO_LARGE)


class Histogram(Media):
    """The place of a histogram, which a cell cannot contain."""


def _image(cell: Media) -> ImagePart:
    if not isinstance(cell, Image):
        raise Refused(f"cells can contain images and texts, but no {type(cell).__name__}; log it under a separate name")
    return cell.part()


def _cell(value: Any) -> Any:
    """Convert a cell to a JSON value. Media items other than texts, and histograms, count as items."""
    kind = type(value)
    if kind in _PLAIN or (kind is int and -_INT64 <= value < _INT64):
        return value
    if kind is Text:
        return value.text
    if issubclass(kind, Media):
        return value
    if kind.__name__ in _MISSING:
        return None
    if is_pil_image(value) or matplotlib_figure(value) is not None:
        return Image(value)
    if issubclass(kind, str):
        return text_of(value)
    try:
        number = classify(value)
    except Exception:  # a refusal, or an error in the value's own code
        is_histogram = any(f"{base.__module__}.{base.__name__}" == _HISTOGRAM for base in kind.__mro__)
        return Histogram() if is_histogram else text_of(value)
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":
        return bool(number)
    return "(on a device)" if isinstance(number, (DeviceValue, Deferred)) else number
