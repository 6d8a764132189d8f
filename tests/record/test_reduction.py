"""Reductions over steps: on the host through the recorder, on the device by driving the same code with CPU tensors."""

import math
from pathlib import Path

import pytest

from support.optional import has_cuda, torch
from tensormeter.errors import UsageError
from tensormeter.record.reduction.reduction import Reductions, Rule
from tensormeter.record.values.classify import DeviceValue
from tensormeter.ring.format import State

VALUES = [3.0, -1.0, 7.5, 2.0]
REDUCED = {"mean": 2.875, "min": -1.0, "max": 7.5, "sum": 11.5, "last": 2.0}


@pytest.mark.parametrize(("reduce", "result"), REDUCED.items())
def test_every_four_values_become_one(recording, reduce, result):
    for step, value in enumerate(VALUES * 3):
        recording.log({"loss": value, "n": step}, step, every=4, reduce=reduce)
    rows = recording.rows()
    assert [row.step for row in rows] == [3, 7, 11]
    assert [row.values["loss"] for row in rows] == [result] * 3


def test_mean_is_the_default_and_the_rest_comes_at_the_end(recording):
    for step, value in enumerate([*VALUES, 10.0, 20.0]):
        recording.log({"loss": value}, step, every=4)
    recording.recorder.close(State.FINISHED)
    assert [(row.step, row.values) for row in recording.rows()] == [(3, {"loss": 2.875}), (5, {"loss": 15.0})]


@pytest.mark.parametrize("reduce", ["mean", "min", "max", "sum"])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_nan_survives_each_reduction(recording, reduce, position):
    values = VALUES.copy()
    values[position] = math.nan
    for step, value in enumerate(values):
        recording.log({"loss": value}, step, every=4, reduce=reduce)
    (row,) = recording.rows()
    assert math.isnan(row.values["loss"])


def test_integers_stay_integers_where_the_reduction_allows_it(recording):
    for step in range(2):
        recording.log({"big": 1 << 60}, step, every=2, reduce="sum")
        recording.log({"last": (1 << 60) + step}, step, every=2, reduce="last")
    assert [row.values for row in recording.rows()] == [{"big": 1 << 61}, {"last": (1 << 60) + 1}]


def test_definitions_hold_where_the_call_says_nothing(recording, warnings_logged):
    define = recording.recorder.define
    define("train/*", Rule(2, "mean"))
    define("train/lr", Rule(1, "last"))
    for step in range(4):
        recording.log({"train/loss": float(step), "train/lr": 0.1, "other": 1.0}, step)
        recording.log({"train/loss": float(step)}, step, every=4, reduce="max")
    assert [(row.step, row.values) for row in recording.rows()] == [
        (0, {"other": 1.0, "train/lr": 0.1}),
        (1, {"other": 1.0, "train/loss": 0.5, "train/lr": 0.1}),
        (2, {"other": 1.0, "train/lr": 0.1}),
        (3, {"other": 1.0, "train/loss": 2.5, "train/lr": 0.1}),
        (3, {"train/loss": 3.0}),
    ]
    assert warnings_logged() == []


def test_a_metric_is_defined_before_it_is_logged(recording):
    recording.log({"train/loss": 1.0}, 0)
    with pytest.raises(UsageError, match=r"'train/loss' has already been logged; define it before its first log call"):
        recording.recorder.define("train/*", Rule(2, "mean"))
    recording.recorder.define("eval/*", Rule(2, "mean"))


def test_a_reduction_that_makes_no_sense_warns_once_and_records_each_value(recording, warnings_logged):
    for step in range(2):
        recording.log({"loss": 1.0}, step, every=0)
        recording.log({"loss": 2.0}, step, every=2, reduce="median")
    assert [row.values for row in recording.rows()] == [{"loss": 1.0}, {"loss": 2.0}] * 2
    (warning,) = warnings_logged()
    assert "every: expected a positive integer, got 0" in warning
    assert recording.ring.drops() == {"unsupported_value": 4}
    with pytest.raises(UsageError, match="reduce: expected mean, min, max, sum or last; got 'median'"):
        Rule(2, "median")


def test_a_kept_writer_reduces_too(recording):
    recording.log({"loss": 0.0}, 0)
    kept = recording.log
    for step in range(1, 5):
        kept({"loss": float(step)}, step, every=2)
    assert [row.values["loss"] for row in recording.rows()] == [0.0, 1.5, 3.5]


def on_device(values, rule, reductions=None):
    """The results for values of one name, as floats."""
    reductions = reductions or Reductions()
    results = []
    for step, value in enumerate(values):
        numbers, devices = reductions.add({"x": rule}, {}, {"x": DeviceValue(value)}, step)
        assert numbers == {}
        results += [ready.tensor.item() for ready in devices.values()]
    return results


@pytest.mark.parametrize(("reduce", "result"), REDUCED.items())
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_tensors_reduce_as_floats_do(reduce, result, dtype):
    values = [torch.tensor(value, dtype=getattr(torch, dtype)) for value in VALUES * 2]
    assert on_device(values, Rule(4, reduce)) == [result] * 2


def test_many_names_dtypes_and_shapes_in_one_row():
    reductions = Reductions()
    rules = {"a": Rule(2, "mean"), "b": Rule(2, "mean"), "c": Rule(3, "max"), "d": Rule(2, "mean")}
    results = []
    for step in range(6):
        row = {
            "a": torch.tensor(float(step)),
            "b": torch.tensor([step], dtype=torch.int64),
            "c": torch.nn.Parameter(torch.tensor(float(-step))),
            "d": torch.tensor(step % 2 == 0),
        }
        devices = {name: DeviceValue(tensor) for name, tensor in row.items()}
        _, ready = reductions.add(rules, {}, devices, step)
        results.append({name: value.tensor.item() for name, value in ready.items()})
    assert results == [
        {},
        {"a": 0.5, "b": 0.5, "d": 0.5},
        {"c": 0.0},
        {"a": 2.5, "b": 2.5, "d": 0.5},
        {},
        {"a": 4.5, "b": 4.5, "c": -3.0, "d": 0.5},
    ]


def test_later_changes_of_a_tensor_do_not_matter():
    reductions, rule, running = Reductions(), Rule(3, "sum"), torch.zeros(())
    results = []
    for step in range(3):
        running += 1
        _, ready = reductions.add({"x": rule}, {}, {"x": DeviceValue(running)}, step)
        results += ready.values()
    running.zero_()
    assert [ready.tensor.item() for ready in results] == [6.0]


def test_grad_and_inference_mode_make_no_difference():
    rule, reductions = Rule(4, "mean"), Reductions()
    weight = torch.tensor(2.0, requires_grad=True)
    assert on_device([weight * 1], rule, reductions) == []
    with torch.inference_mode():
        assert on_device([torch.tensor(4.0)], rule, reductions) == []
    assert on_device([weight * 3], rule, reductions) == []
    with torch.inference_mode():
        (result,) = on_device([torch.tensor(8.0)], rule, reductions)
    assert result == 5.0
    assert torch.is_grad_enabled()
    weight.sum().backward()
    assert weight.grad == 1.0


def test_incomplete_device_values_are_flushed():
    reductions = Reductions()
    assert on_device([torch.tensor(1.0), torch.tensor(2.0)], Rule(10, "mean"), reductions) == []
    ((step, numbers, devices),) = reductions.flush()
    assert (step, numbers, devices["x"].tensor.item()) == (1, {}, 1.5)
    assert reductions.flush() == []


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")
def test_reducing_on_a_gpu_does_not_synchronize(new_recording):
    recording = new_recording(folder=Path("/dev/shm"))
    values = [torch.tensor(value, device="cuda") for value in VALUES * 4]
    recording.log({"warm": values[0]}, -1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, value in enumerate(values):
            recording.log({"mean": value, "host": 1.0}, step, every=4)
            recording.log({"max": value}, step, every=4, reduce="max")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    rows = [row.values for row in recording.rows()][1:]
    assert rows == [{"host": 1.0, "mean": 2.875}, {"max": 7.5}] * 4
