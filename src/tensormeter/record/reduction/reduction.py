"""Reduction of values from several log calls to one value. Device values are reduced on their device, without waiting.

If any of the values is NaN, the mean, sum, minimum or maximum is NaN, so that the NaN stays visible.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tensormeter.errors import UsageError, join_choices
from tensormeter.record.device.gather import NoGradients, accumulator_dtype, dtype_order, gather
from tensormeter.record.values.outcomes import DeviceValue

if TYPE_CHECKING:
    import torch

__all__ = ["Reduce", "Reductions", "Rule"]

Reduce = Literal["mean", "min", "max", "sum", "last"]

Numbers = dict[str, float | int]
Devices = dict[str, DeviceValue]


@dataclass(frozen=True)
class Rule:
    """A rule that reduces a fixed number of logged values to one value.

    Attributes:
        every: Number of values that are reduced to one value, at least 1.
        reduce: Reduction: "mean", "min", "max", "sum" or "last".

    Raises:
        UsageError: `every` is not a positive integer, or `reduce` is not one of these reductions.
    """

    every: int
    reduce: Reduce

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise UsageError(f"every: expected a positive integer, got {self.every!r}")
        if self.reduce not in get_args(Reduce):
            raise UsageError(f"reduce: expected {join_choices(*get_args(Reduce))}; got {self.reduce!r}")


class Reductions:
    """The incomplete reductions of values that one thread has logged. Not thread-safe.

    Host values and device values with the same name are reduced separately.
    """

    def __init__(self) -> None:
        self._host: dict[tuple[str, Rule], _HostValues] = {}
        self._device: dict[tuple[str, Rule], _DeviceValues] = {}

    def add(self, rules: Mapping[str, Rule], numbers: Numbers, devices: Devices, step: int) -> tuple[Numbers, Devices]:
        """Add the values of a row.

        Returns:
            Results of the reductions that this row completes. Their tensors do not change afterwards.
        """
        ready: Numbers = {}
        for name, number in numbers.items():
            key = (name, rules[name])
            values = self._host.setdefault(key, _HostValues())
            values.add(number, key[1].reduce, step)
            if values.count == key[1].every:
                ready[name] = self._host.pop(key).result(key[1].reduce)
        return ready, self._add_on_device(rules, devices, step) if devices else {}

    def flush(self) -> list[tuple[int, Numbers, Devices]]:
        """Remove the incomplete reductions, and return their results so far.

        Returns:
            One row for each reduction: the step of its last value, host values by name, and device values by name.
        """
        rows: list[tuple[int, Numbers, Devices]] = []
        for (name, rule), values in self._host.items():
            rows.append((values.step, {name: values.result(rule.reduce)}, {}))
        for (name, rule), pending in self._device.items():
            (tensor,) = _results([pending], rule.reduce)
            rows.append((pending.step, {}, {name: DeviceValue(tensor)}))
        self._host.clear()
        self._device.clear()
        return rows

    def _add_on_device(self, rules: Mapping[str, Rule], devices: Devices, step: int) -> Devices:
        import torch

        ready: Devices = {}
        groups: dict[tuple[torch.device, Rule], list[str]] = {}
        for name, value in devices.items():
            groups.setdefault((value.tensor.device, rules[name]), []).append(name)
        # Tensors that are created in inference mode cannot be changed outside of it.
        with torch.inference_mode(mode=False), NoGradients():
            for (device, rule), names in groups.items():
                names.sort(key=lambda name: dtype_order(devices[name].tensor))
                tensors = _gather([devices[name].tensor for name in names], device)
                ready.update(self._reduce(names, tensors, rule, step))
        return ready

    def _reduce(self, names: Sequence[str], tensors: Sequence["torch.Tensor"], rule: Rule, step: int) -> Devices:
        import torch

        existing = [(self._device[name, rule], tensor)
                    for name, tensor in zip(names, tensors, strict=True) if (name, rule) in self._device]  # fmt: skip
        if existing and rule.reduce != "last":
            totals = [values.join_stream() for values, _ in existing]
            addends = [tensor for _, tensor in existing]
            match rule.reduce:
                case "min":
                    torch._foreach_minimum_(totals, addends)
                case "max":
                    torch._foreach_maximum_(totals, addends)
                case _:
                    torch._foreach_add_(totals, addends)
        for name, tensor in zip(names, tensors, strict=True):
            values = self._device.get((name, rule))
            if values is None:
                self._device[name, rule] = values = _DeviceValues(tensor)
            elif rule.reduce == "last":
                values.replace(tensor)
            values.count += 1
            values.step = step
        complete = [name for name in names if self._device[name, rule].count == rule.every]
        results = _results([self._device.pop((name, rule)) for name in complete], rule.reduce)
        return {name: DeviceValue(tensor) for name, tensor in zip(complete, results, strict=True)}


class _HostValues:
    __slots__ = ("count", "step", "value")

    def __init__(self) -> None:
        self.count = 0
        self.step = 0
        self.value: float | int = 0

    def add(self, number: float, reduce: Reduce, step: int) -> None:
        value = self.value
        if self.count == 0 or reduce == "last":
            self.value = number
        elif reduce == "min":
            self.value = number if number < value or math.isnan(number) else value
        elif reduce == "max":
            self.value = number if number > value or math.isnan(number) else value
        else:
            self.value = value + number
        self.count += 1
        self.step = step

    def result(self, reduce: Reduce) -> float | int:
        return self.value / self.count if reduce == "mean" else self.value


class _DeviceValues:
    """An incomplete reduction of device values: a tensor with shape () and `accumulator_dtype`, and its stream."""

    __slots__ = ("count", "step", "stream", "tensor")

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.count = 0
        self.step = 0
        self.replace(tensor)

    def replace(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor
        self.stream = _current_stream(tensor)

    def join_stream(self) -> "torch.Tensor":
        """Return the tensor for use on the current stream, which waits for the previous stream. The host does not wait."""
        current = _current_stream(self.tensor)
        if current is not None and current != self.stream:
            current.wait_stream(self.stream)  # type: ignore[arg-type]
            self.tensor.record_stream(current)
            self.stream = current
        return self.tensor


def _gather(tensors: Sequence["torch.Tensor"], device: "torch.device") -> list["torch.Tensor"]:
    """Copy tensors, which must be sorted by dtype, to float tensors with shape () (see `gather`)."""
    import torch

    gathered = torch.empty(len(tensors), dtype=accumulator_dtype(device), device=device)
    gather(tensors, gathered)
    return list(gathered.unbind())


def _results(values: Sequence[_DeviceValues], reduce: Reduce) -> list["torch.Tensor"]:
    import torch

    tensors = [value.join_stream() for value in values]
    if reduce != "mean" or not tensors:
        return tensors
    return list(torch._foreach_div(tensors, [float(value.count) for value in values]))


def _current_stream(tensor: "torch.Tensor") -> "torch.cuda.Stream | None":
    import torch

    return torch.cuda.current_stream(tensor.device) if tensor.device.type == "cuda" else None
