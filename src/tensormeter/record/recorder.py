"""The recorder, which passes each log call to the writer for the row's keys and types.

Threads: any thread may log. Each thread gets a separate lane of the ring. If there are more threads than lanes, the remaining
threads share the last lane. They hold a lock while they write a row.
Forks: in a forked child process, the recorder records nothing and calls `on_fork`. It never accesses the parent's ring.
Signals: a signal handler may log.
The recorder never waits for the agent, a disk, a network or a device, and logged values never cause an exception. Values that
cannot be recorded are counted, and the first such value of each key causes a warning on the `tensormeter` logger.
"""

import os
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.errors import UsageError
from tensormeter.record.device.device_copies import DeviceCopies
from tensormeter.record.dynamo import break_graph, skip_own_files
from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.histogram.histogram import DeviceDistribution, HostDistribution
from tensormeter.record.log_timing import LogTiming, Stopwatch
from tensormeter.record.loggable_values import Parts
from tensormeter.record.media.artifact import Artifact
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.media_writer import MediaWriter
from tensormeter.record.nested_values import Flattened, flatten, flatten_numbers, is_nested
from tensormeter.record.reduction.reduction import Reduce, Rule
from tensormeter.record.reduction.rules import Rules
from tensormeter.record.row_reduction import RowReduction
from tensormeter.record.rows.histogram_rows import Distributions
from tensormeter.record.rows.lane import Lane, Writer
from tensormeter.record.rows.lanes import Lanes
from tensormeter.record.rows.rows import Devices, Numbers, Rows
from tensormeter.record.rows.stream_numbers import StreamNumbers
from tensormeter.record.rows.stream_writer import StreamWriter
from tensormeter.record.value_reader import ValueReader
from tensormeter.record.values.classify import (
    Deferred,
    DeviceValue,
    Refused,
    check_name,
    classify_step,
    is_rounded,
)
from tensormeter.record.warn_once import WarnOnce, describe, shown
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS, Drop, HeaderWord, State
from tensormeter.ring.layout import Column, Items, Layout, Stream

__all__ = ["Limits", "PeriodicTask", "Recorder"]

_LAST_STEP: Final = (1 << 63) - 1

_SETTLE_TIMEOUT: Final = 5.0
"""Maximum time in seconds that `close` waits for pending values."""


class PeriodicTask(Protocol):
    """A small task that every log call runs before it writes its row, on the calling thread. It must never block or raise."""

    def __call__(self) -> None: ...


class Limits(NamedTuple):
    """Limits on what a process can record.

    Attributes:
        metric_names: Maximum number of metric names, including streams of instruments.
        media_buffer_bytes: Maximum total size in bytes of the media items that wait for the agent.
    """

    metric_names: int = METRIC_NAMES
    media_buffer_bytes: int = 64 << 20


class Recorder:
    """Writes rows into one ring file."""

    def __init__(
        self,
        ring: RingFile,
        *,
        on_writer: Callable[[Writer], None],
        on_stride: Callable[[], None] = lambda: None,
        limits: "Limits | None" = None,
        one_launch: bool = True,
        first_step: int = 0,
        on_fork: Writer = lambda values, step=None, *, every=None, reduce=None: None,
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            on_writer: Callback that receives the writer for the next log call, whenever this writer changes. The thread that
                owns the first lane passes specialized writers. Any thread may pass `log`.
            on_stride: Callback for slower checks, which must not block. Lanes call it every few rows (see `Lane`).
            limits: Limits on what the process can record. Default: `Limits()`.
            one_launch: Whether devices may store values directly in the ring (see `DeviceCopies`).
            first_step: Step of the first row if its log call does not specify a step.
            on_fork: Function that replaces `log` in a forked child process, and receives the same arguments.
        """
        limits = limits or Limits()
        self._ring = ring
        self._on_writer = on_writer
        self._on_fork = on_fork
        tables = DeviceTables()
        self._on_stride = on_stride
        self._lanes = Lanes(ring, self._check_regularly, tables)
        self._rules = Rules()
        self._numbers = StreamNumbers(
            ring, limits.metric_names, lambda name: bool(self._rules) and bool(self._rules.of((name,), None))
        )
        self._notices = WarnOnce()
        self._cost = LogTiming(ring)
        self._media = MediaWriter(ring, limits.media_buffer_bytes, self._notices)
        self._device = DeviceCopies(
            ring, self._warn_of_lost_value, self._attend_pending, self._warn_of_detour, one_launch=one_launch
        )
        self._values = ValueReader(self._device, self._rules)
        self._last_step = array("q", [first_step - 1])
        self._rows = Rows(
            ring, self._numbers, self._device, tables, self._notices, fallback=self.log, last_step=self._last_step
        )
        self._reduction = RowReduction(self._rules, self._rows, self._notices)
        self._periodic_tasks: list[PeriodicTask] = []
        self._closing_tasks: list[PeriodicTask] = []
        self._pid = os.getpid()
        self._closed = False
        self._out_of_graphs = skip_own_files()
        self._used: Writer | None = None
        self._use(self._rows.writer_of(self._lanes.first))
        _recorders.add(self)

    @property
    def next_step(self) -> int:
        """Step of the next row if its log call does not specify a step: the last row's step plus one, up to 2**63 - 1."""
        return min(self._last_step[0] + 1, _LAST_STEP)

    @property
    def words(self) -> memoryview:
        """Words of the ring that this recorder writes to."""
        return self._ring.words

    @property
    def lost_names(self) -> dict[str, list[str]]:
        """Some of the names of values that could not be recorded, by reason. The names are quoted."""
        return self._notices.lost_names

    @property
    def device_paths(self) -> dict[str, str]:
        """Copy path for each CUDA device in use (see `DeviceCopies.paths`)."""
        return self._device.paths

    def add_periodic_task(self, task: PeriodicTask, *, at_close: PeriodicTask) -> None:
        """Run a task in every log call from now on. Log calls then take a few microseconds instead of less than one.

        Args:
            task: Task that each log call runs before it writes its row.
            at_close: Task that `close` runs once, before it closes the lanes. This task may wait for a few seconds.
        """
        self._closing_tasks.append(at_close)
        self._periodic_tasks.append(task)
        self._rows.writer_of(self._lanes.first).direct = False  # it does not run tasks
        self._use(self.log)

    def watch_texts(self, on_text: Callable[[str, str], None]) -> None:
        """Call a function with the key and the text when a short string is logged that differs from the last one of its key."""
        self._media.on_text = on_text

    def count_lost(
        self, reason: Drop, number: int, message: str, *arguments: object, names: Iterable[str] = ()
    ) -> None:
        """Count values that could not be recorded, and warn once for each message. In a forked child process, only warn.

        Args:
            reason: Reason for the loss.
            number: Number of lost points.
            message: Format string of the warning for `logging`, or an empty string for no warning.
            arguments: Arguments for the format string.
            names: Names of the lost values. Some of these names are reported at the end of the run.
        """
        if self._pid == os.getpid():
            self._lanes.mine().count(reason, number)
        for name in names:
            self._notices.note(reason, shown(name))
        if message:
            self._notices.once(message, message, *arguments)

    def define(self, pattern: str, rule: Rule) -> None:
        """Define a reduction rule for all metrics whose names match a pattern.

        Args:
            pattern: Pattern for metric names, with `*`, `?` and `[...]` as in `fnmatch`. If a name matches several patterns,
                the pattern that was defined last applies.
            rule: Rule for the matching metrics.

        Raises:
            UsageError: A matching metric has already been logged, so there may be a writer that would ignore the rule.
        """
        self._rules.define(pattern, rule, self._numbers.logged())

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Record one row. Never blocks, and never raises because of `values`.

        Args:
            values: Values by name, possibly in nested mappings (see `Run.log`).
            step: Step of the row as a 64-bit integer. Steps may be in any order. None selects the last row's step plus one.
            every: Number of calls whose values are reduced to one value. None selects the rule from `define`, if there is one.
            reduce: Reduction of the values. Default: "mean".
        """
        if self._pid != os.getpid():
            self._on_fork(values, step, every=every, reduce=reduce)
            return
        watch, known = Stopwatch(), len(self._numbers) + len(self._rows.layouts)
        self._log(values, step, every, reduce)
        watch.stop()
        self._cost.add(watch.duration)
        if watch.slow and len(self._numbers) + len(self._rows.layouts) == known and _is_mapping(values):
            self._notices.slow(values, watch)

    def _log(self, values: Mapping[str, Any], step: int | None, every: int | None, reduce: str | None) -> None:
        if self._closed:
            names = shown(list(values)) if _is_mapping(values) else "..."
            self._notices.once(
                Drop,
                "log() of %s was called after the run finished, so nothing is recorded; call it before finish()",
                names,
            )
            return
        lane = self._lanes.mine()
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        for task in self._periodic_tasks:
            task()
        rule = None if every is None else self._call_rule(lane, every, reduce)
        if lane.owner is None:
            with self._lanes.shared:
                self._route(lane, values, step, rule)
        else:
            self._route(lane, values, step, rule)

    def record(self, stream: StreamWriter, value: Any) -> int | None:
        """Record an instrument's measurement as a separate row. Never blocks, and never raises because of the value.

        In a forked child process and after `close`, this method records nothing.

        Returns:
            Index of the ring word in which the value will be stored later, or None for host values and refused values.
        """
        if self._closed or self._pid != os.getpid():
            return None
        lane = self._lanes.mine()
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        if lane.owner is None:
            with self._lanes.shared:
                return self._measure(lane, stream, value)
        return self._measure(lane, stream, value)

    @property
    def positions(self) -> list[int]:
        """Total number of bytes written to each lane, over all laps. Once all rows are spooled, each TAIL word has this value."""
        return [lane.position for lane in self._lanes]

    def look_for_pending(self) -> None:
        """Store the pending values and media that have become available. Log calls also do this. Never blocks."""
        if not self._closed and self._pid == os.getpid():
            self._device.pending.poll()
            self._media.poll(self._lanes.mine())

    def log_at_next_step(self, values: Mapping[str, Any]) -> None:
        """Record a row under the step that the next regular row will use, without advancing the step.

        A slow call causes no warning, because counting the distributions of a whole model takes a long time on a CPU.
        """
        if self._pid != os.getpid():
            self._on_fork(values)
            return
        last, watch = self._last_step[0], Stopwatch()
        self._log(values, None, None, None)
        watch.stop()
        self._cost.add(watch.duration)
        self._last_step[0] = last

    def gauge_row(self, streams: Sequence[Stream]) -> Layout | Items | None:
        """Return the layout or the columns of a row of gauges that have attributes and units.

        Returns:
            Layout or columns. None in a forked child process, after `close`, or if there are too many streams. In the last
            case, the values are counted as lost.
        """
        if self._pid != os.getpid() or self._closed:
            return None
        columns = self._rows.layouts.of_columns([Column(stream, "d") for stream in streams])
        self._warn_of_changed_names()
        if columns is None:
            self._rows.refuse(self._lanes.mine(), [stream.name for stream in streams])
        return columns

    def write_gauges(self, columns: Layout | Items, values: Sequence[float], step: int) -> None:
        """Record a row of floats without advancing the step. Never blocks or raises."""
        if self._pid != os.getpid() or self._closed:
            return
        lane = self._lanes.mine()
        words = struct.pack(f"<{len(values)}d", *values)
        if lane.owner is None:
            with self._lanes.shared:
                self._rows.write_words(lane, columns, words, step)
        else:
            self._rows.write_words(lane, columns, words, step)

    def close(self, state: State) -> None:
        """Stop recording, and store the final position of each lane for the agent. Idempotent.

        Waits up to a few seconds for pending values and media. Rows that are logged in the meantime may be lost.
        """
        if self._closed or self._pid != os.getpid():
            return
        try:
            self._flush_reductions()
            for task in self._closing_tasks:
                task()
            self._media.flush(self._lanes.mine(), _SETTLE_TIMEOUT)
        except Exception as error:  # a device error: earlier rows are safe, and the run must still finish
            self._warn_of_lost_value(error)
        self._closed = True
        for lane in self._lanes:
            lane.close()
        self._ring.words[HeaderWord.STATE] = state
        self._device.close()

    def _flush_reductions(self) -> None:
        """Write the results of all threads' incomplete reductions to the current thread's lane."""
        own = self._lanes.mine()
        with self._lanes.shared:
            for lane in self._lanes:
                for step, numbers, devices in lane.reductions.flush():
                    self._rows.write(own, numbers, devices, step)
                for step, distributions in lane.pools.flush():
                    self._rows.write_distributions(own, {}, {}, distributions, step)

    def abandon_after_fork(self) -> None:
        """Make all existing writers fall back to `log`, which records nothing in a forked child process."""
        for lane in self._lanes:
            lane.abandon()

    def _call_rule(self, lane: Lane, every: int, reduce: str | None) -> Rule | None:
        try:
            return Rule(every, cast("Reduce", reduce or "mean"))
        except UsageError as error:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._notices.once(Rule, "log() ignored every= and reduce=: %s", error)
            return None

    def _route(self, lane: Lane, values: Mapping[str, Any], step: int | None, rule: Rule | None) -> None:
        if not _is_mapping(values):
            lane.count(Drop.UNSUPPORTED_VALUE)
            kind = type(values)
            self._notices.once(
                (Mapping, kind), "log() expects a mapping of names to values, got %s; log a dict", kind.__name__
            )
            return
        step = self._step(lane, step)
        reduced = rule is not None or bool(self._rules)
        if lane.device_writers and not reduced and type(values) is dict:
            write = lane.device_writers.get(tuple(values))
            if write is not None and write(values, step):
                return
        if rule is None and type(values) is dict:
            writer = self._rows.writer_of(lane)
            if writer.write(values, step) or ((numbers := flatten_numbers(values)) and writer.write(numbers, step)):
                self._use_row_writer(lane)
                return
        flat = flatten(values)
        if type(values) is not dict or is_nested(values):
            self._route_flat(lane, flat, step, rule)
        else:
            self._write_row(lane, flat, step, rule)

    def _route_flat(self, lane: Lane, flat: Flattened, step: int, rule: Rule | None) -> None:
        """Write a row that was given as a nested mapping or as another type than `dict`."""
        if not flat.refusals and not flat.collisions:
            if lane.device_writers and rule is None and not self._rules:
                write = lane.device_writers.get(tuple(flat.values))
                if write is not None and write(flat.values, step):
                    return
            if rule is None and self._rows.writer_of(lane).write(flat.values, step):
                self._use_row_writer(lane)
                return
        self._write_row(lane, flat, step, rule)

    def _write_row(self, lane: Lane, flat: Flattened, step: int, rule: Rule | None) -> None:
        """Write the values of a row that can be recorded, and warn about the others."""
        values, reduced = flat.values, rule is not None or bool(self._rules)
        numbers: dict[str, float | int] = {}
        devices: dict[str, DeviceValue | Deferred] = {}
        distributions: dict[str, HostDistribution | DeviceDistribution] = {}
        media: list[tuple[str, Media | str]] = []
        refusals, rounded = list(flat.refusals), []
        for key, value in values.items():
            # isinstance would read the `__class__` of an unknown object, which may raise.
            if issubclass(type(value), Media | str):
                media.append((key, value))
                continue
            try:
                number = self._values.read(key, value, rule)
            except Refused as refusal:
                refusals.append((key, refusal))
                continue
            if isinstance(number, (DeviceValue, Deferred)):
                devices[key] = number
            elif isinstance(number, HostDistribution | DeviceDistribution):
                distributions[key] = number
            elif isinstance(number, Parts):
                media += [(f"{key}/{part}", item) for part, item in number.items()]
            elif isinstance(number, Media):
                media.append((key, number))
            else:
                numbers[key] = number
                if is_rounded(value, number):
                    rounded.append((key, number))
        if reduced:
            # Do not pass a writer to `on_writer`, because it would write the next row without reducing its values.
            self._last_step[0] = step
            self._write(
                lane,
                *self._reduction.reduce(lane, rule, numbers, devices, step),
                self._reduction.pool(lane, rule, distributions, step),
                step,
            )
        elif distributions:
            self._write(lane, numbers, devices, distributions, step)
        else:
            self._rows.write(lane, numbers, devices, step)
            if not devices:
                self._use_row_writer(lane)
            elif len(numbers) + len(devices) == len(values):
                writer = self._rows.make_device_writer(lane, values, numbers, devices)
                if writer is not None and lane is self._lanes.first and not self._closed and not self._periodic_tasks:
                    self._use(writer)
        # Warn last, so that valid values have been recorded even if a logging handler fails.
        self._warn_of_changed_names()
        for refused_key, refused in refusals:
            self._refuse(lane, refused_key, refused)
        for name in flat.collisions:
            lane.count(Drop.UNSUPPORTED_VALUE)
            self._notices.once(
                (name, Flattened), "%s occurred twice in one log() call; recorded the last one", shown(name)
            )
        for name, number in rounded:
            message = "%s is recorded as %r, the nearest float, because the integer does not fit into 64 bits"
            self._notices.once((name, is_rounded), message, shown(name), number)
        for key, item in media:
            if self._media.write(lane, key, item, step):
                self._last_step[0] = step

    def _use_row_writer(self, lane: Lane) -> None:
        """Use the row writer for further log calls, instead of a writer for device values."""
        if lane is self._lanes.first and not self._closed and not self._periodic_tasks:
            self._use(self._rows.writer_of(lane))

    def _use(self, writer: Writer) -> None:
        if self._used is not writer:
            self._used = writer
            self._on_writer(writer)
            if self._periodic_tasks and writer != self.log:  # another thread has added the first task in the meantime
                self._use(self.log)

    def _refuse(self, lane: Lane, key: object, refusal: Refused) -> None:
        lane.count(refusal.reason)
        self._notices.refused(key, refusal)

    def _write(self, lane: Lane, numbers: Numbers, devices: Devices, distributions: Distributions, step: int) -> None:
        if distributions:
            self._rows.write_distributions(lane, numbers, devices, distributions, step)
        else:
            self._rows.write(lane, numbers, devices, step)

    def alert(self, content: EventContent) -> None:
        """Record an alert with the step of the last row, or without a step if there is no row yet. Never raises."""
        if self._closed or self._pid != os.getpid():
            return
        self._media.write_event(self._lanes.mine(), content, None, self._known_step)

    def request_code(self, content: EventContent) -> None:
        """Ask the agent to describe the program's code. Never raises."""
        self._media.write_event(self._lanes.mine(), content, None, None)

    def artifact(self, artifact: Artifact, step: object) -> None:
        """Record an artifact with a step, or with the step of the last row if `step` is None. Never raises."""
        if self._closed or self._pid != os.getpid():
            return
        lane = self._lanes.mine()
        try:
            content = artifact.pack()
        except Exception as error:  # the arguments' own code may raise anything
            refusal = error if isinstance(error, Refused) else Refused(f"cannot read its arguments ({describe(error)})")
            self._refuse(lane, artifact.shown, refusal)
            return
        self._media.write_event(lane, content, artifact.name, self._artifact_step(artifact, step))

    def _artifact_step(self, artifact: Artifact, step: Any) -> int | None:
        """Return the step of an artifact. An invalid one is replaced with that of the last row, with a warning."""
        if step is None:
            return self._known_step
        try:
            return classify_step(step)
        except Exception as error:  # Refused, or an exception in the step's own code
            self._notices.once(
                (Artifact, type(step)),
                "log_artifact(%s): ignored the step %s, and used that of the last row: %s",
                shown(artifact.shown),
                # The text of a tensor on a device would wait for the device.
                shown(step) if type(step) in (str, int, float) else f"of the type {type(step).__name__}",
                str(error) if isinstance(error, Refused) else describe(error),
            )
            return self._known_step

    @property
    def _known_step(self) -> int | None:
        """Step of the last row, or None if there is no row yet."""
        step = self._last_step[0]
        return step if step >= 0 and step != AUTOMATIC_STEPS - 1 else None

    def _check_regularly(self) -> None:
        if self._media.is_waiting:
            self._media.poll(self._lanes.mine())
        self._on_stride()

    def _step(self, lane: Lane, step: Any) -> int:
        """Return the row's step as a 64-bit int. An invalid step is replaced with the next step, with a warning."""
        if step is None:
            return self.next_step
        try:
            return classify_step(step)
        except Exception as error:  # Refused, or an exception in the step's own code
            lane.count(Drop.UNSUPPORTED_VALUE)
            reason = str(error) if isinstance(error, Refused) else describe(error)
            shown = self.next_step if self.next_step < AUTOMATIC_STEPS else "the next step"
            self._notices.once((State, type(step)), "replaced an invalid step with %s: %s", shown, reason)
            return self.next_step

    def _measure(self, lane: Lane, stream: StreamWriter, value: Any) -> int | None:
        try:
            check_name(stream.name)
            number = self._values.number(stream.name, value, None)
            if isinstance(number, (DeviceDistribution, HostDistribution)):
                raise Refused("an instrument records a single number; log a Histogram with `run.log`")
            if not isinstance(number, (DeviceValue, Deferred)):
                stream.check(number)
        except Refused as refusal:
            self._refuse(lane, stream.name, refusal)
            return None
        if isinstance(number, (DeviceValue, Deferred)):
            word = self._rows.write_device_measurement(lane, stream, number)
            self._warn_of_changed_names()
            return word
        writer = self._rows.write_measurement(lane, stream, number)
        self._warn_of_changed_names()
        if writer is not None and lane is self._lanes.first and not self._closed:
            stream.use("d" if type(number) is float else "q", writer)
        return None

    def _attend_pending(self) -> None:
        if self._device.pending.poll not in self._periodic_tasks:
            self.add_periodic_task(self._device.pending.poll, at_close=self._settle)

    def _settle(self) -> None:
        self._device.pending.settle(_SETTLE_TIMEOUT)

    def _warn_of_changed_names(self) -> None:
        """Warn about names that are not valid Unicode text.

        The caller must not hold a lock, because the program's logging handlers may run any code.
        """
        changed = self._numbers.changed
        while changed:
            try:
                given, written = changed.popitem()
            except KeyError:  # another thread has logged the warning
                return
            self._notices.changed_name(given, written)

    def _warn_of_lost_value(self, error: Exception) -> None:
        self._notices.once(DeviceCopies, "lost device values: %s", error)

    def _warn_of_detour(self, reason: str) -> None:
        message = "CUDA values use the slower copy path, because the ring buffer could not be page-locked: %s"
        self._notices.once(message, message, reason)


def _is_mapping(values: object) -> bool:
    try:
        return isinstance(values, Mapping)
    except Exception:  # the object computes its `__class__`
        return False


break_graph(Recorder.log)
break_graph(Recorder.record)


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork)
