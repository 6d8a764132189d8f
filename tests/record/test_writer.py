"""The C writer by itself: what it takes, what it hands on, and that it holds on to nothing."""

import gc
import sys
import threading
import weakref
from array import array

import numpy as np
import pytest

_writer = pytest.importorskip("tensormeter.record.rows._writer", reason="the C writer could not be compiled")


class Words:
    """A writer over a few words of memory, with everything that it calls recorded."""

    def __init__(self, names=("a", "b"), codes=b"dq", limit=1 << 16, owner=None, room=lambda size: False):
        self.ring = array("q", [0]) * (limit // 8)
        self.cursor = array("q", [0, limit, 0])
        self.last_step = array("q", [-1])
        self.handed_on = []
        self.arguments = {
            "ring": self.ring,
            "cursor": self.cursor,
            "last_step": self.last_step,
            "keys": tuple(map(sys.intern, names)),
            "codes": codes,
            "layout": 3,
            "advance": (len(names) + 4) * 8 << 13,
            "owner": owner,
            "make_room": room,
            "durations": limit - 27 * 8,
            "fallback": lambda *args, **kwargs: self.handed_on.append((args, kwargs)),
        }
        self.write = _writer.Writer(**self.arguments)

    def row(self, number, words=6):
        return self.ring[number * words : (number + 1) * words].tolist()


def test_a_row_is_mark_time_step_values_mark():
    words = Words()
    words.write({"a": 1.5, "b": 7}, 42)
    words.write({"b": -1, "a": 2}, step=5)  # another order; an int that a float64 holds
    words.write({"a": float("nan"), "b": 0})
    floats = memoryview(words.ring).cast("B").cast("d")
    first, second, third = words.row(0), words.row(1), words.row(2)
    assert (first[0], first[2], floats[3], first[4], first[5]) == (3, 42, 1.5, 7, 3)
    assert (second[0], second[2], floats[9], second[4], second[5]) == (48 << 13 | 3, 5, 2.0, -1, 48 << 13 | 3)
    assert (third[2], floats[15] != floats[15]) == (6, True)
    assert first[1] <= second[1] <= third[1]
    assert words.cursor.tolist() == [144, 1 << 16, 144 << 13]
    assert words.last_step[0] == 6
    assert words.handed_on == []


def test_numpy_scalars_and_booleans_are_written_like_python_numbers():
    words = Words()
    rows = [
        ({"a": np.float64(1.5), "b": np.int64(-7)}, {"a": 1.5, "b": -7}),
        ({"a": np.float32(0.1), "b": np.uint8(255)}, {"a": float(np.float32(0.1)), "b": 255}),
        ({"a": np.float16("inf"), "b": np.int32(3)}, {"a": float("inf"), "b": 3}),
        ({"a": np.int16(-4), "b": 1 << 62}, {"a": -4.0, "b": 1 << 62}),
        ({"a": True, "b": 0}, {"a": 1.0, "b": 0}),
    ]
    for number, (scalars, plain) in enumerate(rows):
        words.write(scalars, np.int64(number))
        words.write(plain, number)
        assert words.row(2 * number)[2:5] == words.row(2 * number + 1)[2:5]
    assert words.last_step[0] == len(rows) - 1
    assert words.handed_on == []


class Doubled(float):
    """A float whose conversion is Python code."""

    def __float__(self):
        return 2 * float.__float__(self)


class Loud(dict):
    def __getitem__(self, key):
        raise AssertionError(key)


class Collides:
    """A key that hashes like another one and raises when compared."""

    def __hash__(self):
        return hash("b")

    def __eq__(self, other):
        raise LookupError("compared")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (({"a": 1.0},), {}),
        (({"a": 1.0, "c": 1},), {}),
        (({"a": 1.0, "b": 1, "c": 1},), {}),
        (({"a": 1.0, "b": 1.0},), {}),
        (({"a": 1.0, "b": 1 << 63},), {}),
        (({"a": (1 << 53) + 1, "b": 1},), {}),
        (({"a": 1.0, "b": True},), {}),
        (({"a": 1.0, "b": np.float64(1)},), {}),
        (({"a": 1.0, "b": np.uint64(1 << 63)},), {}),
        (({"a": np.int64((1 << 53) + 1), "b": 1},), {}),
        (({"a": np.array(1.0), "b": 1},), {}),
        (({"a": np.complex64(1), "b": 1},), {}),
        (({"a": Doubled(1.0), "b": 1},), {}),
        (({"a": "x", "b": 1},), {}),
        ((Loud(a=1.0, b=1),), {}),
        (([1.0, 1],), {}),
        (({"a": 1.0, "b": 1}, 1.0), {}),
        (({"a": 1.0, "b": 1}, 1 << 63), {}),
        (({"a": 1.0, "b": 1}, True), {}),
        (({"a": 1.0, "b": 1}, 1), {"every": 2}),
        (({"a": 1.0, "b": 1},), {"every": 2}),
        (({"a": 1.0, "b": 1},), {"step": 1, "every": 2}),
        ((), {"values": {"a": 1.0, "b": 1}}),
        ((), {}),
        (({"a": 1.0, "b": 1}, 1, 2), {}),
    ],
)
def test_other_rows_are_handed_on_as_they_are(args, kwargs):
    words = Words()
    words.write(*args, **kwargs)
    assert words.handed_on == [(args, kwargs)]
    assert words.cursor.tolist() == [0, 1 << 16, 0]
    assert not any(words.ring)


def test_the_step_after_the_last_one_does_not_wrap():
    words = Words()
    words.write({"a": 1.0, "b": 1}, (1 << 63) - 1)
    words.write({"a": 1.0, "b": 1})
    assert words.handed_on == [(({"a": 1.0, "b": 1},), {})]


def test_one_call_in_64_is_timed():
    words = Words()
    for step in range(640):
        words.write({"a": 1.0, "b": 1}, step)
    total, *counts = words.ring[-27:]
    assert sum(counts) == 10
    # Each bucket holds durations of up to its bound, and of more than half of that.
    assert sum(count << index + 6 for index, count in enumerate(counts)) >= total
    assert total > 0


def test_another_thread_is_handed_on():
    words = Words(owner=threading.get_ident())
    thread = threading.Thread(target=words.write, args=({"a": 1.0, "b": 1},))
    thread.start()
    thread.join()
    assert len(words.handed_on) == 1
    words.write({"a": 1.0, "b": 1})
    assert len(words.handed_on) == 1


def test_a_comparison_that_raises_is_not_swallowed():
    words = Words()
    with pytest.raises(LookupError, match="compared"):
        words.write({"a": 1.0, Collides(): 1})
    assert not any(words.ring)


def test_rows_of_more_columns_than_fit_the_stack_are_written():
    names = [f"k{i}" for i in range(200)]
    words = Words(names, b"d" * 200)
    words.write({name: float(i) for i, name in enumerate(names)}, 1)
    words.write({name: float(i) for i, name in enumerate(reversed(names))}, 2)
    words.write(dict.fromkeys(names, "x"), 3)
    floats = memoryview(words.ring).cast("B").cast("d").tolist()
    assert floats[3:203] == [float(i) for i in range(200)]
    assert floats[207:407] == [float(i) for i in reversed(range(200))]
    assert len(words.handed_on) == 1


def test_room_is_asked_for_until_there_is_some():
    def make_room(size):
        asked.append(size)
        words.cursor[1] += 24  # a signal handler took the rest
        return True

    asked = []
    words = Words(limit=1 << 12, room=make_room)
    words.cursor[1] = 0
    words.write({"a": 1.0, "b": 1}, 1)
    assert asked == [48, 48]
    assert words.row(0)[2] == 1


def test_an_interrupt_while_room_is_made_leaves_no_row():
    def make_room(size):
        raise KeyboardInterrupt

    words = Words(room=make_room)
    words.cursor[1] = 0
    with pytest.raises(KeyboardInterrupt):
        words.write({"a": 1.0, "b": 1}, 1)
    assert not any(words.ring)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cursor": array("q", [0])}, ValueError),
        ({"cursor": b"read only words.........."}, BufferError),
        ({"ring": 3}, TypeError),
        ({"codes": b"d"}, ValueError),
        ({"codes": b"dD"}, ValueError),
        ({"keys": ("a", 1)}, ValueError),
        ({"keys": ["a", "b"]}, TypeError),
        ({"durations": -8}, ValueError),
        ({"durations": 4}, ValueError),
        ({"durations": 1 << 16}, ValueError),
        ({"owner": -1}, OverflowError),
        ({"owner": "me"}, TypeError),
    ],
)
def test_a_writer_that_cannot_be_is_refused(change, error):
    arguments = Words().arguments | change
    with pytest.raises(error):
        _writer.Writer(**arguments)


def test_a_writer_keeps_no_references():
    def references():
        gc.collect()
        return [sys.getrefcount(item) for item in (value, key, words.arguments["keys"], words.ring)]

    value, key = 1.25, "a separate key"
    words = Words((key,), b"d")
    row = {key: value}
    before = references()
    for step in range(200):
        words.write(row, step)
        words.write(row, "no step")
    words.handed_on.clear()
    assert references() == before
    words.write.myself = words.write  # a cycle through its attributes
    gone = weakref.ref(words.write)
    words.handed_on.clear()
    del words.write
    gc.collect()
    assert gone() is None
