"""Pooling of distributions over several log calls, which merges the values of several `Histogram`s into one distribution.

Pooling adds the counts and sums, and keeps the smallest minimum and the largest maximum. For both `mean` and `sum`, the result
is the distribution of all values. `last` keeps the last distribution. Distributions on a device are pooled there without
waiting.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from tensormeter.record.device.gather import NoGradients
from tensormeter.record.histogram.counting import MOST_ON_DEVICE, DeviceTables, add_explicit, add_exponential
from tensormeter.record.histogram.histogram import CountedOnDevice, DeviceDistribution, HostDistribution
from tensormeter.record.reduction.reduction import Rule
from tensormeter.ring.histogram_buckets import EXPLICIT, Table

if TYPE_CHECKING:
    import torch

__all__ = ["POOLED", "Pools"]

POOLED: Final = ("mean", "sum", "last")
"""Reductions that apply to distributions."""

Ready = dict[str, HostDistribution | CountedOnDevice]


class Pools:
    """The incomplete pools of distributions that one thread has logged. Not thread-safe.

    Each combination of name, rule, kind of buckets, and place of counting (host or device) has a separate pool. If the edges of
    precomputed histograms change, or if a bin would overflow, the incomplete pool is written early.
    """

    def __init__(self, tables: DeviceTables) -> None:
        """
        Args:
            tables: Object that counts distributions on devices.
        """
        self._tables = tables
        self._host: dict[tuple[str, Rule, str], _HostPool] = {}
        self._device: dict[tuple[str, Rule, str], _DevicePool] = {}

    def add(
        self, rules: Mapping[str, Rule], distributions: Mapping[str, HostDistribution | DeviceDistribution], step: int
    ) -> Ready:
        """Add the distributions of a row. Tensors on a device are counted on the current stream, without waiting.

        Returns:
            Distributions of the pools that this row completes. They do not change afterwards.

        Raises:
            Exception: A device reported an error.
        """
        ready: Ready = {}
        devices: dict[str, DeviceDistribution] = {}
        for name, distribution in distributions.items():
            if isinstance(distribution, DeviceDistribution):
                devices[name] = distribution
            else:
                self._add_on_host(ready, name, rules[name], distribution, step)
        if devices:
            self._add_on_devices(ready, rules, devices, step)
        return ready

    def flush(self) -> list[tuple[int, Ready]]:
        """Remove the incomplete pools, and return their distributions so far.

        Returns:
            One row for each pool: the step of its last distribution, and the pooled distribution by name.
        """
        rows: list[tuple[int, Ready]] = [(pool.step, {key[0]: pool.result()}) for key, pool in self._host.items()]
        rows += [(pool.step, {key[0]: pool.result()}) for key, pool in self._device.items()]
        self._host.clear()
        self._device.clear()
        return rows

    def _add_on_host(self, ready: Ready, name: str, rule: Rule, distribution: HostDistribution, step: int) -> None:
        key = (name, rule, distribution.code)
        pool = self._host.get(key)
        if pool is None:
            pool = self._host[key] = _HostPool(distribution)
        elif rule.reduce == "last":
            pool.replace(distribution)
        elif not pool.add(distribution):
            ready[name] = pool.result()
            pool = self._host[key] = _HostPool(distribution)
        pool.calls += 1
        pool.step = step
        if pool.calls == rule.every:
            ready[name] = self._host.pop(key).result()

    def _add_on_devices(
        self, ready: Ready, rules: Mapping[str, Rule], distributions: Mapping[str, DeviceDistribution], step: int
    ) -> None:
        import torch

        def place(item: tuple[str, DeviceDistribution]) -> tuple[str, str]:
            return str(item[1].tensor.device), item[1].table.code

        # Tensors that are created in inference mode cannot be changed outside of it.
        with torch.inference_mode(mode=False), NoGradients():
            for _, group in groupby(sorted(distributions.items(), key=place), place):
                members = dict(group)
                table = next(iter(members.values())).table
                counts, statistics = self._tables.count([member.tensor for member in members.values()], table)
                counted = zip(members.items(), counts.view(-1, table.bins).unbind(), statistics.unbind(), strict=True)
                adding: list[tuple[_DevicePool, torch.Tensor, torch.Tensor]] = []
                for (name, member), own_counts, own_statistics in counted:
                    key, elements = (name, rules[name], table.code), member.tensor.numel()
                    pool = self._device.get(key)
                    if pool is not None and rules[name].reduce != "last" and pool.has_room(elements):
                        adding.append((pool, own_counts, own_statistics))
                        pool.elements += elements
                    else:
                        if pool is not None and rules[name].reduce != "last":
                            ready[name] = pool.result()
                        calls = pool.calls if pool is not None and rules[name].reduce == "last" else 0
                        pool = self._device[key] = _DevicePool(table, own_counts, own_statistics, elements, calls)
                    pool.calls += 1
                    pool.step = step
                _add_counted(adding)
                for name in members:
                    key = (name, rules[name], table.code)
                    if self._device[key].calls == rules[name].every:
                        ready[name] = self._device.pop(key).result()


class _HostPool:
    __slots__ = ("_pooled", "calls", "step")

    def __init__(self, first: HostDistribution) -> None:
        self._pooled = first
        self.calls = 0
        self.step = 0

    def replace(self, distribution: HostDistribution) -> None:
        self._pooled = distribution

    def add(self, distribution: HostDistribution) -> bool:
        """Add a distribution. Return False if its edges are different or a bin would overflow."""
        add = add_explicit if distribution.code == EXPLICIT else add_exponential
        words = add(self._pooled.words, distribution.words)
        if words is None:
            return False
        statistics = _combine(self._pooled.statistics, distribution.statistics)
        self._pooled = HostDistribution(distribution.code, words, statistics)
        return True

    def result(self) -> HostDistribution:
        return self._pooled


class _DevicePool:
    """Counts and statistics on a device, with the stream that computes them."""

    __slots__ = ("_counts", "_statistics", "_stream", "_table", "calls", "elements", "step")

    def __init__(
        self, table: Table, counts: "torch.Tensor", statistics: "torch.Tensor", elements: int, calls: int
    ) -> None:
        self._table = table
        self._counts = counts
        self._statistics = statistics
        self._stream = _current_stream(counts)
        self.elements = elements
        self.calls = calls
        self.step = 0

    def has_room(self, elements: int) -> bool:
        """Return whether this many elements can be added without overflowing a bin."""
        return self.elements + elements <= MOST_ON_DEVICE

    def join_stream(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return counts and statistics for use on the current stream, which waits for the previous stream. The host does not wait."""
        current = _current_stream(self._counts)
        if current is not None and current != self._stream:
            current.wait_stream(self._stream)  # type: ignore[arg-type]
            for tensor in (self._counts, self._statistics):
                tensor.record_stream(current)
            self._stream = current
        return self._counts, self._statistics

    def result(self) -> CountedOnDevice:
        return CountedOnDevice(*self.join_stream(), self._table)


def _add_counted(adding: Sequence[tuple[_DevicePool, "torch.Tensor", "torch.Tensor"]]) -> None:
    """Add new counts and statistics to their pools. This takes four launches, regardless of the number of pools."""
    import torch

    if not adding:
        return
    pools = [pool.join_stream() for pool, _, _ in adding]
    sums, minima, maxima = zip(*(statistics.unbind() for _, statistics in pools), strict=True)
    more, lower, higher = zip(*(statistics.unbind() for _, _, statistics in adding), strict=True)
    torch._foreach_add_([counts for counts, _ in pools], [counts for _, counts, _ in adding])
    torch._foreach_add_(sums, more)
    torch._foreach_minimum_(minima, lower)
    torch._foreach_maximum_(maxima, higher)


def _combine(
    first: tuple[float, float, float] | None, second: tuple[float, float, float] | None
) -> tuple[float, float, float] | None:
    """Combine the statistics of two distributions.

    If the combined sum is NaN, the minimum and maximum are also NaN. A distribution without values has a NaN minimum and
    maximum, which are ignored.
    """
    if first is None or second is None:
        return None
    total, low, high = first[0] + second[0], *first[1:]
    if total != total:  # noqa: PLR0124 - NaN
        return total, total, total
    if low != low:  # noqa: PLR0124
        return total, second[1], second[2]
    return (total, min(low, second[1]), max(high, second[2])) if second[1] == second[1] else (total, low, high)


def _current_stream(tensor: "torch.Tensor") -> "torch.cuda.Stream | None":
    import torch

    return torch.cuda.current_stream(tensor.device) if tensor.device.type == "cuda" else None
