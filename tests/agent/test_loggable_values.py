"""Texts, figures, frames, arrays, lists and bytes of the real libraries, from `log` to the spool."""

import array
import collections
import datetime as dt
import io
import json
import sys
import wave
from fractions import Fraction

import av
import matplotlib as mpl
import ml_dtypes
import numpy as np
import pandas as pd
import PIL.Image
import plotly.graph_objects as go
import polars as pl
import pyarrow as pa
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from support.optional import torch
from support.spooled_media import media_in, pixels
from support.spools import take_requests
from tensormeter import Audio, Html, Image, Table, Text, Video
from tensormeter.conventions.media_types import content_type_of
from tensormeter.exporter import Request
from tensormeter.otlp.media import Audio as AudioItem
from tensormeter.otlp.media import Figure as FigureItem
from tensormeter.otlp.media import Html as HtmlItem
from tensormeter.otlp.media import Image as ImageItem
from tensormeter.otlp.media import Images as ImagesItem
from tensormeter.otlp.media import Table as TableItem
from tensormeter.otlp.media import Text as TextItem
from tensormeter.otlp.media import Video as VideoItem
from tensormeter.ring.format import State
from tensormeter_exporters.otlp_series import read_metrics, scalars

RAMP = np.linspace(0, 1, 80, dtype=np.float32).reshape(8, 10)
PNG = io.BytesIO()
PIL.Image.new("L", (3, 2), 7).save(PNG, "PNG")


@pytest.fixture
def logged(source, spool, open_drain):
    """Logs one row, and returns its media items by key."""
    drain = open_drain(source)

    def log(**values):
        source.log(values, 5)
        drain.advance(flush=True)
        return {media.key: media for media, step in media_in(spool) if step == 5}

    return log


@pytest.fixture
def distribution(source, spool, open_drain):
    """Logs one value, and returns the sum and the number of its elements."""
    drain = open_drain(source)

    def log(value):
        source.log({"a": value}, 5)
        drain.advance(flush=True)
        (series,) = [
            stepped.series
            for request in take_requests(spool)
            if request.signal == "metrics"
            for stepped in read_metrics(Request(request.id, "metrics", request.body, request.items))
            if stepped.name == "a"
        ]
        return series.sums.tolist(), series.counts.tolist()

    return log


@pytest.mark.parametrize(
    "value",
    [
        [1.0, 2, True],
        (np.float32(1), torch.tensor(3.0)),
        range(4),
        array.array("f", [1, 2]),
        [[1.0, 2.0], [3.0, 4.0]],
        np.array([1.0, 2.0]),
        np.ma.array([1.0, 2.0, 9.0], mask=[False, False, True]),
        np.ones((64, 3, 7, 7)),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(2, 3, 9, 9)),
        pd.Series([1.0, 2.0]),
        pl.Series([1.0, 2.0]),
        np.array([1.0, 2.0], ml_dtypes.bfloat16),
        np.array([1.0, 2.0], np.longdouble),
        torch.tensor([1.0, 2.0]).as_subclass(type("Mine", (torch.Tensor,), {})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_many_numbers_are_a_distribution(distribution, value, caplog):
    if isinstance(value, np.ma.MaskedArray):
        total, number = 3.0, 2
    elif isinstance(value, np.ndarray):
        total, number = float(value.astype(float).sum()), value.size
    else:
        flat = np.ravel([np.asarray(torch.as_tensor(part).detach().float()) for part in value])
        total, number = float(flat.sum()), flat.size
    assert distribution(value) == ([total], [number])
    assert not caplog.records


def test_a_list_of_one_number_is_a_number(source, spool, open_drain):
    source.log({"a": [2.5], "b": (np.int64(3),), "c": [[4]], "d": pd.Series([5.5]), "e": pl.Series([6])}, 1)
    open_drain(source).advance(flush=True)
    (request,) = [request for request in take_requests(spool) if request.signal == "metrics"]
    series = read_metrics(Request(request.id, "metrics", request.body, request.items))
    recorded = {numbers.name: numbers.values.item() for stepped in series for numbers in scalars(stepped)}  # noqa: PD011
    assert recorded == {"a": 2.5, "b": 3.0, "c": 4.0, "d": 5.5, "e": 6.0}


def test_figures_and_pictures_are_images(logged):
    figure = MatplotlibFigure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    axes.plot([1, 2])
    picture = PIL.Image.new("RGB", (4, 3), (1, 2, 3))
    items = logged(
        figure=figure, axes=axes, picture=picture, subfigure=figure.subfigures(1, 2)[0], image=Image(figure, "c")
    )
    assert {key: (item.width, item.height) for key, item in items.items()} == {
        "figure": (100, 50), "axes": (100, 50), "picture": (4, 3), "subfigure": (100, 50), "image": (100, 50)
    }  # fmt: skip
    assert items["image"].caption == "c"
    assert len(np.unique(pixels(items["figure"]))) > 10
    mpl.use("agg")
    from matplotlib import pyplot as plt

    plt.figure(figsize=(1, 1), dpi=30)
    assert logged(pyplot=plt)["pyplot"].width == 30
    plt.close("all")


def test_a_plotly_figure_is_its_json(logged):
    figure = go.Figure(go.Scatter(x=np.arange(3), y=[1, 3, 2]), {"title": {"text": "Loss"}})
    (item,) = logged(figure=figure).values()
    assert isinstance(item, FigureItem)
    document = json.loads(item.figure)
    assert document["data"][0]["y"] == [1, 3, 2]
    assert document["layout"]["title"]["text"] == "Loss"


PANDAS = pd.DataFrame(
    {"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")], "d": pd.to_datetime(["2026-01-02", None])}
)
ROWS = [[1, "x"], [2, None]]


@pytest.mark.parametrize(
    ("make", "columns", "rows"),
    [
        (lambda: PANDAS, ["a", "b", "c", "d"], [[1, "x", 0.5, "2026-01-02 00:00:00"], [2, None, "NaN", None]]),
        (lambda: Table(PANDAS[["a", "b"]]), ["a", "b"], ROWS),
        (lambda: Table(dataframe=PANDAS[["a", "b"]]), ["a", "b"], ROWS),
        (lambda: Table(data=PANDAS[["a", "b"]]), ["a", "b"], ROWS),
        (lambda: Table(["b", "a"], PANDAS), ["b", "a"], [["x", 1], [None, 2]]),
        (lambda: Table(["p", "q"], PANDAS[["a", "b"]]), ["p", "q"], ROWS),
        (lambda: Table(PANDAS.columns[:1], PANDAS[["a"]].to_numpy()), ["a"], [[1], [2]]),
        (lambda: Table({"a": [1, 2], "b": ["x", None]}), ["a", "b"], ROWS),
        (lambda: Table(data=[{"a": 1, "b": "x"}, {"a": 2}]), ["a", "b"], ROWS),
        (lambda: Table(data=[[1, "x"], [2, None]]), ["0", "1"], ROWS),
        (lambda: Table(["a"], [1, "xy"]), ["a"], [[1], ["xy"]]),
        (lambda: pl.DataFrame({"a": [1, 2], "b": ["x", None]}), ["a", "b"], ROWS),
        (lambda: pa.table({"a": [1, 2], "b": ["x", None]}), ["a", "b"], ROWS),
        (lambda: pd.Series(["x", None], name="b"), ["b"], [["x"], [None]]),
        (PANDAS.groupby("a")[["c"]].sum, ["a", "c"], [[1, 0.5], [2, 0.0]]),
        (lambda: pd.DataFrame({"a": pd.array([1, None], "Int64")}), ["a"], [[1], [None]]),
        (lambda: pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])), ["a/x", "a/y"], [[1, 2]]),
        (lambda: [{"a": 1, "b": "x"}, {"a": 2, "b": None}], ["a", "b"], ROWS),
        (lambda: [{"a": 1}, {"b": "x", "a": 2}], ["a", "b"], [[1, None], [2, "x"]]),
        (lambda: ["x", "y"], ["text"], [["x"], ["y"]]),
        (lambda: [Text("x"), Text("y")], ["text"], [["x"], ["y"]]),
        (lambda: Table(["t"], [[Text("x")], [pd.NA], [pd.NaT], [{"a": 1}]]), ["t"], [["x"], [None], [None], ["{'a': 1}"]]),
        (lambda: Table(["a", "b"], [[1, "x"], [2**70, np.bool_(True)]]), ["a", "b"], [[1, "x"], [2.0**70, True]]),
    ],
)  # fmt: skip
def test_frames_and_rows_are_tables(logged, make, columns, rows):
    (table,) = logged(table=make()).values()
    assert isinstance(table, TableItem)
    assert list(table.columns) == columns
    shown = [["NaN" if cell != cell else cell for cell in row] for row in table.rows]
    assert shown == rows
    assert [list(map(type, row)) for row in shown] == [list(map(type, row)) for row in rows]


def test_rows_are_added_in_each_spelling_and_odd_ones_are_mended_with_a_warning(logged, caplog):
    table = Table(["text", "image"])
    table.add_data("a", PIL.Image.new("L", (2, 2)))
    table.add_row(["b", Image(object())])
    table.add("c")
    mapped = Table(["a"], [{"a": 1}, {"a": 2, "b": 3}])
    mapped.add_row({"a": 4})
    mapped.add_row({"other": 5})
    assert list(logged(mapped=mapped)["mapped"].rows) == [[1], [2], [4], ["{'other': 5}"]]
    pairs = Table(["a", "b"])
    pairs.add_data({"b": 1, "a": 2})
    assert list(logged(pairs=pairs)["pairs"].rows) == [[2, 1]]
    (item,) = logged(table=table).values()
    assert [row[0] for row in item.rows] == ["a", "b", "c"]
    assert [type(row[1]) for row in item.rows] == [ImageItem, type(None), type(None)]
    warnings = " ".join(record.getMessage() for record in caplog.records)
    assert "'table': the Image in row 1 is not recorded: expected an array" in warnings
    assert "1 of its rows did not have 2 cells (text, image)" in warnings


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda: [Image(RAMP), Image(RAMP, caption="second")], 2),
        (lambda: (PIL.Image.new("L", (3, 2)), np.zeros((8, 8, 3)), Image(PNG.getvalue())), 3),
        (lambda: [RAMP[None], torch.zeros(3, 9, 9)], 2),
        (lambda: np.zeros((2, 8, 8, 3), np.uint8), 2),
        (lambda: torch.rand(5, 3, 8, 8), 5),
        (lambda: Image(torch.rand(5, 8, 8), dataformats="NHW"), 5),
        (lambda: Image([RAMP, RAMP]), 2),
        (lambda: [RAMP, Image(RAMP), PIL.Image.new("L", (3, 2))], 3),
    ],
)
def test_lists_and_batches_of_images_are_one_event(logged, make, number):
    (item,) = logged(grid=make()).values()
    assert isinstance(item, ImagesItem)
    assert len(item.images) == number
    assert all(pixels(image).size for image in item.images)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint16", "bool"])
def test_a_mask_is_black_and_white(logged, dtype):
    mask = np.eye(8, dtype=dtype)
    (item,) = logged(mask=Image(mask)).values()
    assert np.array_equal(pixels(item), np.eye(8) * 255)


def test_pixels_of_32_bits_are_8_bits_unless_they_are_larger(logged):
    ramp = np.arange(64, dtype=np.int32).reshape(8, 8) * 4
    (item,) = logged(ramp=PIL.Image.fromarray(ramp)).values()
    assert np.array_equal(pixels(item), ramp)
    (item,) = logged(ramp=PIL.Image.fromarray(ramp * 250)).values()
    assert pixels(item).max() == 63_000


def test_an_image_that_fails_leaves_the_others_of_its_list(logged, source, caplog):
    (item,) = logged(grid=[Image(RAMP), Image("/nowhere.png")]).values()
    assert len(item.images) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "'grid': an image is not recorded: cannot read '/nowhere.png': it is not an existing file"
    ]
    assert source.ring.drops() == {"unsupported_value": 1}


def test_cells_cannot_be_other_media(logged, caplog):
    table = Table(["clip", "note"], [[Audio(np.zeros(9), 8000), Text("a text")]])
    (item,) = logged(table=table).values()
    assert list(item.rows) == [[None, "a text"]]
    assert (
        "'table': the Audio in row 0 is not recorded: cells can contain images and texts, but no Audio; log it under a "
        "separate name"
    ) in caplog.text


def test_two_channels_may_come_first(logged):
    picture = np.zeros((2, 9, 10), np.uint8)
    picture[1] = 128
    (item,) = logged(image=Image(picture)).values()
    assert pixels(item).shape == (9, 10, 2)


def test_images_of_one_batch_have_one_scale(logged, caplog):
    batch = np.stack([np.full((8, 8), -1.0), np.full((8, 8), 3.0)])
    (item,) = logged(grid=Image(batch, dataformats="NHW")).values()
    assert [pixels(image).max() for image in item.images] == [0, 255]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("'grid': the values from -1 to 3 were scaled to black and white")


@pytest.mark.parametrize("dataformats", ["HWC", "CHW", "WHC", "NHWC", "NCHW"])
def test_the_order_of_dimensions_can_be_given(logged, dataformats):
    picture = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)  # each order would be possible
    order = ["HWC".index(letter) for letter in dataformats if letter != "N"]
    given = picture.transpose(order)
    (item,) = logged(image=Image(given[None] if "N" in dataformats else given, dataformats=dataformats)).values()
    image = item.images[0] if "N" in dataformats else item
    assert pixels(image).tolist() == picture.tolist()


@pytest.mark.parametrize(
    "make", [list, lambda frames: frames, lambda frames: frames.transpose(0, 3, 1, 2), lambda frames: frames[None]]
)
def test_frames_become_a_video(logged, make):
    frames = np.zeros((5, 20, 31, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(5)[:, None, None] * 50
    (item,) = logged(video=Video(make(frames), fps=10, caption="c")).values()
    assert isinstance(item, VideoItem)
    assert (item.content_type, item.width, item.height, item.frames, item.caption) == ("video/mp4", 31, 20, 5, "c")
    with av.open(io.BytesIO(item.data)) as container:
        (stream,) = container.streams.video
        assert stream.average_rate == Fraction(10)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [abs(float(frame[4:16, 4:26, 0].mean()) - 50 * number) < 12 for number, frame in enumerate(decoded)] == [
        True
    ] * 5


@pytest.mark.parametrize("missing", ["PyAV", "encoder"])
def test_without_pyav_or_its_encoder_frames_become_a_gif(logged, monkeypatch, missing):
    if missing == "PyAV":
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    (item,) = logged(video=Video(np.linspace(0, 1, 3 * 64).reshape(3, 8, 8), fps=20)).values()
    assert (item.content_type, item.frames) == ("image/gif", 3)
    with PIL.Image.open(io.BytesIO(item.data)) as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (3, (8, 8), 50)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 1, -1, 0.5]), [[0], [32767], [-32767], [16384]]),
        (torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, 2.0]]), [[0, 32767], [32767, 0], [-32767, 32767]]),
        (np.array([[5, -7]] * 3, np.int16), [[5, -7]] * 3),
        (np.array([0, 128, 255], np.uint8), [[-32768], [0], [32512]]),
        ([0.0, 1.0], [[0], [32767]]),
        (np.array([5, -7, 32767]), [[5], [-7], [32767]]),
        (torch.tensor([5, -32768], dtype=torch.int32), [[5], [-32768]]),
        (np.array([1 << 20, -(1 << 31)]), [[16], [-32767]]),
    ],
)
def test_samples_become_a_wav(logged, samples, expected):
    (item,) = logged(audio=Audio(samples, 8000, caption="c")).values()
    assert isinstance(item, AudioItem)
    assert (item.content_type, item.sample_rate, item.caption) == ("audio/wav", 8000, "c")
    with wave.open(io.BytesIO(item.data)) as clip:
        assert (clip.getframerate(), clip.getsampwidth()) == (8000, 2)
        values = np.frombuffer(clip.readframes(100), "<i2").reshape(-1, clip.getnchannels())
    assert values.tolist() == expected


def test_files_and_bytes_are_recognized(logged, tmp_path):
    wav, mp4, html = b"RIFF\x24\x00\x00\x00WAVEfmt ", b"\x00\x00\x00\x18ftypmp42", tmp_path / "report.html"
    (tmp_path / "clip.wav").write_bytes(wav)
    (tmp_path / "clip.mp4").write_bytes(mp4)
    html.write_text("<h1>é</h1>")
    items = logged(
        png=PNG.getvalue(), wav=wav, mp4=bytearray(mp4), audio=Audio(tmp_path / "clip.wav"), video=Video(str(tmp_path / "clip.mp4")),
        path=Html(html), named=Html(str(html)), file=Html(io.StringIO("<h1>é</h1>")), text=Html("<p>", "c"),
    )  # fmt: skip
    assert [type(items[key]) for key in ("png", "wav", "mp4", "audio", "video")] == [
        ImageItem, AudioItem, VideoItem, AudioItem, VideoItem
    ]  # fmt: skip
    assert all(content_type_of(item.data) == item.content_type for item in items.values() if hasattr(item, "data"))
    assert [items[key].html for key in ("path", "named", "file", "text")] == ["<h1>é</h1>"] * 3 + ["<p>"]
    assert isinstance(items["text"], HtmlItem)
    assert items["text"].caption == "c"


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ([Image(RAMP), None], "a list of images that contains a NoneType"),
        ([RAMP, RAMP], "a list of arrays; log tensormeter.Image(values) if they are images"),
        (["a", None], "a list that contains a str and a NoneType"),
        (np.array([1j, 2j]), "cannot record an array of dtype complex128; log real numbers"),
        (np.array(["a", "b"]), "cannot record an array of dtype <U1; log real numbers"),
        (np.zeros((0, 3)), "an array of shape (0, 3) is empty; leave the key out"),
        (collections.deque([1.0]), "cannot record a collections.deque; log a list"),
        ({"a": 1}.values(), "cannot record a dict_values; log a list"),
        (dt.timedelta(seconds=1), "log its .total_seconds()"),
        (type("Meter", (), {"__float__": lambda meter: 1.0})(), "log float(value)"),
        (PIL.Image.new("RGB", (0, 3)), "it is empty: its size is 0 x 3"),
    ],
)
def test_a_refusal_names_the_cause_and_what_to_log(source, caplog, value, advice):
    source.log({"bad": value, "good": 1.0}, 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("'bad' is not recorded: ")
    assert advice in record.getMessage()


def test_a_table_with_too_many_rows_is_refused_before_they_are_copied(source, caplog):
    class Cell:
        def __str__(self):
            raise AssertionError("it was read")

    for number, data in enumerate(([[Cell()]] * 700_000, pd.DataFrame({"a": pd.Series([Cell()] * 700_000)}))):
        source.log({f"table{number}": Table(["a"], data)}, 1)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"'table{number}' is not recorded: the table is too large: it has 700000 rows of 1 cells, but the limit is 349999 such rows"
        for number in range(2)
    ]
    assert source.ring.drops() == {"table_too_large": 2}


@pytest.mark.parametrize(
    "value", [np.asarray(RAMP, ml_dtypes.bfloat16), np.asarray(RAMP, np.longdouble)], ids=["bf", "long"]
)
def test_number_types_of_other_libraries_are_images(logged, value):
    (item,) = logged(image=Image(value)).values()
    assert abs(pixels(item).astype(int) - np.rint(RAMP * 255)).max() <= 1


def test_several_clips_in_a_list_have_numbered_keys(logged):
    items = logged(clips=[Audio(np.zeros(4), 8000), Html("<p>")])
    assert {key: type(item) for key, item in items.items()} == {"clips/0": AudioItem, "clips/1": HtmlItem}


def test_an_unchanged_short_text_is_stored_once_with_its_steps(source, spool, open_drain, caplog):
    drain = open_drain(source)
    for step in range(6):
        source.log({"phase": "warmup" if step < 4 else "decay", "loss": float(step)}, step)
    source.log({"long": "x" * 300, "phase": np.str_("decay")}, 6)
    source.log({"long": "x" * 300, "once": "a"}, 7)
    source.recorder.close(State.FINISHED)
    source.ring.release()
    assert drain.advance(flush=True)
    texts = [(media.key, media.text[:6], step, media.first_step, media.count) for media, step in media_in(spool)]
    assert all(isinstance(step, int) for _, _, step, _, _ in texts)
    assert texts == [
        ("phase", "warmup", 0, None, 1),
        ("phase", "warmup", 3, 0, 4),
        ("phase", "decay", 4, None, 1),
        ("long", "xxxxxx", 6, None, 1),
        ("long", "xxxxxx", 7, None, 1),
        ("once", "a", 7, None, 1),
        ("phase", "decay", 6, 4, 3),
    ]
    assert not caplog.records
    assert TextItem("a", "b").event(1, 2).body == {"text": "b", "content_type": "text/plain"}


def test_the_original_may_change_after_the_constructor(logged):
    frame = np.zeros((8, 8), np.uint8)
    samples, rows = np.zeros(4, np.int16), [["a"]]
    items = Image(frame), Audio(samples, 8000), Video(frame[None]), Table(["x"], rows)
    frame[:], samples[:], rows[0][0] = 255, 9, "changed"
    recorded = logged(image=items[0], audio=items[1], table=items[3])
    assert pixels(recorded["image"]).max() == 0
    assert recorded["audio"].data[44:] == bytes(8)
    assert recorded["table"].rows == [["a"]]


def test_an_image_of_another_size_does_not_cost_memory_before_it_is_refused(source, caplog):
    huge = np.broadcast_to(np.uint8(0), (1 << 20, 1 << 10))
    source.log({"huge": Image(huge), "video": Video(np.broadcast_to(np.uint8(0), (1000, 500, 500)))}, 1)
    assert source.ring.drops() == {"image_too_large": 1, "media_too_large": 1}
    assert all("60 MiB" in record.getMessage() for record in caplog.records)


def test_a_figure_that_would_take_gigabytes_is_refused_before_it_is_rendered(source, caplog):
    source.log({"huge": MatplotlibFigure(figsize=(500, 500), dpi=300)}, 1)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "use a smaller figsize or dpi" in warning
    assert source.ring.drops() == {"image_too_large": 1}
