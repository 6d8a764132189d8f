"""Unreadable rows in the ring of a dead writer cost no other row, and are counted."""

import pytest

from support.spools import take_requests
from tensormeter.ring.format import EntryKind, State


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
    words = source.ring.words

    class Words:
        """Is interrupted when an entry is published."""

        def __getitem__(self, index):
            return words[index]

        def __setitem__(self, index, value):
            if value == EntryKind.LAYOUT:
                raise Interrupt
            words[index] = value

    monkeypatch.setattr(source.ring, "words", Words())
    with pytest.raises(Interrupt):
        source.log({"b": 1.0}, 2)
    monkeypatch.undo()
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
