"""The reference of loggable values: each is recorded as it says, and each destination stores the kinds that it names."""

import io
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure

from support.documents import examples
from support.optional import torch
from support.processes import clean_environment, run_python
from support.spooled_media import media_in
from tensormeter import Audio, Histogram, Html, Image, Table, Text, Video
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.cli.logging_reference import DESTINATIONS, KINDS, LOGGABLE, page
from tensormeter.otlp.media import _KINDS
from tensormeter.record.recorder import Recorder
from tensormeter.ring.file import RingFile
from tensormeter.settings import Settings

ROOT = Path(__file__).parents[2]

PNG = io.BytesIO()
PIL.Image.new("RGB", (3, 2)).save(PNG, "PNG")
PIXELS = np.zeros((9, 9, 3), np.uint8)
FIGURE = Figure(figsize=(1, 1), dpi=20)
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "

EXAMPLES = (
    [1.5, np.float32(2), True],
    [torch.tensor(1.0), np.array([2.0]), [3.0], [[3.0]], pd.Series([4.0])],
    [{"a": {"b": 1.0}}],
    [np.arange(3), torch.zeros(2, 2), range(3), pd.Series([1.0, 2.0])],
    [[1.0, 2], (3, 4), [[1.0, 2.0], [3.0, 4.0]]],
    [Histogram([1.0])],
    ["a text"],
    [Text("a text", markdown=True)],
    [Image(PIXELS, "caption", dataformats="HWC")],
    [PIL.Image.new("L", (2, 2))],
    [FIGURE, FIGURE.subplots()],
    [PNG.getvalue()],
    [PIXELS, torch.zeros(3, 9, 9, dtype=torch.uint8)],
    [[Image(PIXELS)], [FIGURE, FIGURE], (PIXELS, PIXELS)],
    [np.zeros((2, 9, 9, 3)), torch.zeros(2, 3, 9, 9), Image(np.zeros((2, 3, 3, 3)))],
    [Video([PIXELS] * 2, 4, "caption", dataformats="THWC")],
    [b"\x00\x00\x00\x18ftypmp42"],
    [Audio(np.zeros(4), 8000, "caption")],
    [WAV],
    [go.Figure(go.Scatter(y=[1, 2]))],
    [Html("<p>", "caption")],
    [Table(["a"], [[1]]), Table(dataframe=pd.DataFrame({"a": [1]}))],
    [Table(["a"], [[1]], chart={"kind": "histogram", "x": "a"})],
    [pd.DataFrame({"a": [1]})],
    [[{"a": 1}], ["x", "y"]],
    [[Audio(np.zeros(4), 8000), Html("<p>")], [go.Figure(go.Scatter(y=[1, 2]))]],
    [None],
)
"""Values of each type in the table, in its order."""


@pytest.mark.parametrize(
    ("row", "examples"), list(zip(LOGGABLE, EXAMPLES, strict=True)), ids=[row.value[:30] for row in LOGGABLE]
)
def test_values_are_recorded_as_the_table_says(row, examples, spool, tmp_path, caplog):
    ring = RingFile.create(tmp_path / "1.ring", {}, buffer_bytes=1 << 20)
    recorder = Recorder(ring, on_writer=lambda writer: None)
    settings = Settings(schedule_delay=3600, self_metrics_interval=0)
    drain = RingDrainer(RingFile.open(ring.path), spool, ("a",), settings)
    for number, example in enumerate(examples):
        recorder.log({f"key{number}": example}, number)
    rows = sum(recorder.positions) > 0
    drain.advance(flush=True)
    kinds = [type(media).EVENT.removeprefix("tensormeter.") for media, _ in media_in(spool)]
    expected = (
        [row.kind] * len(examples) if row.kind in KINDS else ["audio", "html", "figure"] if "KEY/0" in row.notes else []
    )
    assert kinds == expected
    assert rows == (row.kind in ("number", "distribution") or "train/loss" in row.notes)
    assert ring.drops() == ({"none_value": 1} if row.kind == "nothing" else {})
    assert not caplog.records
    ring.release()


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/logging.md").read_text() == page(), (
        "python -m tensormeter.cli.logging_reference > docs/logging.md"
    )


def test_every_kind_and_destination_is_in_the_tables():
    assert {f"tensormeter.{kind}" for kind in KINDS} == _KINDS.keys() - {"tensormeter.alert"}
    assert set(DESTINATIONS) == {entry_point.name for entry_point in entry_points(group="tensormeter_exporter")}
    for destination in DESTINATIONS:
        (entry_point,) = entry_points(group="tensormeter_exporter", name=destination)
        assert getattr(entry_point.load(), "media", {}).keys() <= set(KINDS)


def test_the_examples_of_the_page_run(tmp_path):
    environment = clean_environment() | {"TENSORMETER_MODE": "offline"}
    environment |= {name: str(tmp_path / name) for name in ("TENSORMETER_DIR", "TENSORMETER_BUFFER_DIR")}
    assert [run_python("-c", code, environment=environment).stderr for code in examples("logging.md")] == [""]
