"""Reading rows: stretches of one layout, mixtures, limits, several lanes."""

import random

import numpy as np
import pytest

from support.read_rows import values_of_rows
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.ring.file import RingFile


@pytest.fixture
def open_lane():
    def open_lane(source, index=0, cursor=None):
        return LaneReader(Layouts(RingFile.open(source.path)), index, cursor or Cursor())

    return open_lane


def flatten(lane, most=1 << 40):
    return [
        (step, row)
        for rows in lane.read(most, abandon_pending=False)
        for step, row in zip(rows.steps.tolist(), values_of_rows(rows, lane._layouts.streams), strict=True)
    ]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 79, 80, 81, 336, 337, 5000])
def test_a_stretch_of_one_layout_is_one_piece(source, open_lane, length):
    for step in range(length):
        source.log({"a": float(step), "b": step}, step)
    source.log({"c": 1.0}, length)
    stretches = open_lane(source).read(1 << 40, abandon_pending=False)
    assert [len(rows.times) for rows in stretches] == [length, 1]
    assert stretches[0].columns[0].dtype == np.float64
    assert stretches[0].columns[1].tolist() == list(range(length))


def test_mixtures_come_whole_and_in_order(new_source, open_lane):
    source = new_source(buffer_bytes=4 << 20)
    chance = random.Random(5)
    expected = []
    while len(expected) < 6000:
        keys = [f"k{chance.randrange(6)}", *(f"l{i}" for i in range(chance.randrange(4)))]
        for _ in range(chance.choice([1, 1, 2, 17, 100])):
            row = {key: float(len(expected)) for key in keys}
            source.log(row, len(expected))
            expected.append((len(expected), row))
    lane = open_lane(source)
    entries = []
    for most in (1, 7, 100, 3000, 1 << 40):
        entries += flatten(lane, most)
    assert entries == expected


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10, 31])
def test_reading_stops_at_the_row_that_reaches_the_limit(source, open_lane, most):
    for step in range(50):
        source.log({"a": 1.0, "b": 2.0}, step)  # with its step 3 points
    lane = open_lane(source)
    count = len(flatten(lane, most))
    assert count == -(-most // 3)
    assert len(flatten(lane)) == 50 - count


def test_a_reader_that_starts_at_a_cursor_goes_on_there(source, open_lane):
    for step in range(100):
        source.log({"a": float(step)}, step)
    first = open_lane(source)
    rows = first.read(60, abandon_pending=False)
    second = open_lane(source, cursor=first.cursor)
    more = second.read(1 << 40, abandon_pending=False)
    assert [step for part in rows + more for step in part.steps.tolist()] == list(range(100))
    assert rows[-1].times[-1] < more[0].times[0]


def test_reading_again_from_the_same_cursor_gives_the_same_times(source, open_lane):
    """An agent killed before its transaction must send the same rows, or a receiver cannot tell that they are the same."""
    for step in range(100):
        source.log({"a": float(step)}, step)
    times = [
        np.concatenate([rows.times for rows in open_lane(source).read(1 << 40, abandon_pending=False)]).tolist()
        for _ in range(2)
    ]
    assert times[0] == times[1]
    assert len(set(times[0])) == 100


def test_space_is_free_after_release_only(new_source, open_lane):
    source = new_source(lanes=1, buffer_bytes=4096)
    lane = open_lane(source)
    while not source.ring.drops():
        source.log({"a": 1.0})
    assert lane.unreleased == 0
    assert flatten(lane)
    assert lane.unreleased > 0.9
    source.log({"a": 1.0})
    assert source.ring.drops() == {"ring_full": 2}
    lane.release()
    assert lane.unreleased == 0
    source.log({"a": 2.0}, 7)
    assert flatten(lane) == [(7, {"a": 2.0})]
    assert source.ring.drops() == {"ring_full": 2}
