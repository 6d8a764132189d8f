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
import reprlib
import struct
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, cast

from tensormeter.errors import UsageError
from tensormeter.record.compilation import break_graph, skip_own_files
from tensormeter.record.cost import LogCost, Stopwatch
from tensormeter.record.device import DeviceCopies, place
from tensormeter.record.histogram import DeviceDistribution, Histogram, HostDistribution
from tensormeter.record.lane import Lane, Writer
from tensormeter.record.measurement import StreamWriter
from tensormeter.record.media import Media, Parcel
from tensormeter.record.outbox import Outbox
from tensormeter.record.reduction import Reduce, Rule
from tensormeter.record.values import Deferred, DeviceValue, Refused, classify, kind_of
from tensormeter.record.wide import Distributions, WideRows
from tensormeter.ring import MAX_LAYOUT, Column, Drop, HeaderWord, Layout, RingFile, State, Stream, row_bytes

__all__ = ["Chore", "Recorder"]

logger: Final = logging.getLogger("tensormeter")

_MAX_KEY_SETS: Final = 4096
"""Beyond so many sets of keys, a row of a new set is written as one row a key, so that key sets need not be bounded."""

_MAX_WIDE_SETS: Final = 64
"""The same for rows with distributions, whose layouts take hundreds of bytes for each: of a model with experts, say, every
row may have gradients of others."""

_MAX_WARNINGS: Final = 1000
"""Keys warned about; beyond that, drops are only counted."""

_NAMES_SHOWN: Final = 5


_NOT_FOR_STREAMS: Final = 1 / 4
"""Share of the ring's dictionary that streams of instruments leave to rows."""

_LAST_STEP: Final = (1 << 63) - 1

_SETTLE_TIMEOUT: Final = 5.0
"""Seconds that `close` waits for values which this process has to fill in itself."""
_LONGEST_NAME: Final = 1024
"""Characters of a metric's name, at most; the server takes no longer ones."""

_STEP_NAME: Final = "tensormeter.step"
"""Taken: the pipeline sends each row's step under this name."""


class Chore(Protocol):
    """Something small that log calls do beside their own row. Called on every thread that logs; never blocks or raises."""

    def __call__(self) -> None: ...


class Recorder:
    """Writes rows into one ring file."""

    def __init__(
        self,
        ring: RingFile,
        *,
        on_writer: Callable[[Writer], None],
        on_stride: Callable[[], None] = lambda: None,
        media_buffer_bytes: int = 64 << 20,
        on_fork: Writer = lambda values, step=None, *, every=None, reduce=None: None,
    ) -> None:
        """
        Args:
            ring: Created by this process.
            on_writer: Given the writer to call next time, by the thread that owns the first lane, whenever that changes.
            media_buffer_bytes: Of tables, images and texts that may wait for the agent.
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
        self._wide_layouts: dict[tuple[Column, ...], Layout] = {}
        self._last_step = array("q", [-1])
        self._device = DeviceCopies(ring, self._warn_of_lost_value)
        self._chores: list[Chore] = []
        self._last_chores: list[Chore] = []
        self._cost = LogCost(ring)
        self._outbox = Outbox(ring, media_buffer_bytes)
        self._stream_layouts: dict[tuple[StreamWriter, str], Layout] = {}
        self._wide = WideRows(self._device, self._distribution_layout, self._lose)
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

    @property
    def device_paths(self) -> dict[str, str]:
        """How values of each CUDA device in use reach the ring: see `DeviceCopies.paths`."""
        return self._device.paths

    def attend(self, chore: Chore, *, at_close: Chore) -> None:
        """Do something in every log call from now on. Log calls then cost a few microseconds instead of less than one.

        Args:
            chore: Called by each `log`, on its thread, before its row.
            at_close: Called once by `close`, before the lanes are closed. May wait for seconds, no longer.
        """
        self._last_chores.append(at_close)
        self._chores.append(chore)
        self._on_writer(self.log)  # no writer generated for the keys in use may be called in its place

    def count_lost(self, reason: Drop, number: int, message: str, *arguments: object) -> None:
        """Count what could not be recorded, and warn once for each message. In a forked child it only warns."""
        if self._pid == os.getpid():
            self._lane().count(reason, number)
        self._warn_once(message, message, *arguments)

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
        watch, layouts = Stopwatch(), len(self._layouts)
        self._log(values, step, every, reduce)
        watch.stop()
        self._cost.add(watch.duration)
        if watch.slow and len(self._layouts) == layouts and isinstance(cast("object", values), Mapping):
            self._warn_slow(values, watch)

    def _log(self, values: Mapping[str, Any], step: int | None, every: int | None, reduce: str | None) -> None:
        if self._closed:
            self._warn_once(Drop, "log() after the run was finished: nothing is recorded")
            return
        lane = self._lane()
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        for chore in self._chores:
            chore()
        rule = None if every is None else self._call_rule(lane, every, reduce)
        if lane.owner is None:
            with self._shared:
                self._route(lane, values, step, rule)
        else:
            self._route(lane, values, step, rule)

    def record(self, stream: StreamWriter, value: Any) -> int | None:
        """Record one measurement of an instrument, as a row of its own. Never blocks, never raises for the value.

        Nothing is recorded in a forked child, nor after `close`: the stream finds the recorder to use.

        Returns:
            The word of the ring that a device will store the value in; None if it is no device's value, or not recorded.
        """
        if self._closed or self._pid != os.getpid():
            return None
        lane = self._lane()
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        if lane.owner is None:
            with self._shared:
                return self._measure(lane, stream, value)
        return self._measure(lane, stream, value)

    @property
    def positions(self) -> list[int]:
        """How far each lane has been written, in bytes over all laps: what a reader's TAIL words reach."""
        return [lane.position for lane in self._lanes]

    def log_beside(self, values: Mapping[str, Any]) -> None:
        """`log` at the next row's step, and leave that step to the next row."""
        last = self._last_step[0]
        self.log(values)
        self._last_step[0] = last

    def gauge_row(self, streams: Sequence[Stream]) -> Layout | None:
        """The layout of a row of gauges with attributes and units; None if there can be no more, which is counted."""
        if self._pid != os.getpid() or self._closed:
            return None
        layout = self._wide_layout([Column(stream, "d") for stream in streams])
        if layout is None:
            self._too_many(self._lane(), streams[0].name, len(streams))
        return layout

    def write_gauges(self, layout: Layout, values: Sequence[float], step: int) -> None:
        """Record a row of floats; it does not count for the steps of rows that name none. As silent as `log`."""
        if self._pid != os.getpid() or self._closed:
            return
        lane = self._lane()
        words = struct.pack(f"<{len(values)}d", *values)
        if lane.owner is None:
            with self._shared:
                written = lane.write_words(layout, words, step)
        else:
            written = lane.write_words(layout, words, step)
        if written is None:
            self._full(lane)

    def close(self, state: State) -> None:
        """Record no more, and tell the reader where each lane ends. Idempotent; rows logged meanwhile may be lost."""
        if self._closed or self._pid != os.getpid():
            return
        try:
            self._flush_reductions()
            for chore in self._last_chores:
                chore()
        except Exception as error:  # of a device; the rows before it are safe, and the run ends all the same
            self._warn_once(DeviceCopies, "device values are lost: %s", error)
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
        devices: dict[str, DeviceValue | Deferred] = {}
        distributions: dict[str, HostDistribution | DeviceDistribution] = {}
        for key, value in values.items():
            if isinstance(value, Media):
                self._keep(lane, key, value, step)
                continue
            try:
                number = self._classify(key, value, rule)
            except Refused as refusal:
                lane.count(Drop.UNSUPPORTED_VALUE)
                shown = key[:_LONGEST_NAME] if isinstance(key, str) else key
                self._warn_once((shown,), "%r is not recorded: %s", shown, refusal)
                continue
            if isinstance(number, (DeviceValue, Deferred)):
                devices[key] = number
            elif isinstance(number, HostDistribution | DeviceDistribution):
                distributions[key] = number
            else:
                numbers[key] = number
        if distributions:
            if rule is not None or self._rules:
                numbers, devices = self._reduce(lane, rule, numbers, devices, step)
            self._write_distributions(lane, numbers, devices, distributions, step)
        elif rule is None and not self._rules:
            self._write_row(lane, numbers, devices, step, publish=lane is self._lanes[0])
        else:
            # No writer for such a row may be given away: it would write the next one without reducing it.
            self._write_row(lane, *self._reduce(lane, rule, numbers, devices, step), step, publish=False)

    def alert(self, parcel: Parcel) -> None:
        """Record an alert at the last row's step. As silent as `log`."""
        if self._closed or self._pid != os.getpid():
            return
        step = self._last_step[0]
        self._send(self._lane(), parcel, None, step if step >= 0 else None)

    def _keep(self, lane: Lane, key: object, media: Media, step: int) -> None:
        try:
            if type(key) is not str:
                raise Refused(f"the key is a {type(key).__name__}; use a str")
            parcel = media.pack()
        except Refused as refusal:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._warn_once((key,), "%r is not recorded: %s", key, refusal)
            return
        self._send(lane, parcel, key, step)
        self._last_step[0] = step

    def _send(self, lane: Lane, parcel: Parcel, key: str | None, step: int | None) -> None:
        try:
            if self._outbox.put(parcel, key, step):
                return
            reason = "too much waits for the agent already; log less at once, or raise TENSORMETER_MEDIA_BUFFER_BYTES"
        except OSError as error:
            reason = f"it cannot be written beside the ring ({error.strerror})"
        lane.count(Drop.MEDIA_FULL)
        self._warn_once(Drop.MEDIA_FULL, "%r is not recorded: %s", key or parcel.event, reason)

    def _reduce(
        self,
        lane: Lane,
        rule: Rule | None,
        numbers: dict[str, float | int],
        devices: dict[str, DeviceValue | Deferred],
        step: int,
    ) -> tuple[dict[str, float | int], dict[str, DeviceValue | Deferred]]:
        """What of a row is to be written now: what has no rule, and what is complete."""
        rules = self._rules_for((*numbers, *devices), rule)
        self._last_step[0] = step
        reduced: dict[str, DeviceValue] = {}
        for name in rules:
            value = devices.get(name)
            if isinstance(value, DeviceValue):
                reduced[name] = value
                del devices[name]
            elif value is not None:
                self._warn_once((name, Rule), "%r is recorded each time: a value that comes later is not reduced", name)
        host = {name: numbers.pop(name) for name in rules if name in numbers}
        ready_numbers, ready_devices = lane.reductions.add(rules, host, {}, step)
        try:
            ready_devices = lane.reductions.add(rules, {}, reduced, step)[1]
        except Exception as error:  # of a device: the program will meet it again in its own calls
            lane.count(Drop.DEVICE_UNFINISHED, len(reduced))
            self._warn_once(Rule, "device values are lost: %s", error)
        return numbers | ready_numbers, devices | ready_devices

    def _write_row(
        self,
        lane: Lane,
        numbers: dict[str, float | int],
        devices: Mapping[str, DeviceValue | Deferred],
        step: int,
        *,
        publish: bool,
    ) -> None:
        if devices:
            self._write_devices(lane, numbers, devices, step)
        elif numbers:
            self._write(lane, numbers, step, publish=publish)

    def _write_distributions(
        self,
        lane: Lane,
        numbers: Mapping[str, float | int],
        devices: Mapping[str, DeviceValue | Deferred],
        distributions: Distributions,
        step: int,
    ) -> None:
        """One row, or as many as the lane's size asks for; the first holds what is no distribution."""
        for group in self._wide.split(lane, len(numbers) + len(devices), distributions):
            written = self._wide.write(lane, numbers, devices, group, step)
            if written is None and (len(group) > 1 or numbers or devices):
                self._write_row(lane, dict(numbers), dict(devices), step, publish=False)
                for name, distribution in group.items():
                    self._write_distributions(lane, {}, {}, {name: distribution}, step)
            elif written is None:
                lane.count(Drop.TOO_MANY_LAYOUTS)
                self._warn_once(
                    WideRows,
                    "%r is not recorded: the ring of %d bytes is too small for such a distribution, or for so many different "
                    "names: raise TENSORMETER_BUFFER_BYTES",
                    next(iter(group)),
                    len(self._ring.buffer),
                )
            elif not written:
                self._full(lane)
            elif devices:
                self._attend_pending()
            numbers, devices = {}, {}
        self._last_step[0] = step

    def _classify(
        self, key: object, value: Any, rule: Rule | None
    ) -> float | int | DeviceValue | Deferred | HostDistribution | DeviceDistribution:
        if type(key) is not str:
            raise Refused(f"the key is a {type(key).__name__}; use a str")
        if key == _STEP_NAME:
            raise Refused("the name is that of the row's step; use the argument `step`")
        if len(key) > _LONGEST_NAME:
            raise Refused(f"the name has {len(key)} characters; at most {_LONGEST_NAME} are possible")
        try:
            if isinstance(value, Histogram):
                if self._rules_for((key,), rule):
                    raise Refused("a Histogram is not reduced over steps; log it without `every`")
                distribution = value.reduce()
                if isinstance(distribution, DeviceDistribution):
                    self._device.prepare(distribution.tensor)
                return distribution
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
                if isinstance(number, (DeviceValue, Deferred)):
                    raise Refused("the step is still being computed by a device; keep the step as an int")
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
        if publish and not self._closed and not self._chores:
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
        devices: Mapping[str, DeviceValue | Deferred],
        step: int,
    ) -> None:
        ordered = sorted(devices.items(), key=lambda item: place(item[1]))
        codes = "".join("q" if kind_of(number) == "q" else "d" for number in numbers.values()) + "D" * len(ordered)
        layout = self._layout(lane, (*numbers, *(name for name, _ in ordered)), codes)
        if layout is None:
            self._too_many(lane, ordered[0][0], len(codes))
            return
        if self._write_copies(lane, layout, list(numbers.values()), [value for _, value in ordered], step) is not None:
            self._last_step[0] = step

    def _write_copies(
        self,
        lane: Lane,
        layout: Layout,
        values: list[float],
        devices: Sequence[DeviceValue | Deferred],
        step: int,
    ) -> int | None:
        """Write a row whose last values come from devices; returns the word of the first of those."""
        word = lane.write_pending(layout, values, step)
        if word is None:
            self._full(lane)
            return None
        try:
            self._device.copy(word, devices)
            self._attend_pending()
        except BaseException as error:
            self._device.give_up(word, len(devices))
            if not isinstance(error, Exception):
                raise
            self._lose(error, 0)  # the reader counts them
        return word

    def _measure(self, lane: Lane, stream: StreamWriter, value: Any) -> int | None:
        try:
            number = self._classify(stream.name, value, None)
            if isinstance(number, (DeviceDistribution, HostDistribution)):
                raise Refused("an instrument takes one value at a time; log a Histogram with `run.log`")
            if not isinstance(number, (DeviceValue, Deferred)):
                stream.check(number)
        except Refused as refusal:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._warn_once((stream.name,), "%r is not recorded: %s", stream.name, refusal)
            return None
        code = "D" if isinstance(number, (DeviceValue, Deferred)) else "d" if type(number) is float else "q"
        layout = self._stream_layout(stream, code)
        if layout is None:
            self._too_many(lane, stream.name)
        elif isinstance(number, (DeviceValue, Deferred)):
            return self._write_copies(lane, layout, [], [number], 0)
        else:
            self._write_measurement(lane, stream, layout, number)
        return None

    def _write_measurement(self, lane: Lane, stream: StreamWriter, layout: Layout, number: float) -> None:
        code = layout.codes
        writer = lane.writers.get((stream, code))
        if writer is None:
            writer = lane.writers[stream, code] = lane.make_writer(layout, code, stream.fall_back, array("q", [0]))
        size = layout.row_bytes
        if lane.cursor[0] + size > lane.cursor[1] and not lane.make_room(size):
            self._full(lane)
            return
        writer({stream.name: number}, 0)
        if lane is self._lanes[0] and not self._closed:
            stream.use(code, writer)

    def _stream_layout(self, stream: StreamWriter, code: str) -> Layout | None:
        layout = self._stream_layouts.get((stream, code))
        if layout is None and self._ring.dictionary_left > _NOT_FOR_STREAMS:
            layout = self._add_layout((Column(stream.stream, code),), stepped=False)
            if layout is not None:
                self._stream_layouts[stream, code] = layout
        return layout

    def _attend_pending(self) -> None:
        if len(self._device.pending) and self._device.pending.look not in self._chores:
            self.attend(self._device.pending.look, at_close=self._settle)

    def _settle(self) -> None:
        self._device.pending.settle(_SETTLE_TIMEOUT)

    def _warn_of_lost_value(self, error: Exception) -> None:
        self._warn_once(DeviceCopies, "device values are lost: %s", error)

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
                columns = tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True))
                layout = self._add_layout(columns, stepped=True)
                if layout is not None:
                    self._layouts[names, codes] = layout
        return layout

    def _add_layout(self, columns: tuple[Column, ...], *, stepped: bool) -> Layout | None:
        with self._claims:
            number = next(self._layout_numbers)
            if number > MAX_LAYOUT:
                return None
            layout = Layout(number, columns, stepped)
            return layout if self._ring.add_layout(layout) else None

    def _distribution_layout(self, columns: Sequence[Column]) -> Layout | None:
        """The same for a row with distributions; one alone has two columns."""
        if len(columns) > 2 and len(self._wide_layouts) >= _MAX_WIDE_SETS and tuple(columns) not in self._wide_layouts:
            return None
        return self._wide_layout(columns)

    def _wide_layout(self, columns: Sequence[Column]) -> Layout | None:
        """The same for columns of any kind."""
        key = tuple(columns)
        layout = self._wide_layouts.get(key)
        if layout is None:
            with self._claims:
                if len(self._wide_layouts) >= _MAX_KEY_SETS:
                    return None
                layout = self._add_layout(key, stepped=True)
                if layout is not None:
                    self._wide_layouts[key] = layout
        return layout

    def _lose(self, error: Exception, number: int) -> None:
        """A device's own errors: the program will meet them again in its own calls."""
        if number:
            self._lane().count(Drop.DEVICE_UNFINISHED, number)
        self._warn_of_lost_value(error)

    def _full(self, lane: Lane) -> None:
        if self._closed:  # meanwhile, by another thread or a signal handler
            return
        lane.count(Drop.RING_FULL)
        self._warn_once(
            Drop.RING_FULL,
            "the ring of %d bytes is full, rows are dropped: raise TENSORMETER_BUFFER_BYTES, or see whether the agent runs",
            len(self._ring.buffer),
        )

    def _warn_slow(self, values: Mapping[str, Any], watch: Stopwatch) -> None:
        """Once for each reason: a log call that was not the first of its kind took long."""
        if watch.waited:
            reason = "its thread was kept waiting, by other Python threads or for a processor"
        else:
            reason = "it had much to look at; log fewer values at once, or numbers instead of arrays"
        names = ", ".join(map(reprlib.repr, itertools.islice(values, _NAMES_SHOWN)))
        more = f" and {len(values) - _NAMES_SHOWN} more" if len(values) > _NAMES_SHOWN else ""
        self._warn_once(
            (Stopwatch, reason), "log() of %s%s took %.1f ms: %s", names, more, watch.duration / 1e6, reason
        )

    def _warn_once(self, about: object, message: str, *arguments: object) -> None:
        if about not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(about)
            logger.warning(message, *arguments)


break_graph(Recorder.log)
break_graph(Recorder.record)


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
