"""Items over their limit: one warning with key, size and limit, one count, and nothing else is lost with them."""

import numpy as np
import pytest

from tensormeter import Image, Table, Text
from tensormeter.conventions.fitting import json_bytes
from tensormeter.conventions.limits import IMAGE_BYTES, PIXEL_BYTES, TABLE_BYTES, TABLE_CELLS, TEXT_BYTES
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import State

NOISE = np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), dtype=np.uint8)
"""A PNG of it has 20 MB."""
SMALL = Image(np.eye(2))


@pytest.mark.parametrize(
    ("make", "reason", "limit"),
    [
        (lambda: Text("x" * TEXT_BYTES), "text_too_large", "4 MiB (4,194,304 bytes)"),
        (lambda: Text("é" * (TEXT_BYTES // 2)), "text_too_large", "4 MiB (4,194,304 bytes)"),
        (lambda: Text("\x00" * (TEXT_BYTES // 5)), "text_too_large", "4 MiB (4,194,304 bytes)"),
        (lambda: Table(["a"], [["x" * 1000]] * (TABLE_BYTES // 1000)), "table_too_large", "12 MiB (12,582,912 bytes)"),
        (lambda: Table(["a"], [[0]] * (TABLE_CELLS // 2 + 1)), "table_too_large", "349999 such rows"),
        (lambda: Table(["a"] * TABLE_CELLS), "table_too_large", "700000 columns"),
        (lambda: Table(["a"], [[SMALL]] * 257), "table_too_large", "more than 256 images"),
        (
            lambda: Table(["a"], [[Image(b"\xff\xd8\xff" + bytes(IMAGE_BYTES // 2))]] * 2),
            "table_too_large",
            "16 MiB (16,777,216 bytes)",
        ),
        (lambda: Image(b"\xff\xd8\xff" + bytes(IMAGE_BYTES)), "image_too_large", "16 MiB (16,777,216 bytes)"),
        (lambda: Image(np.zeros((PIXEL_BYTES // 4096 + 1, 4096), np.uint8)), "image_too_large", "60 MiB"),
    ],
    ids=[
        "text", "text in UTF-8", "text of control characters", "table", "cells", "columns", "images of a table", "bytes of images", "image", "pixels"
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_when_it_is_logged(source, spool, caplog, make, reason, limit, open_drain):
    for step in range(2):
        source.log({"samples/it": make(), "loss": 1.0, "note": Text("small")}, step)
    assert source.ring.drops() == {reason: 2}
    (warning,) = [record.getMessage() for record in caplog.records if "samples/it" in record.getMessage()]
    assert limit in warning
    assert source.recorder.lost_names == {reason: ["'samples/it'"]}
    open_drain(source).advance(flush=True)
    assert spool.losses() == {}
    assert spool.pending_items() == 1 + 2 * 2 + 2  # the start, two rows of one value and its step, two notes


def test_a_text_at_the_limit_is_taken(source, spool, open_drain):
    body = {"text": "", "content_type": "text/plain"}
    source.log({"note": Text("x" * (TEXT_BYTES - json_bytes(body)))}, 1)
    open_drain(source).advance(flush=True)
    assert (source.ring.drops(), spool.losses()) == ({}, {})


@pytest.mark.parametrize("in_table", [False, True])
def test_what_turns_out_too_large_when_it_is_encoded_is_named_to_the_script(
    source, spool, caplog, in_table, open_drain
):
    drain = open_drain(source)
    source.log({"samples/noise": Table(["a"], [[Image(NOISE)]]) if in_table else Image(NOISE)}, 1)
    drain.advance(flush=True)
    reason = f"{'table' if in_table else 'image'}_too_large"
    assert spool.losses() == {reason: 1}
    assert "samples/noise" in drain.lost
    assert "16 MiB (16,777,216 bytes)" in drain.lost
    source.ring.report("", "", drain.lost)  # as the agent does
    source.log({"note": Text("small")}, 2)
    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if "noise" in record.getMessage() and record.name == "tensormeter"
    ]
    assert warning.startswith("could not deliver an item: ")
    source.recorder.close(State.FINISHED)
    source.ring.release()
    assert drain.advance(flush=True)
    assert drain._end_events(drain._report(speaks=True))[0].body["dropped"] == {reason: 1}


def test_losses_of_the_ring_and_of_the_spool_with_one_reason_are_added_up(source, open_drain):
    drain = open_drain(source)
    source.log({"a": Image(NOISE), "b": Image(b"\xff\xd8\xff" + bytes(IMAGE_BYTES))}, 1)
    drain.advance(flush=True)
    assert drain._dropped(speaks=True) == {"image_too_large": 2}


def test_the_agent_has_three_things_to_say(source):
    reader = RingFile.open(source.path)
    for report in (
        ("t", "", ""),
        ("", "", "lost"),
        ("t", "s", "l"),
        ("", "s", ""),
        ("é" * 900, "s" * 900, "l" * 900),
        ("", "", ""),
    ):
        reader.report(*report)
        stored = (source.ring.trouble, source.ring.set_aside, source.ring.lost)
        assert all(text.startswith(part.rstrip("\ufffd")) for text, part in zip(report, stored, strict=True))
        assert [bool(part) for part in stored] == [bool(text) for text in report]
