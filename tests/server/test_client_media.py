"""Media of each kind, from the server to `tensormeter.Client`."""

import json

import pytest
import urllib3

import tensormeter
from tensormeter.otlp.batch import Event
from tensormeter.otlp.media import Audio, Figure, Html, Image, Images, Table, Text, Video

T0 = 1_750_000_000_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


def media_events():
    """An event of each kind, and events of other senders under the same names."""
    image = Image("", PNG, "image/png", 2, 3, "first")
    items = [
        Images("grid", [image, image]),
        Video("clip", b"\x00\x00\x00\x18ftypmp42", "video/mp4", 2, 3, 4, "c"),
        Audio("sound", b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio/wav", 8000),
        Html("page", "<script>alert(1)</script>"),
        Figure("plot", '{"data":[]}'),
        Text("phase", "warmup"),
        Text("phase", "warmup", first_step=5, count=3),
        Text("phase", "decay"),
        Table("rows", ["image", "loss"], [[image, 0.5], [None, 0.25]], {"kind": "histogram", "x": "loss"}),
    ]
    events = [item.event(T0 + number, number) for number, item in enumerate(items)]
    foreign = [
        Event(
            "tensormeter.table", T0 + 50, {"columns": ["a", "b"], "rows": [[{"x": 1}], [[1], 2, 3], 5], "chart": [1]}
        ),
        Event("tensormeter.table", T0 + 51, "text"),
        Event("tensormeter.images", T0 + 52, {"images": 5}),
        Event("tensormeter.text", T0 + 53, None),
    ]
    return [*events, *foreign]


@pytest.fixture(scope="module")
def client(server, make):
    server.events(make.resource("cc01"), *media_events())
    with tensormeter.Client(server.url) as client:
        yield client


def test_media(client):
    run = client.run("cc01")
    first, second = run.images()
    assert (first.key, first.step, first.caption, first.read(), second.read()) == ("grid", 0, "first", PNG, PNG)
    (video,), (audio,) = run.videos(), run.audio()
    assert (video.content_type, video.body["frames"], video.read()[4:8]) == ("video/mp4", 4, b"ftyp")
    assert (audio.content_type, audio.body["sample_rate"], audio.read()[:4]) == ("audio/wav", 8000, b"RIFF")
    assert [page.body["html"] for page in run.html()] == ["<script>alert(1)</script>"]
    assert [json.loads(plot.body["figure"]) for plot in run.figures("plot")] == [{"data": []}]
    texts = [(text.text, text.first_step, text.step, text.count) for text in run.texts("phase")]
    assert texts == [("decay", 7, 7, 1), ("warmup", 5, 6, 3)]
    assert [text.text for text in run.texts()] == ["", "decay", "warmup"]
    (table,) = run.tables("rows")
    frame = table.to_pandas()
    assert (frame.shape, frame["loss"].tolist()) == ((2, 2), [0.5, 0.25])
    assert run.read_media(frame["image"][0]["digest"]) == PNG
    assert table.chart == {"kind": "histogram", "x": "loss"}
    assert [table.chart for table in run.tables() if table.key != "rows"] == [None, None]
    odd, foreign = [table.to_pandas() for table in run.tables() if table.key != "rows"]
    assert (odd.shape, foreign.shape) == ((0, 0), (2, 2))
    assert foreign.iloc[:, 1].tolist()[1] == 2


def test_media_are_sent_in_a_way_that_runs_no_scripts(client, server):
    run = client.run("cc01")
    digests = [run.videos()[0].body["digest"], run.audio()[0].body["digest"], run.images()[0].body["digest"]]
    for digest, media_type in zip(digests, ("video/mp4", "audio/wav", "image/png"), strict=True):
        headers = urllib3.request("GET", f"{server.url}/api/v1/runs/cc01/media/{digest}").headers
        assert headers["Content-Type"] == media_type
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'; sandbox" in headers["Content-Security-Policy"]
        assert headers["Content-Disposition"] == ("inline" if media_type == "image/png" else "attachment")
