"""Charts of tables: the fields that are valid, and what an error names."""

import pytest

from tensormeter.conventions.charts import CHART_KINDS, ChartError, chart_of, read_chart

COLUMNS = ["a", "b", "c", "0"]


@pytest.mark.parametrize("kind", CHART_KINDS)
def test_each_kind_takes_names_of_columns(kind):
    chart = {"kind": kind, "x": "a", "y": "b", "series": "c", "title": "t"}
    assert read_chart(chart, COLUMNS) == chart
    assert read_chart({**chart, "series": None, "title": None}, COLUMNS) == {"kind": kind, "x": "a", "y": "b"}


def test_a_list_of_columns_and_a_number_of_a_column_are_names():
    assert read_chart({"kind": "line", "x": 0, "y": ("a", "b")}, COLUMNS) == {"kind": "line", "x": "0", "y": ["a", "b"]}
    assert read_chart({"kind": "histogram", "x": "a"}, COLUMNS) == {"kind": "histogram", "x": "a"}
    assert len(read_chart({"kind": "histogram", "x": "a", "title": "t" * 2000}, COLUMNS)["title"]) == 1024


@pytest.mark.parametrize(
    ("chart", "complaint"),
    [
        ("line", r"expected a mapping such as .*, got 'line'"),
        ({"kind": "pie", "x": "a", "y": "b"}, r"there is no kind 'pie'; use line, bar"),
        ({"kind": ["line"], "x": "a", "y": "b"}, r"there is no kind \['line'\]"),
        (
            {"kind": "line", "x": "a", "y": "b", "color": "c"},
            r"there is no field 'color'; use kind, x, y, series or title",
        ),
        ({"kind": "line", "x": "a"}, r"a line needs 'y'; pass the name of a column"),
        ({"kind": "histogram"}, r"a histogram needs 'x'"),
        ({"kind": "line", "x": "z", "y": "b"}, r"x: there is no column 'z'; the columns are a, b, c, 0"),
        ({"kind": "line", "x": "a", "y": []}, r"y: expected 1 to 50 columns, got 0"),
        ({"kind": "line", "x": "a", "y": ["b"] * 51}, r"y: expected 1 to 50 columns, got 51; log several tables"),
        ({"kind": "roc_curve", "x": "a", "y": ["b", "c"]}, r"y: expected the name of a column, got \['b', 'c'\]"),
        ({"kind": "line", "x": True, "y": "b"}, r"x: expected the name of a column, got True"),
        ({"kind": "bar", "x": "a", "y": "b", "title": 5}, r"title: expected a text, got 5"),
    ],
)
def test_an_error_names_the_field_the_value_and_the_remedy(chart, complaint):
    with pytest.raises(ChartError, match=complaint):
        read_chart(chart, COLUMNS)
    assert chart_of(chart, COLUMNS) is None


@pytest.mark.parametrize("columns", [5 * [1], {}, "abc", [["a"], None]])
def test_columns_of_foreign_tables_may_be_anything(columns):
    assert chart_of({"kind": "line", "x": "x", "y": "y" * 10_000}, columns) is None
