"""Unreadable rows in the ring of a dead writer cost no other row, and are counted."""

import struct

import pytest

import tensormeter.ring.dictionary as dictionary_module
from support.spools import take_requests
from tensormeter.ring.format import LANE_HEADER_BYTES, State
from tensormeter.ring.histogram_buckets import KIND
from tensormeter.ring.layout import Items, Stream, item_header


def drained(source, spool, open_drain, state=State.FINISHED):
    """Points that arrive, and what the end says was lost."""
    if state is State.FINISHED:
        source.recorder.close(state)
    source.ring.release()
    drain = open_drain(source, schedule_delay=0.01)
    assert drain.advance(flush=True)
    points = sum(request.items for request in take_requests(spool) if request.signal == "metrics")
    return points, drain._end_events(drain._report(speaks=True))[0].body["dropped"]


class Interrupt(BaseException):
    pass


def test_an_entry_of_the_dictionary_whose_writing_is_interrupted_costs_its_own_row_only(
    source, spool, open_drain, monkeypatch
):
    source.log({"a": 1.0}, 1)

    def interrupt(*arguments):
        monkeypatch.undo()
        raise Interrupt

    monkeypatch.setattr(dictionary_module.os, "pwrite", interrupt)
    with pytest.raises(Interrupt):
        source.log({"b": 1.0}, 2)
    source.log({"c": 1.0}, 3)
    source.log({"b": 1.0}, 4)
    assert drained(source, spool, open_drain) == (6, {})


@pytest.mark.parametrize("state", [State.FINISHED, State.OPEN])
@pytest.mark.parametrize("damaged", ["mark", "end", "layout"])
@pytest.mark.parametrize("number", [0, 4])
def test_a_row_that_cannot_be_read_costs_its_own_points_only(source, spool, open_drain, damaged, state, number):
    for step in range(10):
        source.log(dict.fromkeys("abc", 1.0), step)
    start = source.ring.lanes[0][0] + 128 >> 3
    row = start + number * 7
    if damaged == "mark":
        source.ring.words[row] ^= 1 << 40
    elif damaged == "end":
        source.ring.words[row + 6] ^= 1 << 40
    else:
        source.ring.words[row] ^= 0x3000
        source.ring.words[row + 6] ^= 0x3000
    assert drained(source, spool, open_drain, state) == (9 * 4, {"damaged": 3})


def test_what_is_written_up_to_the_end_is_counted_though_nothing_of_it_can_be_read(source, spool, open_drain):
    for step in range(10):
        source.log(dict.fromkeys("abc", 1.0), step)
    start = source.ring.lanes[0][0] + 128 >> 3
    for row in range(6, 10):
        source.ring.words[start + row * 7] = 0
    arrived, dropped = drained(source, spool, open_drain)
    assert arrived == 6 * 4
    assert 12 <= dropped["damaged"] <= 28


def test_nothing_is_counted_of_a_writer_that_was_killed_between_two_rows(source, spool, open_drain):
    for step in range(10):
        source.log(dict.fromkeys("abc", 1.0), step)
    assert drained(source, spool, open_drain, State.OPEN) == (40, {})


def write_items(source, step):
    """Write a row that describes its columns `a`, `b` and `c`."""
    numbers = source.recorder._rows._numbers
    numbers.add_names("abc")
    headers = tuple(item_header(numbers.of_name(name), "d") for name in "abc")
    assert source.recorder._lanes.mine().write_words(Items(headers), struct.pack("<3d", 1.0, 2.0, 3.0), step)


ROW = 5 + 2 * 3
"""Words of such a row."""


@pytest.mark.parametrize("state", [State.FINISHED, State.OPEN])
@pytest.mark.parametrize(
    ("word", "value", "lost"),
    [
        (4, 3 << 32 | 1 << 8 | ord("d"), 1),  # no such stream
        (4, 0x7FFF_FFFF << 32 | 1 << 8 | ord("d"), 1),
        (4, -1 << 32 | 1 << 8 | ord("d"), 1),
        (5, 1 << 32 | 1 << 8 | ord("?"), 1),  # no such code
        (5, 1 << 32 | 1 << 8 | ord("S"), 1),  # a gauge has no bins
        (5, 1 << 32 | 2 << 8 | ord("d"), 3),  # sizes that contradict the size of the row
        (6, 2 << 32 | 0 << 8 | ord("d"), 3),
        (6, 2 << 32 | 0xFFFFFF << 8 | ord("d"), 3),
    ],
)
def test_a_column_that_cannot_be_read_costs_its_own_value_only(source, spool, open_drain, state, word, value, lost):
    for step in range(5):
        write_items(source, step)
    source.ring.words[(source.ring.lanes[0][0] + LANE_HEADER_BYTES >> 3) + 2 * ROW + word] = value
    assert drained(source, spool, open_drain, state) == (5 * 4 - lost, {"damaged": lost})


@pytest.mark.parametrize("state", [State.FINISHED, State.OPEN])
@pytest.mark.parametrize("sizes", [1 << 40, -1, 4 << 32 | 3, 3 << 32 | 0xFFFF_FFFF, 0x7FFF_FFFF << 32])
def test_a_row_whose_columns_exceed_it_costs_its_own_points_only(source, spool, open_drain, state, sizes):
    for step in range(5):
        write_items(source, step)
    source.ring.words[(source.ring.lanes[0][0] + LANE_HEADER_BYTES >> 3) + 2 * ROW + 3] = sizes
    arrived, dropped = drained(source, spool, open_drain, state)
    assert arrived == 4 * 4
    assert dropped["damaged"] >= 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("S", [ord("E"), 5 << 32 | 1, 5 << 32 | 1]),  # bins are not in order
        ("S", [ord("E"), 1 << 60]),  # no such bin
        ("S", [ord("E"), -1 << 32]),
        ("S", [1 << 40, 5 << 32 | 1]),  # no such table
        ("S", [ord("d"), 5 << 32 | 1]),
        ("E", [1, 2, 3]),
        ("B", [1, 2]),
        ("B", [1]),
        ("d", [1, 2]),
    ],
)
def test_an_invalid_distribution_costs_itself_only(source, spool, open_drain, code, words):
    numbers = source.recorder._rows._numbers
    numbers.add_names("a")
    headers = (
        item_header(numbers.of_name("a"), "d"),
        item_header(numbers.of(Stream("h", KIND)), code, len(words)),
    )
    body = struct.pack(f"<d{len(words)}q", 1.0, *words)
    assert source.recorder._lanes.mine().write_words(Items(headers), body, 7)
    assert drained(source, spool, open_drain) == (2, {"damaged": 1})


def test_values_of_a_lost_dictionary_entry_are_counted(source, spool, open_drain):
    """The file of names has a flipped bit in the entry of `b`."""
    numbers = source.recorder._rows._numbers
    for name in "abc":
        numbers.add_names(name)
    for step in range(5):
        write_items(source, step)
    path = source.ring._dictionary.path
    content = bytearray(path.read_bytes())
    content[content.index(b'"b"') + 1] ^= 1
    path.write_bytes(content)
    assert drained(source, spool, open_drain) == (5 * 3, {"damaged": 5})
