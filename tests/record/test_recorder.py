"""The recorder: steps, key sets, its end, and forks."""

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensormeter.record.rows.lane as lane_module
from support.forks import call_in_child, fork
from support.optional import torch
from tensormeter.agent.ingest.lane_reader import _unique_times
from tensormeter.ring.format import State

pytestmark = pytest.mark.usefixtures("writers")


def steps_of(recording):
    return [row.step for row in recording.rows()]


def test_steps_count_by_themselves_from_the_last_one(recording):
    recording.log({"a": 1.0})
    recording.log({"a": 1.0})
    recording.log({"a": 1.0}, 10)
    recording.log({"b": 1.0})
    recording.log({"a": 1.0, "b": 2}, step=-5)
    recording.log({"a": 1.0})
    assert steps_of(recording) == [0, 1, 10, 11, -5, -4]


def test_steps_come_in_any_order_and_repeat(recording):
    wanted = [5, 3, 3, 0, -1, (1 << 63) - 1, -(1 << 63), 7]
    for step in wanted:
        recording.log({"a": 1.0}, step)
    assert steps_of(recording) == wanted


@pytest.mark.parametrize(
    "step", [True, 3.0, np.int32(3), np.float64(3), lambda: torch.tensor(3), lambda: torch.tensor([3.0])]
)
def test_steps_may_be_whole_numbers_of_any_kind(recording, warnings_logged, step):
    step = step() if callable(step) else step
    recording.log({"a": 1.0}, step)
    recording.log({"a": 1.0}, step)
    assert steps_of(recording) == [int(step)] * 2
    assert warnings_logged() == []


@pytest.mark.parametrize(
    "step", [1.5, "3", float("nan"), float("inf"), 1 << 63, -(1 << 63) - 1, 1e300, [3], lambda: torch.ones(2)]
)
def test_other_steps_are_replaced_by_the_next_one(recording, warnings_logged, step):
    step = step() if callable(step) else step
    recording.log({"a": 1.0}, 6)
    for _ in range(3):
        recording.log({"a": 1.0}, step)
    recording.log({"a": 1.0})
    assert steps_of(recording) == [6, 7, 8, 9, 10]
    assert recording.ring.drops() == {"unsupported_value": 3}
    (message,) = warnings_logged()
    assert "replaced an invalid step with 7: " in message


def test_after_the_largest_step_there_is_no_next_one(recording):
    largest = (1 << 63) - 1
    recording.log({"a": 1.0}, largest)
    recording.log({"a": 2.0})
    recording.log({"b": 3.0})
    assert steps_of(recording) == [largest] * 3


def test_alternating_key_sets_are_recorded(recording):
    rows = [{"a": 1.0}, {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}, {"c d/é'\"\\": 3.0}] * 3
    for row in rows:
        recording.log(row)
    assert recording.values() == rows
    assert recording.ring.drops() == {}


def test_a_row_of_thousands_of_keys_is_recorded(recording):
    row = {f"layer.{i}.weight": float(i) for i in range(3000)}
    recording.log(row, 1)
    recording.log(row, 2)
    assert [(recorded_row.step, recorded_row.values) for recorded_row in recording.rows()] == [(1, row), (2, row)]


def test_any_number_of_key_sets_is_recorded(recording):
    rows = [{f"k{number}": 1.0, "common": float(number)} for number in range(1000)]
    for number, row in enumerate(rows):
        recording.log(row, number)
    assert [(row.step, row.values) for row in recording.rows()] == list(enumerate(rows))
    assert recording.ring.drops() == {}


def test_frequent_key_sets_take_less_space(recording):
    for number in range(100):
        recording.log({f"k{number}": 1.0}, number)
    sizes = []
    for number in range(40):
        before = recording.recorder.positions[0]
        recording.log({"k98": 1.0, "k99": 2.0}, number)
        sizes.append(recording.recorder.positions[0] - before)
    assert sizes[0] == 8 * (5 + 2 * 2)
    assert sizes[-1] == 8 * (4 + 2)
    assert [row.values for row in recording.rows()[100:]] == [{"k98": 1.0, "k99": 2.0}] * 40


def test_too_many_names_are_counted_and_the_known_ones_go_on(new_recording, warnings_logged):
    recording = new_recording(metric_names=50)
    for number in range(200):
        recording.log({f"name{number}": float(number)}, number)
    rows = recording.rows()
    assert len(rows) == 50
    assert recording.ring.drops() == {"too_many_names": 150}
    assert len(warnings_logged()) == 1
    recording.log({"name0": 1.0, f"name{len(rows)}": 2.0})
    assert recording.values() == [{"name0": 1.0}]


def test_a_task_that_another_thread_adds_runs_in_all_later_calls_even_of_a_writer_kept_before(recording):
    calls, kept = [], recording.log
    kept({"a": 1.0})
    add_task = recording.recorder.add_periodic_task
    thread = threading.Thread(target=add_task, args=[lambda: calls.append(1)], kwargs={"at_close": lambda: None})
    thread.start()
    thread.join(300)
    for log in (kept, recording.log):
        log({"a": 1.0})
    assert len(calls) == 2
    assert len(recording.rows()) == 3


def test_nothing_is_recorded_after_the_end(recording, warnings_logged):
    recording.log({"a": 1.0})
    kept = recording.log
    recording.recorder.close(State.FAILED)
    kept({"a": 2.0})
    recording.recorder.log({"b": 2.0})
    recording.recorder.close(State.FINISHED)
    assert recording.values() == [{"a": 1.0}]
    assert recording.ring.state is State.FAILED
    assert recording.ring.head_positions()[0] == recording.reader.lanes[0].cursor.position
    assert len(warnings_logged()) == 1
    assert recording.ring.drops() == {}


def test_a_forked_child_records_nothing_here_and_hands_its_rows_on(recording, warnings_logged):
    recording.log({"a": 1.0}, 1)
    kept = recording.log

    def child():
        handed_on = []
        recording.recorder._on_fork = lambda values, step=None, **rule: handed_on.append((values, step))
        kept({"a": 2.0}, 2)
        recording.recorder.log({"b": 2.0}, 3)
        recording.log({"a": 2.0, "c": 1.0})
        recording.recorder.close(State.FINISHED)
        return handed_on

    assert call_in_child(child) == repr([({"a": 2.0}, 2), ({"b": 2.0}, 3), ({"a": 2.0, "c": 1.0}, None)])
    recording.log({"a": 3.0}, 3)
    assert [(row.step, row.values) for row in recording.rows()] == [(1, {"a": 1.0}), (3, {"a": 3.0})]
    assert recording.ring.state is State.OPEN
    assert recording.ring.drops() == {}
    assert warnings_logged() == []


def test_parent_and_forked_children_may_log_at_once(recording):
    """Children inherit the mapping and hammer every writer; not a word of it may change."""
    recording.log({"a": 0.0}, 0)

    def log_in_child():
        for number in range(3000):
            recording.log({"a": -1.0}, number)
            recording.log({f"child{number % 7}": -1.0}, number)

    children = [fork(log_in_child) for _ in range(3)]
    for number in range(1, 5000):
        recording.log({"a": float(number)}, number)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    rows = recording.rows()
    assert [row.step for row in rows] == list(range(5000))
    assert [row.values for row in rows] == [{"a": float(number)} for number in range(5000)]


def test_a_clock_that_is_set_back_still_gives_unique_increasing_times(new_recording, monkeypatch):
    monkeypatch.setattr(lane_module, "_writer", None)  # C asks the system's clock, which cannot be set here
    now = time.time_ns() // 64 * 64 + 1  # a call at a multiple of 64 would be timed
    clock = iter([now, now, now + 1, now - 10**12, now - 10**12, now + 10**9, now + 10**9])
    monkeypatch.setattr(lane_module, "time_ns", lambda: next(clock))
    recording = new_recording()
    for number in range(7):
        recording.log({"a": float(number)}, number)
    rows = recording.rows(most=1)  # in several reads
    for _ in range(6):
        rows += recording.rows(most=1)
    times = [row.time for row in rows]
    assert [row.step for row in rows] == list(range(7))
    assert times == sorted(set(times))
    assert times[:5] == [now // 64 * 64 + 64 * i for i in range(5)]
    assert times[5] == (now + 10**9) // 64 * 64


@given(
    st.lists(st.integers(-(1 << 40), (1 << 62) - 1), min_size=1, max_size=50),
    st.integers(0, (1 << 62) - 1),
    st.integers(0, 63),
)
def test_times_are_unique_and_as_near_as_can_be(times, last, lane):
    unique = _unique_times(np.array(times, np.int64), last, lane).tolist()
    assert all(time % 64 == lane for time in unique)
    previous = last
    for given_time, time_found in zip(times, unique, strict=True):
        assert time_found // 64 == max(given_time // 64, previous // 64 + 1)
        previous = time_found
