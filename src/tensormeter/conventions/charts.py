"""Charts of tables: a description of the columns that the page draws.

A chart is a mapping with these fields. `x`, `y` and `series` are names of columns.

| kind | x | y | series | drawing |
|---|---|---|---|---|
| `line` | numbers, dates or names | numbers; one column or several | one line for each value | in order of x |
| `bar` | names | numbers; one column or several | bars next to each other | rows with the same x are added |
| `scatter` | numbers, dates or names | numbers; one column or several | one color for each value | one point for each row |
| `histogram` | numbers or names | optional: number of values of the row | one histogram for each value | the page chooses the bins |
| `confusion_matrix` | predicted classes | actual classes | optional: number of samples of the row | shaded by actual class |
| `pr_curve` | recall | precision | one curve for each class | with average precision |
| `roc_curve` | false positive rate | true positive rate | one curve for each class | with the area under the curve |

`title` is a text. Any sender may send other charts, so readers use `read_chart` too.
"""

import reprlib
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, Final

from tensormeter.conventions.limits import CHART_COLUMNS, TITLE_CHARACTERS
from tensormeter.errors import join_choices

__all__ = ["CHART_KINDS", "ChartError", "chart_of", "read_chart"]

_SEVERAL: Final = ("line", "bar", "scatter")
"""Kinds whose `y` may be a list."""

CHART_KINDS: Final = (*_SEVERAL, "histogram", "confusion_matrix", "pr_curve", "roc_curve")

_FIELDS: Final = ("kind", "x", "y", "series", "title")
_NAMED: Final = 20
"""Maximum number of columns that an error names."""
_SHOWN: Final = 200
"""Maximum length of these names in an error, in characters."""


class ChartError(ValueError):
    """A chart that does not fit its table. The message contains the field, its value and the remedy."""


def read_chart(chart: object, columns: Collection[str]) -> dict[str, Any]:
    """Return a valid chart, without fields that are None. Long titles are cut.

    Args:
        chart: Chart, which may come from any sender.
        columns: Names of the table's columns.

    Raises:
        ChartError: The chart is invalid.
    """
    if not isinstance(chart, Mapping):
        raise ChartError(
            f'expected a mapping such as {{"kind": "line", "x": "step", "y": "loss"}}, got {_shown(chart)}'
        )
    fields = {name: value for name, value in chart.items() if value is not None}
    if unknown := [name for name in fields if name not in _FIELDS]:
        raise ChartError(f"there is no field {_shown(unknown[0])}; use {join_choices(*_FIELDS)}")
    kind = fields.get("kind")
    if kind not in CHART_KINDS:
        raise ChartError(f"there is no kind {_shown(kind)}; use {join_choices(*CHART_KINDS)}")
    valid: dict[str, Any] = {"kind": kind}
    for name in ("x", "y", "series"):
        if name in fields:
            is_list = name == "y" and kind in _SEVERAL and isinstance(fields[name], list | tuple)
            valid[name] = _columns(fields[name], columns) if is_list else _column(name, fields[name], columns)
        elif name == "x" or (name == "y" and kind != "histogram"):
            raise ChartError(f"a {kind} needs {name!r}; pass the name of a column")
    if "title" in fields:
        if not isinstance(fields["title"], str):
            raise ChartError(f"title: expected a text, got {_shown(fields['title'])}")
        valid["title"] = fields["title"][:TITLE_CHARACTERS]
    return valid


def chart_of(chart: object, columns: Collection[str]) -> dict[str, Any] | None:
    """Return a chart that any sender may have sent; None if it is invalid."""
    try:
        return read_chart(chart, columns)
    except ChartError:
        return None


def _columns(names: Collection[object], columns: Collection[str]) -> list[str]:
    if not 0 < len(names) <= CHART_COLUMNS:
        raise ChartError(f"y: expected 1 to {CHART_COLUMNS} columns, got {len(names)}; log several tables")
    return [_column("y", name, columns) for name in names]


def _column(field: str, name: object, columns: Collection[str]) -> str:
    # Names of columns are texts, but a frame may have called them 0, 1 and so on.
    text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else None
    if text is None:
        raise ChartError(f"{field}: expected the name of a column, got {_shown(name)}")
    if text not in columns:
        known = ", ".join(map(str, islice(columns, _NAMED)))[:_SHOWN]
        raise ChartError(f"{field}: there is no column {_shown(text)}; the columns are {known}")
    return text


def _shown(value: object) -> str:
    return reprlib.repr(value)
