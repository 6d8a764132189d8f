"""Names that are not Unicode text: they are written out, with a warning, so that no two of them become one."""

import os

import pytest

from support.optional import torch
from tensormeter import Histogram, Text
from tensormeter.ring.layout import Stream

pytestmark = pytest.mark.usefixtures("writers")

GIVEN = [
    os.fsdecode(b"loss/caf\xe9"),
    os.fsdecode(b"loss/caf\xe8"),
    "loss/caf?",
    "loss/café",
    "\ud83d\ude00",
    "\N{GRINNING FACE}",
]
WRITTEN = [r"loss/caf\udce9", r"loss/caf\udce8", "loss/caf?", "loss/café", r"\ud83d\ude00", "\N{GRINNING FACE}"]
WARNINGS = [
    f"{given!r} is recorded as {written!r}, because the name is not valid Unicode"
    for given, written in zip(GIVEN, WRITTEN, strict=True)
    if given != written
]


def test_metrics_stay_apart(recording, warnings_logged):
    for _ in range(3):
        for value, name in enumerate(GIVEN):
            recording.log({name: float(value)})
        recording.log({name: float(value) for value, name in enumerate(GIVEN)})
    expected = {name: float(value) for value, name in enumerate(WRITTEN)}
    assert recording.values() == 3 * [*({name: value} for name, value in expected.items()), expected]
    assert sorted(warnings_logged()) == sorted(WARNINGS)


def test_tensors_and_reduced_metrics_stay_apart(recording, warnings_logged):
    for _ in range(2):
        recording.log({name: torch.tensor(1.0) for name in GIVEN}, every=2)
    assert recording.values() == [dict.fromkeys(WRITTEN, 1.0)]
    assert len(warnings_logged()) == len(WARNINGS)


def test_distributions_stay_apart(recording):
    recording.log({name: Histogram([1.0, 2.0]) for name in GIVEN})
    assert {name for row in recording.rows() for name in row.values} >= set(WRITTEN)


def test_attributes_stay_apart(recording, warnings_logged):
    streams = [Stream("x", attributes=((name, "v"), ("phase", name))) for name in GIVEN]
    layout = recording.recorder.gauge_row(streams)
    recording.recorder.write_gauges(layout, [1.0] * len(GIVEN), 0)
    (rows,) = recording.reader.lanes[0].read(1 << 20, abandon_pending=False)
    attribute_sets = [column.stream.attributes for column in rows.layout.columns]
    assert attribute_sets == [((name, "v"), ("phase", name)) for name in WRITTEN]
    assert sorted(warnings_logged()) == sorted(WARNINGS)


def test_keys_of_media_stay_apart(recording, warnings_logged):
    for _ in range(2):
        recording.log({name: Text("a text") for name in GIVEN})
    assert sorted(warnings_logged()) == sorted(WARNINGS)


def test_a_name_that_is_too_long_when_written_out_is_refused(recording, warnings_logged):
    recording.log({"\udce9" * 200: 1.0})
    assert recording.values() == []
    (warning,) = warnings_logged()
    assert "the name has 1200 characters; use at most 1024" in warning
