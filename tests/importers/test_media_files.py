"""Files become the items of their contents, whichever suffix they have."""

import json

import pytest

from tensormeter.importers.media_files import item_of_file, plotly_figure, size_limit

GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n", "image"),
        ("a", GIF, "image"),
        ("a.txt", GIF, "image"),
        ("a.wav", b"RIFF1234WAVE", "audio"),
        ("a.mp4", b"0000ftypisom", "video"),
        ("a.html", b"<p>x</p>", "html"),
        ("a.json", b'{"a": 1}', "text"),
        ("a.json", b'{"data": [], "layout": {}}', "figure"),
        ("a.json", b"[" * 100_000, "text"),
        ("a.csv", b"x,y\n1,2\n", "table"),
        ("a.csv", b"x,y\n1\n", "text"),
        ("a.md", b"# hi", "text"),
    ],
)
def test_kinds(name, data, kind):
    assert item_of_file(name, data).kind == kind
    assert size_limit(name) or "." not in name


@pytest.mark.parametrize(("name", "data"), [("a.png", b"<svg/>"), ("a.mp3", b"no"), ("a.txt", b"\xff\xfe\x00")])
def test_contents_of_no_kind_are_not_kept(name, data):
    assert item_of_file(name, data) is None


def test_cells_of_tables_are_numbers_only_if_nothing_is_lost():
    item = item_of_file("a.tsv", b"a\tb\n7\t1e-3\n007\tx\n-inf\t\n")
    assert item.content["columns"] == ["a", "b"]
    assert item.content["rows"] == [[7, 1e-3], ["007", "x"], [float("-inf"), ""]]


def test_figures_are_found_in_plotlys_pages():
    go = pytest.importorskip("plotly.graph_objects")
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), {"title": {"text": "a title"}})
    for script in (True, "cdn"):
        found = json.loads(plotly_figure(figure.to_html(include_plotlyjs=script)))
        assert [trace["type"] for trace in found["data"]] == ["scatter"]
        assert found["layout"]["title"]["text"] == "a title"
    assert plotly_figure("<p>Plotly.newPlot('x', [1,</p>") is None
    assert plotly_figure("<p>x</p>") is None
