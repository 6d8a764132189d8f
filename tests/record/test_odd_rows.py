"""Rows of good and bad values: every good one is recorded, for all kinds of bad ones and of logging handlers."""

import enum
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_values import Lazy, OddKey, Raises, RaisesBadWords

from support.optional import torch
from tensormeter import Histogram, Image, Table

pytestmark = pytest.mark.usefixtures("writers")


BAD = [
    list,
    lambda: [1.0, "a"],
    lambda: [Raises(), Raises()],
    lambda: {"x": Raises()},
    lambda: Lazy({"x": 1.0}, {"x"}),
    lambda: b"no picture",
    lambda: 1j,
    object,
    Raises,
    RaisesBadWords,
    lambda: 10**400,
    lambda: np.array(["a"]),
    lambda: np.datetime64("now"),
    lambda: torch.empty((), device="meta"),
    lambda: torch.zeros((), dtype=torch.complex64),
    lambda: Histogram("text"),
    lambda: Histogram(np.zeros(3, dtype="S1")),
    lambda: Table(["a"]).add,
]
GOOD = [1.5, -2, 2**60, True, np.float32(0.5), np.int64(7), np.array(0.25), torch.tensor(3.0), float("nan")]
ODD_KEYS = [1, None, ("a", 1), b"bytes", frozenset(), "", "tensormeter.step", "n" * 2000, OddKey()]


class Handler(logging.Handler):
    """A program's handler that fails."""

    def handle(self, record):
        raise OSError(28, "No space left on device")


@pytest.fixture(params=["plain", "handler raises", "filter raises", "errors of NumPy"])
def surroundings(request):
    logger = logging.getLogger("tensormeter")
    handler = Handler() if request.param == "handler raises" else logging.NullHandler()
    logger.addHandler(handler)
    if request.param == "filter raises":
        logger.addFilter(fail := lambda record: 1 // 0)
    with np.errstate(all="raise" if request.param == "errors of NumPy" else None):
        yield
    logger.removeHandler(handler)
    if request.param == "filter raises":
        logger.removeFilter(fail)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_good_value_of_a_row_is_recorded(surroundings, new_recording, data):
    recording = new_recording()
    for step in range(3):
        kinds = data.draw(st.lists(st.sampled_from(["good", "bad", "odd key"]), max_size=12))
        row, good, refused = {}, {}, 0
        for number, kind in enumerate(kinds):
            if kind == "good":
                row[f"m{number}"] = good[f"m{number}"] = data.draw(st.sampled_from(GOOD))
            elif kind == "bad":
                row[f"m{number}"] = data.draw(st.sampled_from(BAD))()
                refused += 1
            else:
                key = data.draw(st.sampled_from(ODD_KEYS))
                refused += key not in row
                row[key] = 1.0
        before = recording.dropped("unsupported_value")
        recording.log(row, step)
        recorded_values = recording.values()
        assert [{name: repr(value) for name, value in row_values.items()} for row_values in recorded_values] == (
            [{name: repr(type(value)(value)) for name, value in recorded(good).items()}] if good else []
        )
        assert recording.dropped("unsupported_value") - before == refused


@pytest.mark.parametrize("combinations", [0, 70])
@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_odd_key_is_never_taken_for_a_stream_that_is_not_a_plain_gauge(recording, key, combinations):
    """Rows of rare combinations of names are written in another way than those of the first ones."""
    recording.log({"a": 1.0, "h": Histogram([1.0, 2.0])}, 0)
    recording.log({"reduced": 1.0, "a": 1.0}, 0, every=2)
    for number in range(combinations):
        recording.log({"a": 1.0, f"b{number}": 1.0}, 1)
    before = recording.rows()
    assert len(before) >= 1 + combinations
    for step in range(10):
        recording.log({"a": 1.0, key: 777.0}, step)
        recording.log({key: 777.0, "c": 1.0}, step)
    assert recording.values() == [{"a": 1.0}, {"c": 1.0}] * 10
    assert recording.ring.drops() == {"unsupported_value": 20}


class Name(enum.StrEnum):
    LOSS = "loss"


class Older(str, enum.Enum):  # noqa: UP042
    LOSS = "loss"

    def __str__(self):
        raise RuntimeError


class Unequal(str):
    __slots__ = ()

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    "key", [Name.LOSS, Older.LOSS, np.str_("loss"), Unequal("loss")], ids=lambda key: type(key).__name__
)
def test_texts_of_other_types_are_names(recording, key):
    for step in range(3):
        recording.log({"a": 1.0, key: 2.0}, step)
    recording.log({key: 2.0}, 3)
    recording.log({"loss": 2.0, "a": 1.0}, 4)
    assert recording.values() == [{"a": 1.0, "loss": 2.0}] * 3 + [{"loss": 2.0}, {"loss": 2.0, "a": 1.0}]
    assert recording.ring.drops() == {}
    recording.log({key: Histogram([1.0])}, 5)
    recording.log({key: 3.0}, 6, every=2)
    recording.log({key: 5.0}, 7, every=2)
    assert recording.values()[-1] == {"loss": 4.0}
    assert recording.ring.drops() == {}


def recorded(good):
    """The values as a reader gets them: floats, or integers that are not exact as floats."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in good.items()}
    return {name: value if value == 2**60 else float(value) for name, value in plain.items()}


def test_a_mapping_that_fails_in_part_keeps_its_other_values(recording):
    recording.log(Lazy({"a": 1.0, "b": 2.0, "c": 3.0}, {"b"}), 1)
    assert recording.values() == [{"a": 1.0, "c": 3.0}]
    assert recording.ring.drops() == {"unsupported_value": 1}


@pytest.mark.parametrize("make", [Raises, RaisesBadWords, str, list, lambda: float("nan"), lambda: 2**70])
def test_a_row_whose_step_is_none_is_recorded(recording, make):
    recording.log({"a": 1.0}, make())
    assert recording.values() == [{"a": 1.0}]


@pytest.mark.parametrize("make", [Raises, int, list, object])
def test_rows_that_are_no_mapping_are_counted(recording, make):
    recording.log(make(), 1)
    assert recording.ring.drops() == {"unsupported_value": 1}


def test_a_picture_that_fails_costs_its_row_nothing(recording):
    picture = Image(np.zeros((2, 2)))
    picture._parts = None
    recording.log({"picture": picture, "a": 1.0}, 1)
    assert recording.values() == [{"a": 1.0}]
    assert recording.ring.drops() == {"unsupported_value": 1}


def test_extreme_values_are_counted_where_numpy_raises_errors(recording):
    with np.errstate(all="raise"):
        recording.log({"d": Histogram(np.array([np.inf, 1e308, 1e308, 1e-320])), "a": 1.0}, 1)
    (row,) = recording.rows()
    assert row.values["a"] == 1.0
    assert recording.ring.drops() == {}
