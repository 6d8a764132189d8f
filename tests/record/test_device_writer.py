"""The short way of rows with device values: what it takes, what it leaves to the general way, and that both write the same.

The device is the CPU in disguise; the GPU tests go this way too, from the second row of a key set on.
"""

import threading

import numpy as np
import pytest
import torch
from device_rig import Proven

from support.forks import call_in_child
from tensormeter.record import value_reader
from tensormeter.record.device.device_copies import DeviceCopies
from tensormeter.record.log_timing import Stopwatch
from tensormeter.record.reduction.reduction import Rule
from tensormeter.record.rows import rows as rows_module
from tensormeter.record.values.outcomes import DeviceValue
from tensormeter.ring.format import State

CPU = torch.device("cpu")


@pytest.fixture(params=["one launch", "two launches"])
def on_device(request, monkeypatch):
    """Makes of recordings ones that take CPU tensors for a device's. `general` counts values that went the general way."""

    def disguise(recording):
        copies = recording.recorder._device
        copies._host = torch.frombuffer(recording.ring.buffer, dtype=torch.float64)
        copies._mapped[CPU] = Proven(copies._host if request.param == "one launch" else None)
        recording.general = 0

        def count(value):
            recording.general += 1
            return DeviceValue(value) if isinstance(value, torch.Tensor) else classify(value)

        monkeypatch.setattr(value_reader, "classify", count)
        return recording

    classify = value_reader.classify
    monkeypatch.setattr(DeviceCopies, "prepare", lambda self, tensor: None)
    return disguise


@pytest.fixture
def recording(new_recording, on_device):
    return on_device(new_recording())


def row(number=1.0):
    return {
        "lr": 0.5 * number,
        "loss": torch.tensor(number),
        "tokens": int(number),
        "norm": torch.tensor(2 * number, dtype=torch.float64),
        "accuracy": torch.tensor([3 * number]),
        "fp8": torch.tensor(0.5).to(torch.float8_e4m3fn),
        "bf16": torch.tensor(number, dtype=torch.bfloat16, requires_grad=True),
    }


def expected(number=1.0):
    return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row(number).items()}


def test_rows_after_the_first_go_the_short_way(recording):
    for number in range(5):
        recording.log(row(float(number)), number)
    assert recording.general == 7
    assert [recorded_row.values for recorded_row in recording.rows()] == [
        expected(float(number)) for number in range(5)
    ]
    assert recording.log is not recording.recorder.log


def test_keys_may_come_in_another_order(recording):
    recording.log(row())
    recording.log(dict(reversed(row(2.0).items())))
    assert recording.general == 7
    assert recording.values() == [expected(), expected(2.0)]


@pytest.mark.parametrize("steps", [[None, None, 7, None], [5, None, 3, None], [-(1 << 63), None]])
def test_steps_are_those_given_or_the_next_ones(recording, steps):
    for step in steps:
        recording.log({"a": torch.tensor(1.0)}, step)
    assert recording.general == 1
    last, numbers = -1, []
    for step in steps:
        last = last + 1 if step is None else step
        numbers.append(last)
    assert [recorded_row.step for recorded_row in recording.rows()] == numbers


def test_a_step_that_is_none_is_left_to_the_general_way(recording, warnings_logged):
    for step in (0, 1.0, "x", 1 << 63, np.int64(4)):
        recording.log({"a": torch.tensor(1.0)}, step)
    assert [recorded_row.step for recorded_row in recording.rows()] == [0, 1, 2, 3, 4]
    assert recording.dropped("unsupported_value") == 2
    assert [warning.partition(":")[0] for warning in warnings_logged()] == [
        "replaced an invalid step with 2",
        "replaced an invalid step with 3",
    ]


def test_the_largest_step_repeats(recording):
    for step in ((1 << 63) - 1, None):
        recording.log({"a": torch.tensor(1.0)}, step)
    assert [recorded_row.step for recorded_row in recording.rows()] == [(1 << 63) - 1] * 2


OTHERS = {
    "another key": lambda values: values | {"other": torch.tensor(1.0)},
    "a key less": lambda values: {name: value for name, value in values.items() if name != "loss"},
    "a key instead": lambda values: {("l" if name == "loss" else name): value for name, value in values.items()},
    "another dtype": lambda values: values | {"loss": torch.tensor(1, dtype=torch.int32)},
    "a parameter": lambda values: values | {"loss": torch.nn.Parameter(torch.tensor(1.0))},
    "a number for a tensor": lambda values: values | {"loss": 1.0},
    "a tensor for a number": lambda values: values | {"lr": torch.tensor(1.0)},
    "an int for a float": lambda values: values | {"lr": 1},
    "a float for an int": lambda values: values | {"tokens": 1.5},
    "a large int": lambda values: values | {"tokens": (1 << 53) + 1},
    "a huge int": lambda values: values | {"tokens": 1 << 70},
    "a bool": lambda values: values | {"tokens": True},
    "a NumPy scalar": lambda values: values | {"lr": np.float64(1.0)},
}


REMEMBERED = {
    "another dtype",
    "a number for a tensor",
    "a tensor for a number",
    "an int for a float",
    "a float for an int",
    "a large int",
}
"""Rows of the same keys that go the short way next time, in the place of those before."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_rows_go_the_general_way(recording, name):
    different = OTHERS[name](row(2.0))
    for values in (row(), different, row(3.0)):
        recording.log(values)
    before = recording.general
    assert before == 7 + len(different) + (7 if name in REMEMBERED else 0)
    recording.log(row(4.0))
    assert recording.general == before
    expected_values = {
        key: value.item() if isinstance(value, torch.Tensor) else value for key, value in different.items()
    }
    assert recording.values() == [expected(), expected_values, expected(3.0), expected(4.0)]


def test_values_that_cannot_be_recorded_are_refused(new_recording, on_device, warnings_logged, monkeypatch):
    recording = on_device(new_recording())
    recording.log({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    monkeypatch.undo()  # the general way knows CPU tensors again, and looks at them
    wrong = [print, torch.tensor(1j), torch.tensor(1.0).to_sparse(), torch.ones(0), object()]
    for value in wrong:
        recording.log({"a": torch.tensor(2.0), "b": value})
    torch.vmap(lambda x: recording.log({"a": torch.tensor(2.0), "b": x}) or x)(torch.ones(1))
    assert recording.values() == [{"a": 1.0, "b": 1.0}] + [{"a": 2.0}] * 6
    assert recording.dropped("unsupported_value") == 6
    assert len(warnings_logged()) == 1


def test_alternating_key_sets_each_go_the_short_way(recording):
    for number in range(6):
        recording.log({"a": torch.tensor(float(number))}, number)
        recording.log({"b": torch.tensor(float(number)), "c": 1.0}, number)
        recording.log({"d": 1.0}, number)
    assert recording.general == 1 + 2 + 1
    assert [len(recorded_row.values) for recorded_row in recording.rows()] == [1, 2, 1] * 6


def test_each_thread_has_its_own_writer(recording):
    def log():
        for number in range(5):
            recording.log({"a": torch.tensor(float(number))}, number)

    recording.log({"a": torch.tensor(9.0)}, 9)
    thread = threading.Thread(target=log)
    thread.start()
    thread.join(60)
    assert recording.general == 2
    assert [(recorded_row.lane, recorded_row.values["a"]) for recorded_row in recording.rows()] == [
        (0, 9.0),
        *((lane, float(number)) for lane, number in zip([1] * 5, range(5), strict=True)),
    ]


def test_key_sets_are_not_remembered_for_ever(recording, monkeypatch):
    monkeypatch.setattr(rows_module, "_MOST_DEVICE_WRITERS", 4)
    for number in range(10):
        recording.log({f"a{number}": torch.tensor(1.0)})
        assert len(recording.recorder._lanes.first.device_writers) <= 4
    assert len(recording.values()) == 10


def test_reductions_go_before_the_short_way(recording):
    recording.recorder.define("mean", Rule(2, "mean"))
    for number in range(4):
        recording.log({"a": torch.tensor(float(number))})
        recording.log({"b": torch.tensor(float(number))}, every=2)
        recording.log({"mean": torch.tensor(float(number))})
    rows = [rows.values for rows in recording.rows()]
    assert [values["mean"] for values in rows if "mean" in values] == [0.5, 2.5]
    assert [values["b"] for values in rows if "b" in values] == [0.5, 2.5]
    assert len(rows) == 4 + 2 + 2


def test_a_reduced_row_between_others_is_reduced_alone(recording):
    for number in range(4):
        recording.log({"a": torch.tensor(float(number))})
        recording.log({"a": torch.tensor(float(number))}, every=2, reduce="max")
    assert [recorded_row.values["a"] for recorded_row in recording.rows()] == [0.0, 1.0, 1.0, 2.0, 3.0, 3.0]


def test_a_full_ring_drops_rows_and_counts_them(new_recording, on_device, warnings_logged):
    recording = on_device(new_recording(buffer_bytes=1 << 14, lanes=1))
    for number in range(1000):
        recording.log({"a": torch.tensor(float(number))}, number)
    rows = recording.rows()
    assert [row.values["a"] for row in rows] == [float(number) for number in range(len(rows))]
    assert recording.dropped("ring_full") == 1000 - len(rows) > 0
    assert len(warnings_logged()) == 1
    recording.log({"a": torch.tensor(-1.0)}, 0)
    assert recording.values() == [{"a": -1.0}]


def test_a_failing_device_loses_its_values_only(recording, monkeypatch, warnings_logged):
    recording.log({"a": torch.tensor(1.0), "n": 1.0})

    def fail(*_):
        raise RuntimeError("CUDA error")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceCopies, "copy_tensors", fail)
        recording.log({"a": torch.tensor(2.0), "n": 2.0})
    recording.log({"a": torch.tensor(3.0), "n": 3.0})
    assert recording.values() == [{"a": 1.0, "n": 1.0}, {"a": None, "n": 2.0}, {"a": 3.0, "n": 3.0}]
    assert warnings_logged() == ["lost device values: CUDA error"]


def test_an_error_inside_torch_does_not_stop_the_program(recording, monkeypatch):
    """After an error that CUDA does not forget, every call of it fails. Here it is another one of torch that does."""
    wrapped, broken = torch._C._functorch.is_functorch_wrapped_tensor, []

    def is_wrapped(value):
        if broken:
            raise RuntimeError("CUDA error")
        return wrapped(value)

    monkeypatch.setattr(torch._C._functorch, "is_functorch_wrapped_tensor", is_wrapped)
    recording.log({"a": torch.tensor(1.0)})
    recording.log({"a": torch.tensor(2.0)})
    assert recording.general == 1
    broken.append(True)
    recording.log({"a": torch.tensor(3.0)})
    assert recording.general == 2
    assert recording.values() == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]


def test_an_interrupt_loses_the_values_of_its_row_only(recording, monkeypatch):
    recording.log({"a": torch.tensor(1.0)})

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeviceCopies, "copy_tensors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recording.log({"a": torch.tensor(2.0)})
    recording.log({"a": torch.tensor(3.0)})
    assert recording.values() == [{"a": 1.0}, {"a": None}, {"a": 3.0}]


def test_a_kept_writer_records_nothing_after_the_end(recording, warnings_logged):
    recording.log({"a": torch.tensor(1.0)})
    kept = recording.log
    recording.recorder.close(State.FINISHED)
    kept({"a": torch.tensor(2.0)})
    assert recording.values() == [{"a": 1.0}]
    (message,) = warnings_logged()
    assert "after the run finished" in message


def test_a_forked_child_hands_its_row_on(new_recording, on_device):
    recording = on_device(new_recording())
    recording.log({"a": torch.tensor(1.0)})
    kept, forked = recording.log, []
    recording.recorder._on_fork = lambda values, step, **_: forked.append(values)
    assert call_in_child(lambda: kept({"a": torch.tensor(2.0)}) or len(forked)) == "1"
    assert recording.values() == [{"a": 1.0}]


def test_a_slow_call_is_warned_about(recording, monkeypatch, warnings_logged):
    recording.log({"a": torch.tensor(1.0)})
    monkeypatch.setattr("tensormeter.record.log_timing._SLOW", -1)
    monkeypatch.setattr("tensormeter.record.warn_once._NUMBER_NS", 1 << 62)
    monkeypatch.setattr(Stopwatch, "waited", False)
    recording.log({"a": torch.tensor(2.0)})
    assert recording.general == 1
    (message,) = warnings_logged()
    assert message.startswith("log() of 'a' took")


def test_calls_are_timed(recording):
    for _ in range(10):
        recording.log({"a": torch.tensor(1.0)})
    counts = recording.ring.words[recording.recorder._cost._start + 1 :][:64]
    assert sum(counts.tolist()) == 10
