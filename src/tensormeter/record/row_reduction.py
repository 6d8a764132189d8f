"""The reduction of a row's values over several rows, by the rules for their names."""

from tensormeter.record.histogram.histogram import DeviceDistribution, HostDistribution
from tensormeter.record.reduction.reduction import Rule
from tensormeter.record.reduction.rules import Rules
from tensormeter.record.rows.histogram_rows import Distributions
from tensormeter.record.rows.lane import Lane
from tensormeter.record.rows.rows import Rows
from tensormeter.record.values.classify import Deferred, DeviceValue
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.format import Drop

__all__ = ["RowReduction"]


class RowReduction:
    """Passes the values of rows to the reductions of the calling thread's lane. Only that thread may pass the lane."""

    def __init__(self, rules: Rules, rows: Rows, notices: WarnOnce) -> None:
        """
        Args:
            rules: Rules of the process.
            rows: Writer of rows, which counts lost distributions.
            notices: Warnings about values that cannot be reduced.
        """
        self._rules = rules
        self._rows = rows
        self._notices = notices

    def reduce(
        self,
        lane: Lane,
        rule: Rule | None,
        numbers: dict[str, float | int],
        devices: dict[str, DeviceValue | Deferred],
        step: int,
    ) -> tuple[dict[str, float | int], dict[str, DeviceValue | Deferred]]:
        """Return the values to write now: the row's values that have no rule, and the results of completed reductions."""
        rules = self._rules.of((*numbers, *devices), rule)
        reduced: dict[str, DeviceValue] = {}
        for name in rules:
            value = devices.get(name)
            if isinstance(value, DeviceValue):
                reduced[name] = value
                del devices[name]
            elif value is not None:
                self._notices.once(
                    (name, Rule),
                    "recording every value of %r, because device values that arrive later cannot be reduced",
                    name,
                )
        host = {name: numbers.pop(name) for name in rules if name in numbers}
        ready_numbers, ready_devices = lane.reductions.add(rules, host, {}, step)
        try:
            ready_devices = lane.reductions.add(rules, {}, reduced, step)[1]
        except Exception as error:  # a device error, which the program's own CUDA calls will also raise
            lane.count(Drop.DEVICE_UNFINISHED, len(reduced))
            self._notices.once(Rule, "lost device values: %s", error)
        return numbers | ready_numbers, devices | ready_devices

    def pool(
        self,
        lane: Lane,
        rule: Rule | None,
        distributions: dict[str, HostDistribution | DeviceDistribution],
        step: int,
    ) -> Distributions:
        """Return the distributions to write now: the row's distributions that have no rule, and completed pools."""
        rules = self._rules.of(distributions, rule)
        pooled = {name: distributions.pop(name) for name in rules}
        host = {name: value for name, value in pooled.items() if isinstance(value, HostDistribution)}
        devices = {name: value for name, value in pooled.items() if isinstance(value, DeviceDistribution)}
        ready = {**distributions, **lane.pools.add(rules, host, step)}
        try:
            ready |= lane.pools.add(rules, devices, step)
        except Exception as error:
            self._rows.lose(lane, error, len(devices))
        return ready
