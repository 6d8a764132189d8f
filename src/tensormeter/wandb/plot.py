"""W&B's charts, as tables that the page draws. Each function returns a table to log."""

from collections.abc import Iterable, Sequence
from typing import Any

from tensormeter.wandb.notices import warn_ignored
from tensormeter.wandb.table import Table

__all__ = [
    "bar",
    "confusion_matrix",
    "histogram",
    "line",
    "line_series",
    "plot_table",
    "pr_curve",
    "roc_curve",
    "scatter",
    "visualize",
]


def _chart(table: Table, kind: str, title: str, **columns: Any) -> Table:
    """Return a copy of a table, with a chart."""
    charted = Table(list(table.columns), table.data)
    chosen = {name: column for name, column in columns.items() if column is not None}
    charted.chart = {"kind": kind, **chosen, **({"title": title} if title else {})}
    return charted


def line(table: Table, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False) -> Table:
    """Return a line chart.

    Args:
        table: Table with the data.
        x: Column of the x axis.
        y: Column of the y axis.
        stroke: Column whose values distinguish lines.
        title: Title of the chart.
        split_table: Ignored: the page shows the chart and its table together.
    """
    return _chart(table, "line", title, x=x, y=y, series=stroke)


def bar(table: Table, label: str, value: str, title: str = "", split_table: bool = False) -> Table:
    """Return a bar chart with the columns `label` and `value`."""
    return _chart(table, "bar", title, x=label, y=value)


def scatter(table: Table, x: str, y: str, title: str = "", split_table: bool = False) -> Table:
    """Return a scatter plot with the columns `x` and `y`."""
    return _chart(table, "scatter", title, x=x, y=y)


def histogram(table: Table, value: str, title: str = "", split_table: bool = False) -> Table:
    """Return a histogram of the column `value`."""
    return _chart(table, "histogram", title, x=value)


def line_series(
    xs: Sequence[Any],
    ys: Sequence[Sequence[Any]],
    keys: Sequence[str] | None = None,
    title: str = "",
    xname: str = "x",
    split_table: bool = False,
) -> Table:
    """Return a chart with several lines.

    Args:
        xs: Values of the x axis, for all lines or for each line.
        ys: Values of each line.
        keys: Names of the lines. Default: `line_0` and so on.
        title: Title of the chart.
        xname: Name of the x axis.
        split_table: Ignored.

    Raises:
        ValueError: The numbers of lines differ.
    """
    if len(xs) and (not isinstance(xs[0], Iterable) or isinstance(xs[0], str | bytes)):
        xs = [xs] * len(ys)
    names = [f"line_{number}" for number in range(len(ys))] if keys is None else list(keys)
    if not len(xs) == len(ys) == len(names):
        raise ValueError(f"line_series: expected as many xs and keys as ys ({len(ys)}), got {len(xs)} and {len(names)}")
    rows = [
        [x, name, y]
        for name, line_x, line_y in zip(names, xs, ys, strict=True)
        for x, y in zip(line_x, line_y, strict=False)
    ]
    return _chart(Table([xname, "lineKey", "lineVal"], rows), "line", title, x=xname, y="lineVal", series="lineKey")


def confusion_matrix(
    probs: Any = None,
    y_true: Any = None,
    preds: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "Confusion Matrix Curve",
    split_table: bool = False,
) -> Table:
    """Return a confusion matrix: a table with the columns `Actual`, `Predicted` and `nPredictions`.

    Args:
        probs: Probabilities with the shape (samples, classes), instead of `preds`.
        y_true: True classes with the shape (samples,).
        preds: Predicted classes with the shape (samples,).
        class_names: Names of the classes. Default: `Class_1` and so on.
        title: Title of the chart.
        split_table: Ignored.

    Raises:
        ValueError: The arguments do not fit.
    """
    import numpy as np

    if (probs is None) == (preds is None):
        raise ValueError("confusion_matrix: pass either probs or preds")
    predicted = _list_of(np.argmax(np.asarray(probs), axis=1) if probs is not None else preds)
    actual = _list_of(y_true)
    if len(predicted) != len(actual):
        raise ValueError(f"confusion_matrix: there are {len(predicted)} predictions, but {len(actual)} true classes")
    if class_names is None:
        classes: list[Any] = sorted(set(predicted) | set(actual))
        names: Sequence[str] = [f"Class_{number + 1}" for number in range(len(classes))]
    else:
        classes, names = list(range(len(class_names))), class_names
    position = {value: number for number, value in enumerate(classes)}
    if not set(predicted) | set(actual) <= position.keys():
        raise ValueError("confusion_matrix: there are more classes than class_names")
    counts = np.zeros((len(classes), len(classes)), int)
    for true, guess in zip(actual, predicted, strict=True):
        counts[position[true], position[guess]] += 1
    rows = [[names[i], names[j], int(counts[i, j])] for i in range(len(classes)) for j in range(len(classes))]
    table = Table(["Actual", "Predicted", "nPredictions"], rows)
    return _chart(table, "confusion_matrix", title, x="Predicted", y="Actual", series="nPredictions")


def pr_curve(
    y_true: Any = None,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Any = None,
    interp_size: int = 21,
    title: str = "Precision-Recall Curve",
    split_table: bool = False,
) -> Table:
    """Return a curve of precision by recall for each class. Requires scikit-learn.

    Args:
        y_true: True classes with the shape (samples,).
        y_probas: Probabilities with the shape (samples, classes).
        labels: Names of the classes.
        classes_to_plot: Classes to include. Default: all.
        interp_size: Number of points per class.
        title: Title of the chart.
        split_table: Ignored.
    """
    import numpy as np
    from sklearn.metrics import precision_recall_curve

    rows = []
    recalls = np.linspace(0, 1, interp_size)[::-1]
    for number, value, name in _classes(y_true, labels, classes_to_plot):
        precision, recall, _ = precision_recall_curve(
            np.asarray(y_true), np.asarray(y_probas)[:, number], pos_label=value
        )
        precision = np.maximum.accumulate(precision)[::-1]
        at = np.searchsorted(recall[::-1], recalls, side="left")
        rows += [[name, round(float(p), 3), round(float(r), 3)] for p, r in zip(precision[at], recalls, strict=True)]
    return _chart(
        Table(["class", "precision", "recall"], rows), "pr_curve", title, x="recall", y="precision", series="class"
    )


def roc_curve(
    y_true: Any,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Any = None,
    title: str = "ROC Curve",
    split_table: bool = False,
) -> Table:
    """Return a curve of the true by the false positive rate for each class. Requires scikit-learn.

    The curves have about 10,000 points in total. The first and the last point of each curve are always among them.

    See `pr_curve` for the arguments.
    """
    import numpy as np
    from sklearn.metrics import roc_curve as curve_of

    rows = []
    classes = _classes(y_true, labels, classes_to_plot)
    for number, value, name in classes:
        false, true, _ = curve_of(np.asarray(y_true), np.asarray(y_probas)[..., number], pos_label=value)
        curve = [[name, round(float(f), 3), round(float(t), 3)] for f, t in zip(false, true, strict=True)]
        rows += _thinned(curve, max(2, Table.MAX_ROWS // len(classes)))
    return _chart(Table(["class", "fpr", "tpr"], rows), "roc_curve", title, x="fpr", y="tpr", series="class")


def plot_table(
    vega_spec_name: str,
    data_table: Table,
    fields: Any = None,
    string_fields: Any = None,
    split_table: bool = False,
) -> Table:
    """Return the table of a custom chart. Only the chart kinds of this module are drawn; the others are shown as tables."""
    kind = str(vega_spec_name).rpartition("wandb/")[2].partition("/")[0]
    columns, title = dict(fields or {}), str(dict(string_fields or {}).get("title", ""))
    if kind in ("line", "scatter"):
        return _chart(data_table, kind, title, x=columns.get("x"), y=columns.get("y"), series=columns.get("stroke"))
    if kind == "bar":
        return _chart(data_table, kind, title, x=columns.get("label"), y=columns.get("value"))
    if kind == "histogram":
        return _chart(data_table, kind, title, x=columns.get("value"))
    warn_ignored(f"the chart {str(vega_spec_name)[:100]!r}", "its table is recorded and shown without a chart")
    return Table(list(data_table.columns), data_table.data)


def visualize(id: str, value: Table) -> Table:
    """Return the table of a custom chart (see `plot_table`)."""
    return plot_table(id, value)


def _list_of(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _classes(y_true: Any, labels: Sequence[str] | None, chosen: Any) -> list[tuple[int, Any, Any]]:
    """Return the position, the value and the name of each class to plot."""
    import numpy as np

    classes = np.unique(np.asarray(y_true))
    wanted = np.isin(classes, classes if chosen is None else chosen)
    named = labels is not None and classes.dtype.kind in "iu"
    return [
        (number, value, labels[int(value)] if named and labels is not None else value.item())
        for number, value in enumerate(classes)
        if wanted[number]
    ]


def _thinned(rows: list[list[Any]], limit: int) -> list[list[Any]]:
    """Return about `limit` rows at even distances, with the first and the last one."""
    stride = -(-len(rows) // limit)
    return rows[::stride] + (rows[-1:] if (len(rows) - 1) % stride else [])
