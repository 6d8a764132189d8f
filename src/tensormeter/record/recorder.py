"""The recorder: routes a log call to the writer for its keys and types.

Threads: any thread may log; each gets a lane of the ring of its own, and threads beyond the number of lanes share the
last one under a lock that is held for a row's write only.
Fork: in a child the recorder records nothing and calls `on_fork`; the parent's ring is never touched from there.
Signals: a handler may log.
Nothing here waits for the agent, a disk, a network or a device, and nothing raises for what is logged: a value that
cannot be recorded is counted, and the first of each key is warned about on the logger `tensormeter`.
"""

import itertools
import logging
import operator
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from tensormeter.errors import UsageError
from tensormeter.record.compilation import break_graph, skip_own_files
from tensormeter.record.device import DeviceCopies
from tensormeter.record.lane import Lane, Writer
from tensormeter.record.reduction import Reduce, Rule
from tensormeter.record.values import DeviceValue, Refused, classify, kind_of
from tensormeter.ring import MAX_LAYOUT, Drop, HeaderWord, Layout, RingFile, State, row_bytes

__all__ = ["Recorder"]

logger: Final = logging.getLogger("tensormeter")

_MAX_KEY_SETS: Final = 4096
"""Beyond so many sets of keys, a row of a new set is written as one row a key, so that key sets need not be bounded."""

_MAX_WARNINGS: Final = 1000
"""Keys warned about; beyond that, drops are only counted."""

_LAST_STEP: Final = (1 << 63) - 1

_LONGEST_NAME: Final = 1024
"""Characters of a metric's name, at most; the server takes no longer ones."""

_STEP_NAME: Final = "tensormeter.step"
"""Taken: the pipeline sends each row's step under this name."""


class Recorder:
    """Writes rows into one ring file."""

    def __init__(
        self,
        ring: RingFile,
        *,
        on_writer: Callable[[Writer], None],
        on_stride: Callable[[], None] = lambda: None,
        on_fork: Writer = lambda values, step=None, *, every=None, reduce=None: None,
    ) -> None:
        """
        Args:
            ring: Created by this process.
            on_writer: Given the writer to call next time, by the thread that owns the first lane, whenever that changes.
            on_stride: Called now and then (every 4 KiB of rows), for slow checks. Must not block.
            on_fork: Called instead of recording, in a forked child, with the arguments of `log`.
        """
        self._ring = ring
        self._on_writer = on_writer
        self._on_stride = on_stride
        self._on_fork = on_fork
        self._local = threading.local()
        # The first lane is for the thread that makes the recorder and never changes hands, because `on_writer` gives its
        # writers away; the last is for all threads beyond the number of lanes; the others are lent while a thread lives.
        last = len(ring.lanes) - 1
        self._lanes = [
            Lane(ring, index, None if index == last else threading.get_ident(), on_stride) for index in range(last + 1)
        ]
        self._free_lanes = self._lanes[last - 1 : 0 : -1]
        self._layout_numbers = itertools.count(1)
        self._layouts: dict[tuple[tuple[str, ...], str], Layout] = {}
        self._last_step = array("q", [-1])
        self._device = DeviceCopies(ring)
        self._rules: list[tuple[str, Rule]] = []
        self._rule_of: dict[str, Rule | None] = {}
        self._warned: set[object] = set()
        self._claims = threading.RLock()  # re-entered by a signal handler that logs
        self._shared = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        self._out_of_graphs = skip_own_files()
        self._local.lease = _Lease(self._lanes[0], None)
        _recorders.add(self)

    @property
    def next_step(self) -> int:
        """The step of the next row that names none: one after the last row's, if there is such an integer."""
        return min(self._last_step[0] + 1, _LAST_STEP)

    def define(self, pattern: str, rule: Rule) -> None:
        """Reduce the values of metrics from now on.

        Args:
            pattern: Name of the metrics; `*`, `?` and `[...]` as in `fnmatch`. The pattern defined last is the one that holds.
            rule: How.

        Raises:
            UsageError: Such a metric has been logged already, perhaps by a writer that someone has kept.
        """
        for names, _ in self._layouts:
            for name in names:
                if fnmatchcase(name, pattern):
                    raise UsageError(f"define_metric({pattern!r}): {name!r} has been logged already; define it before")
        self._rules.insert(0, (pattern, rule))
        self._rule_of.clear()

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Record one row. Never blocks, never raises for what is in `values`.

        Args:
            values: Numbers, or one-element tensors and arrays, by metric name.
            step: Any integer of 64 bits, in any order; one after the last row's if None.
            every: Reduce the values of so many calls to one. None: as `define` says, or not at all.
            reduce: How.
        """
        if self._pid != os.getpid():
            self._on_fork(values, step, every=every, reduce=reduce)
            return
        if self._closed:
            self._warn_once(Drop, "log() after the run was finished: nothing is recorded")
            return
        lane = self._lane()
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        rule = None if every is None else self._call_rule(lane, every, reduce)
        if lane.owner is None:
            with self._shared:
                self._route(lane, values, step, rule)
        else:
            self._route(lane, values, step, rule)

    def close(self, state: State) -> None:
        """Record no more, and tell the reader where each lane ends. Idempotent; rows logged meanwhile may be lost."""
        if self._closed or self._pid != os.getpid():
            return
        self._flush_reductions()
        self._closed = True
        for lane in self._lanes:
            lane.close()
        self._ring.words[HeaderWord.STATE] = state

    def _flush_reductions(self) -> None:
        """Write what is not complete, of all threads, from this one."""
        own = self._lane()
        with self._shared:
            for lane in self._lanes:
                for step, numbers, devices in lane.reductions.flush():
                    self._write_row(own, numbers, devices, step, publish=False)

    def abandon_after_fork(self) -> None:
        """In a forked child: make every writer that anyone kept fall back to `log`, which then refuses."""
        for lane in self._lanes:
            lane.abandon()

    def _lane(self) -> Lane:
        """This thread's lane."""
        try:
            lease: _Lease = self._local.lease
        except AttributeError:
            lease = self._local.lease = self._claim_lane()
        return lease.lane

    def _claim_lane(self) -> "_Lease":
        try:
            lane = self._free_lanes.pop()
        except IndexError:
            return _Lease(self._lanes[-1], None)
        lane.lend(threading.get_ident())
        return _Lease(lane, self._free_lanes)

    def _call_rule(self, lane: Lane, every: int, reduce: str | None) -> Rule | None:
        try:
            return Rule(every, cast("Reduce", reduce or "mean"))
        except UsageError as error:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._warn_once(Rule, "log() does not reduce: %s", error)
            return None

    def _rules_for(self, names: Iterable[str], rule: Rule | None) -> Mapping[str, Rule]:
        """The rules for those of a row's metrics that have one."""
        if rule is not None:
            return dict.fromkeys(names, rule)
        found = {}
        for name in names:
            if name not in self._rule_of:
                self._rule_of[name] = next((rule for pattern, rule in self._rules if fnmatchcase(name, pattern)), None)
            defined = self._rule_of[name]
            if defined is not None:
                found[name] = defined
        return found

    def _route(self, lane: Lane, values: Mapping[str, Any], step: int | None, rule: Rule | None) -> None:
        if not isinstance(cast("object", values), Mapping):
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._warn_once(Mapping, "log() expects a mapping of names to values, got %s", type(values).__name__)
            return
        step = self._step(lane, step)
        numbers: dict[str, float | int] = {}
        devices: dict[str, DeviceValue] = {}
        for key, value in values.items():
            try:
                number = self._classify(key, value)
            except Refused as refusal:
                lane.count(Drop.UNSUPPORTED_VALUE)
                shown = key[:_LONGEST_NAME] if isinstance(key, str) else key
                self._warn_once((shown,), "%r is not recorded: %s", shown, refusal)
                continue
            if isinstance(number, DeviceValue):
                devices[key] = number
            else:
                numbers[key] = number
        if rule is None and not self._rules:
            self._write_row(lane, numbers, devices, step, publish=lane is self._lanes[0])
        else:
            # No writer for such a row may be given away: it would write the next one without reducing it.
            self._write_row(lane, *self._reduce(lane, rule, numbers, devices, step), step, publish=False)

    def _reduce(
        self,
        lane: Lane,
        rule: Rule | None,
        numbers: dict[str, float | int],
        devices: dict[str, DeviceValue],
        step: int,
    ) -> tuple[dict[str, float | int], dict[str, DeviceValue]]:
        """What of a row is to be written now: what has no rule, and what is complete."""
        rules = self._rules_for((*numbers, *devices), rule)
        self._last_step[0] = step
        ready_numbers, ready_devices = lane.reductions.add(
            rules,
            {name: numbers.pop(name) for name in rules if name in numbers},
            {name: devices.pop(name) for name in rules if name in devices},
            step,
        )
        return numbers | ready_numbers, devices | ready_devices

    def _write_row(
        self,
        lane: Lane,
        numbers: dict[str, float | int],
        devices: dict[str, DeviceValue],
        step: int,
        *,
        publish: bool,
    ) -> None:
        if devices:
            self._write_devices(lane, numbers, devices, step)
        elif numbers:
            self._write(lane, numbers, step, publish=publish)

    def _classify(self, key: object, value: Any) -> float | int | DeviceValue:
        if type(key) is not str:
            raise Refused(f"the key is a {type(key).__name__}; use a str")
        if key == _STEP_NAME:
            raise Refused("the name is that of the row's step; use the argument `step`")
        if len(key) > _LONGEST_NAME:
            raise Refused(f"the name has {len(key)} characters; at most {_LONGEST_NAME} are possible")
        try:
            number = classify(value)
            if isinstance(number, DeviceValue):
                self._device.prepare(number.tensor)
        except Refused:
            raise
        except Exception as error:  # whatever the value's own code raises must not stop the program
            raise Refused(f"its value cannot be had ({type(error).__name__}: {error})") from None
        return number

    def _step(self, lane: Lane, step: Any) -> int:
        """The row's step as an int of 64 bits; a step that is none is replaced by the next one, and warned about."""
        if step is None:
            return self.next_step
        try:
            if type(step) is not int:
                number = classify(step)
                if type(number) is float and number.is_integer():
                    number = int(number)
                if isinstance(number, DeviceValue):
                    raise Refused("the step is a tensor on a device; keep the step as an int")
                step = operator.index(cast("int", number))
            if not -(1 << 63) <= step < 1 << 63:
                raise Refused("the step does not fit 64 bits")
        except (Refused, TypeError) as refusal:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._warn_once(State, "the step %s is replaced by %s: %s", type(step).__name__, self.next_step, refusal)
            return self.next_step
        return int(step)

    def _write(self, lane: Lane, numbers: dict[str, float | int], step: int, *, publish: bool) -> None:
        names = tuple(numbers)
        kinds = "".join(map(kind_of, numbers.values()))
        writer = lane.writers.get((names, kinds))
        if writer is None:
            writer = self._new_writer(lane, names, kinds)
            if writer is None:
                self._write_apart(lane, numbers, step, publish=publish)
                return
        size = row_bytes(len(names))
        if lane.cursor[0] + size > lane.cursor[1] and not lane.make_room(size):
            self._full(lane)
            return
        writer(numbers, step)
        if publish and not self._closed:
            self._on_writer(writer)

    def _write_apart(self, lane: Lane, numbers: dict[str, float | int], step: int, *, publish: bool) -> None:
        """One row a value: for rows larger than their lane, and key sets beyond the number that is kept."""
        if len(numbers) > 1:
            for name, number in numbers.items():
                self._write(lane, {name: number}, step, publish=publish)
            return
        self._too_many(lane, next(iter(numbers)))

    def _write_devices(
        self,
        lane: Lane,
        numbers: dict[str, float | int],
        devices: dict[str, DeviceValue],
        step: int,
    ) -> None:
        ordered = sorted(devices.items(), key=lambda item: str(item[1].tensor.device))  # stable: neighbours by device
        tensors = [value.tensor for _, value in ordered]
        codes = "".join("q" if kind_of(number) == "q" else "d" for number in numbers.values()) + "D" * len(ordered)
        layout = self._layout(lane, (*numbers, *(name for name, _ in ordered)), codes)
        if layout is None:
            self._too_many(lane, ordered[0][0], len(codes))
            return
        word = lane.write_pending(layout, list(numbers.values()), step)
        if word is None:
            self._full(lane)
            return
        try:
            self._device.copy(word, tensors)
        except BaseException as error:
            self._device.give_up(word, len(tensors))
            if not isinstance(error, Exception):
                raise
            # CUDA's own errors: the program will meet them again in its own calls.
            self._warn_once(DeviceCopies, "device values are lost: %s", error)
        self._last_step[0] = step

    def _too_many(self, lane: Lane, name: str, number: int = 1) -> None:
        lane.count(Drop.TOO_MANY_LAYOUTS, number)
        self._warn_once(
            Drop.TOO_MANY_LAYOUTS, "%r is not recorded: this process has logged too many different names", name
        )

    def _new_writer(self, lane: Lane, names: tuple[str, ...], kinds: str) -> Writer | None:
        layout = self._layout(lane, names, kinds.replace("i", "d"))
        if layout is None:
            return None
        writer = lane.make_writer(layout, kinds, self.log, self._last_step)
        lane.writers[names, kinds] = writer
        return writer

    def _layout(self, lane: Lane, names: tuple[str, ...], codes: str) -> Layout | None:
        """The layout for a row, made known to the reader; None when there are too many, or the row is too large."""
        if row_bytes(len(names)) > lane.size:
            return None
        layout = self._layouts.get((names, codes))
        if layout is None:
            with self._claims:
                if len(names) > 1 and len(self._layouts) >= _MAX_KEY_SETS:
                    return None
                number = next(self._layout_numbers)
                if number > MAX_LAYOUT:
                    return None
                layout = Layout.of_gauges(number, names, codes)
                if not self._ring.add_layout(layout):
                    return None
                self._layouts[names, codes] = layout
        return layout

    def _full(self, lane: Lane) -> None:
        if self._closed:  # meanwhile, by another thread or a signal handler
            return
        lane.count(Drop.RING_FULL)
        self._warn_once(
            Drop.RING_FULL,
            "the ring of %d bytes is full, rows are dropped: raise TENSORMETER_BUFFER_BYTES, or see whether the agent runs",
            len(self._ring.buffer),
        )

    def _warn_once(self, about: object, message: str, *arguments: object) -> None:
        if about not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(about)
            logger.warning(message, *arguments)


break_graph(Recorder.log)


class _Lease:
    """A thread's hold on a lane. It ends with the thread, whose `threading.local` is then cleared."""

    __slots__ = ("_free", "lane")

    def __init__(self, lane: Lane, free: list[Lane] | None) -> None:
        self.lane = lane
        self._free = free

    def __del__(self) -> None:
        if self._free is not None:
            self._free.append(self.lane)


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork)
