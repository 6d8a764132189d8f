"""A lane against a model: the reader gives exactly the accepted rows, in order, for every sequence of calls."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensormeter.record.rows.lane as lane_module
from tensormeter.agent.ingest.lane_reader import LaneReader
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.ring.format import POSITION_SHIFT

pytestmark = pytest.mark.usefixtures("writers")

BIG = (1 << 53) + 1

# Key sets of several sizes; the largest row takes a good part of the lane.
SHAPES = {
    "one": lambda n: {"a": float(n)},
    "three": lambda n: {"a": float(n), "b": n, "c": -float(n)},
    "integers": lambda n: {"big": BIG + n, "small": n},
    "many": lambda n: {f"k{i}": float(n * i) for i in range(40)},
    "huge": lambda n: {f"h{i}": float(n + i) for i in range(200)},
}
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(1, 30)),
        st.tuples(st.just("read"), st.sampled_from([1, 3, 50, 1 << 30])),
        st.tuples(st.just("release"), st.none()),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(operations)
def test_the_reader_gives_what_was_accepted(new_recording, steps):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    accepted, read, number = [], [], 0
    for what, argument in steps:
        if what == "read":
            read += recording.reader.read(argument)
        elif what == "release":
            recording.reader.release()
        else:
            for _ in range(argument):
                number += 1
                before = recording.dropped("ring_full")
                recording.log(SHAPES[what](number), number)
                dropped = recording.dropped("ring_full") - before  # the last ones of a row that was split
                values = [*SHAPES[what](number).items()]
                accepted += [(number, *value) for value in values[: len(values) - dropped]]
        assert _values_of(read) == accepted[: len(_values_of(read))]
    read += recording.rows()
    assert _values_of(read) == accepted
    assert all(earlier.time < later.time for earlier, later in pairwise(read))
    # Nothing is stuck: with everything read, every kind of row is accepted again.
    for shape in SHAPES.values():
        recording.log(shape(1), 1)
        assert _values_of(recording.rows()) == [(1, *value) for value in shape(1).items()]


def test_a_lane_is_reused_many_times_without_loss(new_recording):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    names = list(SHAPES)
    for number in range(2000):
        recording.log(SHAPES[names[number % 4]](number), number)
        if number % 3 == 0:
            assert recording.rows()[-1].step == number
    assert recording.ring.drops() == {}


@pytest.mark.parametrize("keys", [60, 100, 240])
def test_rows_of_up_to_half_a_lane_always_fit_once_everything_is_read(new_recording, keys):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    recording.log({"a": 1.0})
    assert recording.values() == [{"a": 1.0}]
    row = {f"k{i}": float(i) for i in range(keys)}
    for _ in range(5):
        recording.log(row, 3)
        assert _values_of(recording.rows()) == [(3, *value) for value in row.items()]


@pytest.mark.parametrize("keys", [480, 500, 5000])
def test_a_row_larger_than_a_lane_is_split(new_recording, warnings_logged, keys):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    row = {f"k{i}": float(i) for i in range(keys)}
    for _ in range(5):
        before = recording.dropped("ring_full")
        recording.log(row, 3)
        kept = keys - (recording.dropped("ring_full") - before)
        assert 100 < kept < keys
        assert _values_of(recording.rows()) == [(3, *value) for value in [*row.items()][:kept]]
    assert ["is full" in message for message in warnings_logged()] == [True]


def test_a_full_lane_drops_the_newest_and_says_so_once(new_recording, warnings_logged):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    for number in range(500):
        recording.log({"a": float(number)}, number)
    kept = recording.rows()
    assert [row.step for row in kept] == list(range(len(kept)))
    assert len(kept) + recording.dropped("ring_full") == 500
    assert len(warnings_logged()) == 1
    assert "rows are dropped" in warnings_logged()[0]


def _values_of(rows):
    return [(row.step, *value) for row in rows for value in row.values.items()]


def _row_bytes(position, step, values):
    mark = position << POSITION_SHIFT | 1
    return struct.pack(f"<qqq{len(values)}dq", mark, 1_700_000_000_000_000_000 + step, step, *values, mark)


@pytest.mark.parametrize("rows_before", [0, 3, 100])
def test_a_row_cut_off_at_any_word_is_not_read(new_recording, rows_before):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    for number in range(rows_before):  # 100 rows: the last lap's rows lie below
        recording.log({"a": 1.0, "b": 2.0, "c": 3.0}, number)
        recording.rows()
    recording.log({"a": 1.0, "b": 2.0, "c": 3.0}, 1000)
    (lane,) = recording.recorder._lanes
    offset, _, mark = lane.cursor
    row = _row_bytes(lane.position, 1001, [4.0, 5.0, 6.0])
    assert mark == lane.position << POSITION_SHIFT
    assert offset + len(row) <= lane._end, "the test wants room for the row before the end of the lane"
    for length in range(0, len(row), 8):
        recording.ring.buffer[offset : offset + length] = row[:length]
        assert [readable_row.step for readable_row in recording.reader.read()] == ([1000] if length == 0 else [])
    recording.ring.buffer[offset : offset + len(row)] = row
    (recorded_row,) = recording.rows()
    assert (recorded_row.step, recorded_row.values) == (1001, {"a": 4.0, "b": 5.0, "c": 6.0})


def test_a_row_of_an_unknown_layout_is_waited_for(recording):
    recording.log({"a": 1.0}, 1)
    lane = recording.recorder._lanes.first
    size = 8 * 5
    mark = lane.position << POSITION_SHIFT | 77
    struct.pack_into("<qqqdq", recording.ring.buffer, lane.cursor[0], mark, 1, 2, 3.0, mark)
    assert [row.step for row in recording.rows()] == [1]
    assert size == struct.calcsize("<qqqdq")
    assert recording.rows() == []


def test_a_write_that_fails_leaves_something_that_the_reader_passes(new_recording, monkeypatch, warnings_logged):
    monkeypatch.setattr(lane_module, "_writer", None)  # in C nothing can fail once space is claimed
    recording = new_recording()
    recording.log({"a": 1.0}, 1)
    before = recording.recorder._lanes.first.position
    recording.log({"a": 2.0}, 1 << 63)
    recording.log({"a": 3.0})
    recording.log({"a": 4.0}, -(1 << 63) - 1)
    assert [(row.step, row.values["a"]) for row in recording.rows()] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert recording.recorder._lanes.first.position == before + 5 * 40  # three rows, and two that failed
    assert recording.dropped("unsupported_value") == 2
    assert len(warnings_logged()) == 1


class Liar:
    """Says that it is a float."""

    __class__ = property(lambda self: float)  # type: ignore[assignment]


def test_a_value_that_fails_inside_the_write_is_refused(recording, warnings_logged):
    recording.log({"a": 1.0}, 1)
    recording.log({"a": Liar()}, 2)
    recording.log({"a": 3.0}, 3)
    assert [row.step for row in recording.rows()] == [1, 3]
    assert recording.ring.drops() == {"unsupported_value": 1}
    assert len(warnings_logged()) == 1


def test_reading_goes_on_behind_space_that_was_given_back_without_a_row(new_recording):
    """An agent that dies after it has given back the end of a lap, but no row since, must find the next one."""
    recording = new_recording(lanes=1, buffer_bytes=4096)
    recording.log(SHAPES["one"](0), 0)
    recording.log(SHAPES["huge"](1), 1)
    assert len(recording.rows()) == 2
    after_rows = recording.reader.lanes[0].cursor
    large = {"sizes": Histogram(np_histogram=([1] * 150, list(range(151))))}
    recording.log(large, 2)  # does not fit before the end, and not yet at the start
    assert recording.rows() == []
    assert recording.reader.lanes[0].cursor.position > after_rows.position
    recording.log(large, 3)
    successor = LaneReader(recording.reader.lanes[0]._layouts, 0, after_rows)
    assert [rows.steps.tolist() for rows in successor.read(1 << 40, abandon_pending=False)] == [[3]]
