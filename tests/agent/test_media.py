"""Tables, images, texts and alerts: from `log` to the log records in the spool, also when processes are killed."""

import io
import re
import shutil

import numpy as np
import PIL.Image
import pytest

import tensormeter
from support.optional import torch
from support.spooled_media import media_in, pixels
from tensormeter import Audio, Html, Image, Table, Text, Video
from tensormeter.conventions.media_types import is_of_type
from tensormeter.errors import EncodingError
from tensormeter.otlp import media as otlp_media
from tensormeter.otlp.batch import Event
from tensormeter.otlp.media import media_of
from tensormeter.record.media.item import EventContent
from tensormeter.ring.file import media_directory
from tensormeter.ring.format import State


def test_tables_texts_and_alerts(source, spool, open_drain):
    drain = open_drain(source)
    table = Table(["text", "loss", "ok", "nothing"], [["a", np.float32(0.5), True, None]])
    table.add("<b>", torch.tensor(2), False, {"x": 1})
    source.log({"samples": table, "loss": 1.5}, 7)
    table.add("later", 0, False, None)  # what was logged does not change
    source.log({"note": Text("# Title", markdown=True)})
    source.recorder.alert(EventContent("tensormeter.alert", {"title": "NaN", "text": "in layer 3", "level": "WARN"}))
    drain.advance(flush=True)
    (logged, step), (note, note_step), (alert, alert_step) = media_in(spool)
    assert (logged.key, logged.columns) == ("samples", ["text", "loss", "ok", "nothing"])
    assert logged.rows == [["a", 0.5, True, None], ["<b>", 2, False, "{'x': 1}"]]
    assert (note.key, note.text, note.content_type) == ("note", "# Title", "text/markdown")
    assert (alert.title, alert.text, alert.level) == ("NaN", "in layer 3", "WARN")
    assert (step, note_step, alert_step) == (7, 8, 8)
    assert not list(media_directory(source.path).iterdir())


class Loud(str):
    """A title whose code raises."""

    __slots__ = ()

    def __getitem__(self, _):
        raise RuntimeError("no titles today")


def test_a_table_arrives_with_its_chart_and_without_an_invalid_one(source, spool, open_drain, caplog):
    drain = open_drain(source)
    chart = {"kind": "line", "x": "step", "y": ["train", "test"], "title": "Loss"}
    table = Table(["step", "train", "test"], [[0, 1.0, 2.0]], chart=chart)
    chart["kind"] = "bar"  # what the table has does not change
    source.log({"curve": table}, 1)
    assert caplog.records == []
    wrong = ("line", {"kind": "line", "x": "a", "y": "z"}, {"kind": "bar", "x": "a", "y": "b", "title": Loud("t")})
    for step, odd in enumerate(wrong * 2):
        source.log({f"odd{step % 3}": Table(["a", "b"], [[1, 2]], chart=odd), "loss": 1.0}, 2 + step)
    drain.advance(flush=True)
    (first, _), *others = media_in(spool)
    assert first.chart == {"kind": "line", "x": "step", "y": ["train", "test"], "title": "Loss"}
    assert [(table.chart, table.rows) for table, _ in others] == [(None, [[1, 2]])] * 6
    assert [record.getMessage().partition("{")[0] for record in caplog.records] == [
        "'odd0': the table is recorded without its chart: expected a mapping such as ",
        "'odd1': the table is recorded without its chart: y: there is no column 'z'; the columns are a, b",
        "'odd2': the table is recorded without its chart: RuntimeError: no titles today",
    ]
    assert source.ring.drops() == {}


def test_foreign_tables_lose_only_a_chart_that_is_invalid():
    body = {"columns": ["a", "b"], "rows": [[1, 2]]}
    deep = {"kind": "line", "x": "a", "y": [[["b"]]]}
    for chart, expected in ((deep, None), (7, None), ({"kind": "scatter", "x": "a", "y": "b"}, "scatter")):
        event = Event("tensormeter.table", 1, {**body, "chart": chart}, {"tensormeter.key": "t"})
        table, _ = media_of(event)
        assert (table.key, table.rows, table.chart and table.chart["kind"]) == ("t", [[1, 2]], expected)
    with pytest.raises(EncodingError, match="the chart of the table 't': there is no kind"):
        otlp_media.Table("t", ["a"], [[1]], {"kind": "pie"})
    assert "chart" not in otlp_media.Table("t", ["a"], [[1]]).event(1, None).body


def test_images_in_the_cells_of_a_table(source, spool, open_drain):
    drain = open_drain(source)
    encoded = io.BytesIO()
    PIL.Image.new("L", (3, 2), 7).save(encoded, "PNG")
    rows = [["a", Image(np.eye(4), caption="four")], ["b", None], ["c", Image(encoded.getvalue())]]
    source.log({"samples": Table(["name", "picture"], rows)}, 7)
    drain.advance(flush=True)
    ((table, step),) = media_in(spool)
    assert (table.columns, step) == (["name", "picture"], 7)
    assert [row[0] for row in table.rows] == ["a", "b", "c"]
    first, nothing, last = [row[1] for row in table.rows]
    assert nothing is None
    assert (first.caption, str(first), first.content_type) == ("four", "four", "image/png")
    assert (first.width, first.height, str(last)) == (4, 4, "(image)")
    assert pixels(first).tolist() == (np.eye(4) * 255).tolist()
    assert last.data == encoded.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(12).reshape(3, 4)),
        (np.full((2, 2, 3), 0.5), np.full((2, 2, 3), 128)),
        (np.array([[np.inf, 1.0], [-np.inf, 0.0]], np.float32), np.array([[255, 255], [0, 0]])),
        (np.array([[np.nan, 1.0]]), np.array([[[255, 0, 255], [255, 255, 255]]])),
        (np.array([[-1.0, 0.0, 1.0]], np.float16), np.array([[0, 128, 255]])),
        (np.array([[0, 100, 255]], np.int64), np.array([[0, 100, 255]])),
        (np.array([[-128, 127]], np.int8), np.array([[0, 255]])),
        (np.array([[0, 1000, 65535]], np.uint16), np.array([[0, 1000, 65535]])),
        (np.array([[0.0, 255.0]]), np.array([[0, 255]])),
        (np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5), np.arange(60).reshape(3, 4, 5).transpose(1, 2, 0)),
        (torch.tensor([[0.0, 0.5]], dtype=torch.bfloat16), np.array([[0, 128]])),
        (np.array([[[0.0, 1.0], [1.0, 0.0]]]), np.array([[0, 255], [255, 0]])),
        ([[0, 255]], np.array([[0, 255]])),
        (PIL.Image.new("RGBA", (1, 1), (1, 2, 3, 4)), np.array([[[1, 2, 3, 4]]])),
        (PIL.Image.new("LA", (1, 1), (9, 7)), np.array([[[9, 7]]])),
        (PIL.Image.new("CMYK", (1, 1)), np.array([[[255, 255, 255]]])),
        (PIL.Image.new("P", (1, 1)), np.array([[[0, 0, 0]]])),
        (PIL.Image.new("PA", (1, 1)), np.array([[[0, 0, 0, 0]]])),
        (PIL.Image.new("1", (1, 1), 1), np.array([[255]])),
        (PIL.Image.new("F", (1, 1), 0.5), np.array([[128]])),
        (PIL.Image.new("I", (1, 1), 4000), np.array([[4000]])),
        (PIL.Image.fromarray(np.array([[7, 4000]], np.uint16)), np.array([[7, 4000]])),
        (np.eye(3, dtype=bool), np.eye(3) * 255),
        (torch.ones(3, 2, 5), np.full((2, 5, 3), 255)),
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[::-1], np.arange(24).reshape(2, 3, 4)[::-1]),
        (PIL.Image.new("RGB", (4, 3), (1, 2, 3)), np.tile([1, 2, 3], (3, 4, 1))),
    ],
)
def test_pixels_become_png(source, spool, data, expected, open_drain):
    drain = open_drain(source)
    source.log({"image": Image(data, caption="a caption")}, 3)
    drain.advance(flush=True)
    ((image, step),) = media_in(spool)
    assert (image.key, image.content_type, image.caption, step) == ("image", "image/png", "a caption", 3)
    assert (image.height, image.width) == expected.shape[:2]
    assert pixels(image).tolist() == expected.tolist()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_the_content_type_is_that_of_the_first_bytes_and_the_server_agrees(form):
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (5, 6)).save(encoded, form)
    content_type = Image(encoded.getvalue()).part().body["content_type"]
    assert content_type == f"image/{form.lower()}"
    assert is_of_type(encoded.getvalue(), content_type)


def test_what_is_encoded_stays_as_it_is(source, spool, tmp_path, open_drain):
    file = tmp_path / "picture.jpg"
    PIL.Image.new("RGB", (5, 6)).save(file)
    drain = open_drain(source)
    source.log({"path": Image(file), "bytes": Image(file.read_bytes())})
    drain.advance(flush=True)
    for image, _ in media_in(spool):
        assert (image.data, image.content_type) == (file.read_bytes(), "image/jpeg")
        assert (image.width, image.height) == (5, 6)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Image(np.zeros((5, 2, 7))), r"its shape is \(5, 2, 7\), so it has 7 channels"),
        (lambda: Image(np.zeros((0, 2))), r"it is empty: its shape is \(0, 2\)"),
        (lambda: Image(np.zeros((2, 2)), dataformats="CHW"), r"'CHW' does not fit the shape \(2, 2\)"),
        (lambda: Image(np.zeros((2, 2, 3)), dataformats="HWX"), "expected the letters N, C, H, W"),
        (lambda: Image(np.zeros((2, 2), complex)), "its .real, .imag"),
        (lambda: Image(object()), "got a object"),
        (lambda: Image(b"<svg onload=alert(1)>"), "PNG, JPEG, GIF or WebP"),
        (lambda: Image(b"RIFF\x24\x00\x00\x00WAVEfmt "), "PNG, JPEG, GIF or WebP"),
        (lambda: Image(b"RIFF"), "PNG, JPEG, GIF or WebP"),
        (lambda: Image(b"GIF88a"), "PNG, JPEG, GIF or WebP"),
        (lambda: Image("/nowhere.png"), "cannot read '/nowhere.png'"),
        (lambda: Image("/dev/zero"), "not an existing file"),
        (lambda: Image(torch.empty(2, 2, device="meta")), "a sparse or meta tensor"),
        (lambda: [Image(object())], "got a object"),
        (lambda: Table("text"), "a single text"),
        (lambda: Table({"a": [1], "b": [1, 2]}), "different lengths"),
        (lambda: Table(["z"], {"a": [1], "b": [2]}), "do not include all"),
        (lambda: Audio(np.zeros(4)), "pass sample_rate="),
        (lambda: Audio(np.zeros(4), 0), "expected 1 to"),
        (lambda: Audio(np.zeros((4, 5, 6)), 8000), r"got \(4, 5, 6\)"),
        (lambda: Audio(b"text"), "WAV, MP3, OGG or FLAC"),
        (lambda: Video(np.zeros((4, 5))), r"its shape is \(4, 5\)"),
        (lambda: Video([np.zeros((4, 5)), np.zeros((4, 6))]), "different shapes"),
        (lambda: Video(np.zeros((2, 4, 5, 3)), fps=0), "frames per second"),
        (lambda: Video(b"text"), "MP4, WebM or GIF"),
        (lambda: Html(5), "got a int"),
    ],
)
def test_constructors_do_not_raise_and_log_warns_with_the_key(source, caplog, make, complaint):
    item = make()
    for step in range(2):
        source.log({"the key": item, "loss": 1.0}, step)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("'the key' is not recorded: ")
    assert re.search(complaint, warning)
    assert source.ring.drops() == {"unsupported_value": 2}


def test_an_agent_killed_before_it_deleted_the_file_delivers_it_once(source, spool, tmp_path, open_drain):
    source.log({"note": Text("one")}, 1)
    folder, kept = media_directory(source.path), tmp_path / "kept"
    shutil.copytree(folder, kept)
    open_drain(source).advance(flush=True)
    shutil.copytree(kept, folder, dirs_exist_ok=True)  # as if it had not come to that
    source.log({"note": Text("two")}, 2)
    open_drain(source).advance(flush=True)
    assert [(media.text, step) for media, step in media_in(spool)] == [("one", 1), ("two", 2)]


def test_a_file_that_cannot_be_read_does_not_stop_the_rows(source, spool, open_drain, tmp_path):
    drain = open_drain(source)
    source.log({"first": Text("one"), "loss": 1.0}, 0)
    source.log({"second": Text("two")}, 1)
    first = min(media_directory(source.path).iterdir())
    (tmp_path / "elsewhere").write_bytes(first.read_bytes())
    first.unlink()
    first.symlink_to(tmp_path / "elsewhere")  # links are never followed
    assert not drain.advance(flush=True)
    assert spool.losses() == {"media_damaged": 1}
    assert [media.key for media, _ in media_in(spool)] == ["second"]
    assert not list(media_directory(source.path).iterdir())


def test_what_is_damaged_is_counted_and_stops_nothing(source, spool, open_drain):
    folder = media_directory(source.path)
    source.log({"note": Text("one")}, 1)
    (folder / "000000000002").write_bytes(b"not JSON\n")
    (folder / "000000000009.new").write_bytes(b"half")
    drain = open_drain(source)
    drain.advance(flush=True)
    assert [media.text for media, _ in media_in(spool)] == ["one"]
    assert spool.losses() == {"media_damaged": 1}
    source.recorder.close(State.FINISHED)
    source.ring.release()
    assert drain.advance(flush=True)
    drain.ring.remove()
    assert not folder.exists()


def test_too_much_is_dropped_and_counted(new_source, spool, caplog, open_drain):
    source = new_source()
    source.recorder._media._outbox._max_bytes = 5000  # each file takes a page
    for _ in range(3):
        source.log({"note": Text("x" * 600)})
    assert source.ring.drops() == {"media_full": 2}
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "TENSORMETER_MEDIA_BUFFER_BYTES" in warning
    open_drain(source).advance(flush=True)
    assert len(media_in(spool)) == 1


def test_an_alert_of_no_level(tmp_path, caplog):
    with tensormeter.init(settings={"mode": "disabled", "directory": tmp_path}) as run:
        run.alert("x", level="warning")
        assert not caplog.records
        run.alert("x", level="bad")
    assert "alert: expected the level INFO, WARN or ERROR, got 'bad'; recording INFO" in caplog.text


def test_space_that_the_agent_has_freed_is_used_again(source, open_drain):
    source.recorder._media._outbox._max_bytes = 3 * 4096
    drain = open_drain(source)
    for number in range(20):
        source.log({"note": Text(f"text {number}")}, number)
        if number % 3 == 2:
            drain.advance(flush=True)
            source.recorder._media._outbox._next_scan = 0.0
    assert source.ring.drops() == {}
