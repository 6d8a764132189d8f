"""Measuring inside functions compiled by `torch.compile`."""

import torch


def test_a_measurement_in_a_compiled_function_is_a_graph_break_and_counts(measured):
    counter = measured.meter.create_counter("calls")
    gauge = measured.meter.create_gauge("sum")

    @torch.compile(backend="eager")
    def step(x):
        y = x * 2
        counter.add(1, {"k": "v"})
        gauge.set(y.sum())
        return y + 1

    for i in range(4):
        assert step(torch.full((3,), float(i))).tolist() == [2.0 * i + 1] * 3
    values = {series.name: series.values.tolist() for series in measured.series()}
    assert values == {"calls": [4], "sum": [0.0, 6.0, 12.0, 18.0]}
