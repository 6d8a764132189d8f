"""Measurement of training phases: their time on the host, their time on the device, and the lag of the device behind the host.

At the start and end of a phase, this module reads the host's clock. If the process uses CUDA, it also records a timing event on
the current stream. After two more steps have ended, the thread that recorded the events queries them. It uses only events that
the device has reached by then, so nothing waits. A thread that is capturing a CUDA graph neither records nor queries events.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from tensormeter.errors import UsageError
from tensormeter.logger import get_logger
from tensormeter.record.dynamo import break_graph
from tensormeter.record.phases.timeline import CudaEvents, Events, Mark, Timeline
from tensormeter.record.warn_once import shown
from tensormeter.ring.layout import Items, Layout, Stream

__all__ = ["DATA_LOADING", "Phase", "Phases", "Step"]

logger: Final = get_logger()

DATA_LOADING: Final = "data_loading"
"""Name of the phase whose time counts as waiting for data. The name is also used by NVIDIA's one-logger, along with
`model_forward`, `model_backward`, `optimizer_update` and `checkpoint_save`."""

_STEPS_BEFORE_QUERY: Final = 2
"""Number of later steps that must have ended before a step's events are queried."""

_MAX_WAITING: Final = 64
"""Maximum number of periods that wait for their events. If there are more, the oldest is recorded with host times only."""

_MAX_EVENTS: Final = 1000
"""Maximum number of events in one step. Phases beyond this limit have host times only. The limit also applies to the number of
phases in one row outside of steps."""

_PHASE: Final = "tensormeter.phase.duration"
_STEP: Final = "tensormeter.step.duration"
_THROUGHPUT: Final = "tensormeter.step.throughput"
_SHARE: Final = "tensormeter.step.data_loading.share"
_UNITS: Final = {_PHASE: "s", _STEP: "s", _THROUGHPUT: "{item}/s", _SHARE: "1"}

_Key = tuple[str, str, str]
"""Metric, phase and clock. The phase and the clock are empty strings for metrics without them."""


class _Span:
    """A phase or a step: the time between two marks."""

    __slots__ = ("end", "name", "start")

    def __init__(self, name: str, start: Mark, end: Mark) -> None:
        self.name = name
        self.start = start
        self.end = end

    @property
    def host(self) -> float:
        """Duration on the host in seconds."""
        return (self.end.host - self.start.host) / 1e9


class _Period:
    """A step with its phases, or a group of phases outside of steps. Each period becomes one row."""

    __slots__ = ("index", "marks", "spans", "step", "values")

    def __init__(
        self, index: int, spans: list[_Span], marks: list[Mark], step: _Span | None, values: dict[_Key, float]
    ) -> None:
        self.index = index
        self.spans = spans
        self.marks = marks
        self.step = step
        self.values = values


class _Thread:
    """The state of a thread's phases and steps."""

    def __init__(self, events: Events) -> None:
        self.thread = threading.current_thread()
        self.events = events
        self.timeline = Timeline(events)
        self.on_device = True
        self.waiting: deque[_Period] = deque()
        self.step: Step | None = None
        self.last_end: int | None = None
        self.index = -1
        self.depth = 0
        self.loading = 0.0
        """Time in seconds spent in data loading phases during the current step or, between steps, since the last step ended."""
        self.other_phases = 0.0
        """Time in seconds spent in other phases since the last step ended."""
        self.spans: list[_Span] = []
        self.marks: list[Mark] = []

    def mark(self) -> Mark:
        """Mark the current moment. If device times are recorded, the mark includes an event."""
        event = None
        if self.on_device and len(self.marks) < _MAX_EVENTS:
            try:
                event = self.events.record()
            except Exception as error:  # a CUDA error, which the program's own calls will also raise
                self.on_device = False
                logger.warning("cannot record a CUDA event, so phases will have only host times: %s", error)
        mark = Mark(event)
        if event is not None:
            self.marks.append(mark)
        return mark

    def close_period(self, index: int, step: _Span | None, values: dict[_Key, float]) -> _Period:
        """Return a period with all spans and marks since the last period, and begin a new period."""
        period = _Period(index, self.spans, self.marks, step, values)
        self.spans, self.marks = [], []
        return period


class Phase:
    """A single-use context manager that measures a phase. It does not catch exceptions."""

    __slots__ = ("_name", "_phases", "_start", "_thread")

    def __init__(self, phases: "Phases", name: str) -> None:
        self._phases = phases
        self._name = name

    def __enter__(self) -> None:
        self._thread = thread = self._phases.this_thread()
        thread.depth += 1
        self._start = thread.mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phases.end_phase(self._thread, self._name, self._start)


class Step:
    """A single-use context manager that measures a training step. It does not catch exceptions."""

    __slots__ = ("_phases", "_thread", "given", "items", "loading", "next_before", "start")

    def __init__(self, phases: "Phases", given: int | None, items: float | None) -> None:
        self._phases = phases
        self.given = given
        self.items = items

    def __enter__(self) -> None:
        self._thread = thread = self._phases.this_thread()
        if thread.step is not None:
            raise UsageError("run.step: another step is still open on this thread; use run.phase inside a step")
        thread.step = self
        thread.depth += 1
        self.next_before = self._phases.next_step()
        self.start = start = thread.mark()
        # The time since the last step counts as waiting for data, except for the time in other phases.
        if thread.last_end is None:
            self.loading = thread.loading
        else:
            self.loading = max(0.0, (start.host - thread.last_end) / 1e9 - thread.other_phases)
        thread.loading = thread.other_phases = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phases.end_step(self._thread, self)


class Phases:
    """The phases and steps of one process. Each thread has separate phases and steps, and threads never wait for each other."""

    def __init__(
        self,
        find_row: Callable[[Sequence[Stream]], Layout | Items | None],
        write_row: Callable[[Layout | Items, Sequence[float], int], None],
        next_step: Callable[[], int],
        new_events: Callable[[], Events] = CudaEvents,
    ) -> None:
        """
        Args:
            find_row: Function that returns the layout for a row of gauges, or None if there are too many layouts.
            write_row: Function that records a row with the given layout, values and step.
            next_step: Function that returns the step of the next row that is logged without a step.
            new_events: Function that creates the events object for a thread.
        """
        self._find_row = find_row
        self._write_row = write_row
        self.next_step = next_step
        self._new_events = new_events
        self._local = threading.local()
        self._threads: list[_Thread] = []
        self._rows: dict[tuple[_Key, ...], Layout | Items] = {}
        self._warned = False

    def phase(self, name: str) -> Phase:
        """Return a context manager for a phase.

        Raises:
            UsageError: The name is empty or is not a str.
        """
        if not issubclass(type(name), str) or not name:
            raise UsageError(f"run.phase: expected a name, got {shown(name)}")
        return Phase(self, name)

    def step(self, index: int | None, items: float | None) -> Step:
        """Return a context manager for a training step.

        Args:
            index: Number of the step as a 64-bit int. None selects the step of the last row that is logged during the training
                step. If no row is logged, the number is the step of the next row, or one more than the previous number if that
                is larger.
            items: Number of items that the step processes, for the throughput metric. None omits this metric.

        Raises:
            UsageError: An argument has an invalid type. Tensors are refused, because reading a tensor would wait for its
                device.
        """
        if index is not None and (type(index) is not int or not -(1 << 63) <= index < 1 << 63):
            raise UsageError(f"run.step: step: expected a 64-bit int, got a {type(index).__name__}")
        if items is not None and type(items) not in (int, float):
            raise UsageError(f"run.step: items: expected an int or a float, got a {type(items).__name__}")
        return Step(self, index, items)

    def flush(self) -> None:
        """Record all periods that wait for their events, with the device times that are available. Never waits."""
        own = getattr(self._local, "thread", None)
        for thread in self._threads.copy():
            if thread.spans:
                index = thread.index if thread.index >= 0 else self.next_step()
                thread.waiting.append(thread.close_period(index, None, {}))
            self._record_waiting(thread, keep=0, ask=thread is own)

    def this_thread(self) -> _Thread:
        """Return the state of the current thread. When a new thread is added, record and remove the state of ended threads."""
        try:
            thread: _Thread = self._local.thread
        except AttributeError:
            for ended in [thread for thread in self._threads if not thread.thread.is_alive()]:
                self._record_waiting(ended, keep=0, ask=False)
                self._threads.remove(ended)
            thread = self._local.thread = _Thread(self._new_events())
            self._threads.append(thread)
        return thread

    def end_phase(self, thread: _Thread, name: str, start: Mark) -> None:
        """End a phase of a thread."""
        span = _Span(name, start, thread.mark())
        thread.depth -= 1
        thread.spans.append(span)
        outermost = thread.depth == 0
        if name == DATA_LOADING and (outermost or thread.step is not None):
            thread.loading += span.host
        elif outermost:
            thread.other_phases += span.host
        # Phases between steps, and data loading before the first step, belong to the next step's row. Without steps, each
        # outermost phase becomes a separate row.
        in_next_step = name == DATA_LOADING or thread.last_end is not None
        if outermost and (not in_next_step or len(thread.spans) >= _MAX_EVENTS):
            self._end_period(thread, self.next_step(), None)

    def end_step(self, thread: _Thread, step: Step) -> None:
        """End a step of a thread."""
        end = thread.mark()
        thread.step = None
        thread.depth -= 1
        thread.last_end = end.host
        span = _Span("", step.start, end)
        total = span.host + step.loading
        step.loading += thread.loading
        thread.loading = thread.other_phases = 0.0
        values = {(_SHARE, "", ""): step.loading / total} if total > 0 else {}
        if step.items is not None and total > 0:
            values[_THROUGHPUT, "", ""] = step.items / total
        thread.index = self._index(thread, step)
        self._end_period(thread, thread.index, span, values)

    def _index(self, thread: _Thread, step: Step) -> int:
        """Choose the number of a step.

        Use the given number, if any. Otherwise, use the step of the last row that was logged during the training step. If no
        row was logged, use the step of the next row, or one more than the previous step's number, whichever is larger.
        """
        if step.given is not None:
            return step.given
        next_step = self.next_step()
        return next_step - 1 if next_step != step.next_before else max(thread.index + 1, next_step)

    def _end_period(
        self, thread: _Thread, index: int, step: _Span | None, values: dict[_Key, float] | None = None
    ) -> None:
        period = thread.close_period(index, step, values or {})
        if period.marks:
            thread.waiting.append(period)
        else:
            self._record(period, None)
        if thread.waiting:
            self._record_waiting(thread, keep=_STEPS_BEFORE_QUERY, ask=True)

    def _record_waiting(self, thread: _Thread, *, keep: int, ask: bool) -> None:
        """Record waiting periods, oldest first, as long as the device has reached all of their events.

        Args:
            thread: Thread that the periods belong to.
            keep: Number of the latest periods to keep. With 0, all periods are recorded, if necessary with host times only.
            ask: Whether the events may be queried. Only the thread that recorded the events may query them.
        """
        waiting, timeline = thread.waiting, thread.timeline
        while len(waiting) > keep:
            period = waiting[0]
            has_device_times = False
            try:
                if ask and period.marks:
                    with thread.events.asking():
                        if thread.events.are_over([mark.event for mark in period.marks]):
                            timeline.place(period.marks)
                            has_device_times = True
            except Exception as error:
                self._warn("cannot query CUDA events, so phases have only host times: %s", error)
            if not has_device_times and keep and len(waiting) <= _MAX_WAITING:
                return
            waiting.popleft()
            if not has_device_times and ask:
                timeline.interrupt(period.marks)
                if keep:
                    self._warn("a device is more than %d steps behind, so phases have only host times", _MAX_WAITING)
            self._record(period, timeline if has_device_times else None)

    def _record(self, period: _Period, timeline: Timeline | None) -> None:
        values = dict(period.values)
        if period.step is not None:
            _add(values, _STEP, "", period.step, timeline)
        for span in period.spans:
            _add(values, _PHASE, span.name, span, timeline)
        keys = tuple(values)
        layout = self._rows.get(keys)
        if layout is None:
            layout = self._find_row([_stream(*key) for key in keys])
            if layout is None:
                return
            self._rows[keys] = layout
        self._write_row(layout, tuple(values.values()), period.index)

    def _warn(self, message: str, *arguments: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *arguments)


def _add(values: dict[_Key, float], metric: str, phase: str, span: _Span, timeline: Timeline | None) -> None:
    """Add a span to a row's values. If the row already has this phase, add up the durations and keep the largest lag."""
    key = (metric, phase, "host")
    values[key] = values.get(key, 0.0) + span.host
    if timeline is not None and span.start.device is not None and span.end.device is not None:
        key = (metric, phase, "device")
        values[key] = values.get(key, 0.0) + span.end.device - span.start.device
        key = (metric, phase, "lag")
        values[key] = max(values.get(key, 0.0), timeline.lag(span.start))


def _stream(metric: str, phase: str, clock: str) -> Stream:
    attributes = {"tensormeter.phase": phase, "tensormeter.clock": clock}
    return Stream(
        metric, unit=_UNITS[metric], attributes=tuple((key, text) for key, text in attributes.items() if text)
    )


for _method in (Phase.__enter__, Phase.__exit__, Step.__enter__, Step.__exit__):
    break_graph(_method)
