"""Conversion of a run from another tracker to OTLP requests, with the resource, events and points that an agent would send."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensormeter.conventions.fitting import fit
from tensormeter.conventions.labels import fit_label
from tensormeter.conventions.limits import CONFIG_BYTES, METRIC_NAMES
from tensormeter.conventions.nesting import flatten
from tensormeter.conventions.semconv import (
    LOG_STREAM,
    RUN_CONFIG,
    RUN_END,
    RUN_START,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
)
from tensormeter.errors import EncodingError
from tensormeter.importers.plain_values import plain_document
from tensormeter.importers.record_requests import RecordRequests
from tensormeter.importers.run_resource import run_resource
from tensormeter.importers.sender import Sender
from tensormeter.importers.step_times import StepTimes
from tensormeter.importers.tally import Tally
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Batch, Event, Gauge, Histogram, Series, Temporality, Value
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.media import Alert, Audio, Figure, Html, Image, Images, Media, Table, TooLargeError, Video
from tensormeter.otlp.media import Text as TextItem
from tensormeter.redaction import OutputMask, mask_config

__all__ = ["EXACT", "MOST_INTEGER", "ItemKind", "RunRequests", "RunState"]

ItemKind = Literal["alert", "audio", "figure", "html", "image", "images", "table", "text", "video"]
RunState = Literal["finished", "failed", "crashed", "preempted"]

_KINDS: Final[dict[ItemKind, type[Media]]] = {
    "alert": Alert,
    "audio": Audio,
    "figure": Figure,
    "html": Html,
    "image": Image,
    "images": Images,
    "table": Table,
    "text": TextItem,
    "video": Video,
}

MOST_INTEGER: Final = (1 << 63) - 1
"""Largest step, and latest time in nanoseconds since the Unix epoch."""

EXACT: Final = 1 << 53
"""Integer up to which floats contain all integers."""

_MOST_POINTS: Final = 50_000
"""Number of points from which on a request is sent, as in an agent's requests."""
_LONGEST_NAME: Final = 1024
_MOST_BUCKETS: Final = 100_000
_NO_ATTRIBUTES: Final[Mapping[str, Attribute]] = MappingProxyType({})

Numbers = NDArray[np.float64] | NDArray[np.int64]


class RunRequests:
    """One run of an import, as requests to a sender. Call `start` first and `finish` last. Not thread-safe.

    Calls with equal values give equal requests, in the same blocks, so that a server recognizes them when they are sent
    again. Requests are sent whenever 50,000 points have come together, so memory is bounded.
    """

    def __init__(self, sender: Sender, tally: Tally) -> None:
        """
        Args:
            sender: Destination of the requests.
            tally: Counts of the import.
        """
        self._sender = sender
        self._tally = tally
        self._process = ""
        self._resources: dict[str, Mapping[str, Attribute]] = {}
        self._records = RecordRequests(sender, self._resources, self._report_record, derive_severity=True)
        self._series: list[Series] = []
        self._points = 0
        self._step_times = StepTimes()
        self._assigned: tuple[Any, Any, NDArray[np.int64]] | None = None
        self._names: set[str] = set()
        self._mask = OutputMask()
        self._log_time, self._log_repeats = -1, 0

    def start(
        self,
        project: str,
        run_id: str,
        name: str = "",
        *,
        started: int,
        config: Mapping[str, Any] | None = None,
        group: str = "",
        job_type: str = "",
        tags: Sequence[str] = (),
        notes: str = "",
        resource: Mapping[str, Any] | None = None,
        rank: int | None = None,
        attempt: int = 1,
        process: str = "",
        counted: bool = True,
    ) -> None:
        """Begin the run, or a further process or attempt of it. Secrets in the configuration are masked.

        Args:
            project: Name of the project.
            run_id: ID of the run in its source. An ID that tensormeter does not permit is changed to one that it does.
            name: Name of the run. Default: `run_id`.
            started: Time of the start in nanoseconds since the Unix epoch.
            config: Configuration. Mappings and lists may be nested.
            group: Name of the run's group, or "".
            job_type: Kind of work that the run does, or "".
            tags: Tags.
            notes: Notes, or "".
            resource: Further attributes of the process, such as `host.name`.
            rank: Rank of the process, or None.
            attempt: Number of the attempt, from 1. An attempt shadows those points of earlier ones whose steps it repeats.
            process: ID of the process in its source. Default: derived from the other arguments.
            counted: Whether to count this as a run. Pass False for further processes and attempts.
        """
        self._flush()
        described = run_resource(project, run_id, name, resource or {}, rank=rank, attempt=attempt, process=process)
        self._process = str(described[SERVICE_INSTANCE_ID])
        self._resources[self._process] = described
        self._step_times, self._assigned = StepTimes(), None
        body: dict[str, Value] = {
            "config": self._fitting(config or {}, "values of the configuration that are too large")
        }
        labels = {"group": fit_label(group), "job_type": fit_label(job_type), "notes": notes}
        body |= {key: text for key, text in labels.items() if text}
        if tags:
            body["tags"] = [label for tag in tags if (label := fit_label(tag))]
        self._records.add(self._process, Event(RUN_START, max(1, started), body), 0)
        self._tally.runs += counted
        self._tally.projects[str(described[SERVICE_NAME])] = None

    def points(
        self,
        name: str,
        steps: NDArray[np.int64] | None,
        times: NDArray[np.int64],
        values: Numbers,
        unit: str = "",
        attributes: Mapping[str, Attribute] = _NO_ATTRIBUTES,
    ) -> None:
        """Add points of one metric. Metrics of the same rows should be passed one after another, with the same arrays.

        Args:
            name: Name of the metric.
            steps: Step of each point, int64, shape (n,), or None if the points have no steps.
            times: Time of each point in nanoseconds since the Unix epoch, int64, shape (n,).
            values: Values, float64 or int64, shape (n,).
            unit: UCUM unit, or "".
            attributes: Attributes that distinguish this series from others with the same name.
        """
        self.placed_points(name, times if steps is None else self.place(steps, times), values, unit, attributes)

    def place(self, steps: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add steps, and return the times that belong to them, for `placed_points`.

        A source whose metrics have different times should call this once for all points of a block, in their order.

        Args:
            steps: Step of each point, int64, shape (n,).
            times: Time of each point in nanoseconds since the Unix epoch, int64, shape (n,).

        Returns:
            Times, int64, shape (n,). They differ from `times` only where a time belongs to another step.
        """
        last = self._assigned
        if last is not None and last[0] is steps and last[1] is times:
            return last[2]
        assigned, new_times, new_steps = self._step_times.assign(
            np.ascontiguousarray(steps, np.int64), np.maximum(times, 1, dtype=np.int64)
        )
        self._assigned = steps, times, assigned
        if len(new_times):
            self._add_series(Gauge(STEP_METRIC, new_times.view(np.uint64), new_steps), len(new_times))
        return assigned

    def placed_points(
        self,
        name: str,
        times: NDArray[np.int64],
        values: Numbers,
        unit: str = "",
        attributes: Mapping[str, Attribute] = _NO_ATTRIBUTES,
    ) -> None:
        """Add points of one metric at times from `place`. See `points`."""
        if not len(times) or not self._is_named(name, len(times)):
            return
        moments = np.maximum(times, 1, dtype=np.int64).view(np.uint64)
        converted: Numbers = (
            values.astype(np.int64, copy=False) if values.dtype.kind in "iu" else values.astype(np.float64, copy=False)
        )
        gauge = Gauge(name, moments, converted, unit=unit, attributes=attributes)
        self._tally.points += len(times)
        self._add_series(gauge, len(times))

    def histogram(
        self,
        name: str,
        step: int | None,
        time: int,
        edges: ArrayLike,
        counts: ArrayLike,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        total: float | None = None,
        unit: str = "",
        attributes: Mapping[str, Attribute] = _NO_ATTRIBUTES,
    ) -> None:
        """Add a distribution.

        Args:
            name: Name of the metric.
            step: Step, or None.
            time: Time in nanoseconds since the Unix epoch.
            edges: Increasing edges of the buckets, shape (k + 1,).
            counts: Number of values in each bucket, shape (k,). Fractions are rounded.
            minimum: Smallest value, or None if unknown.
            maximum: Largest value, or None if unknown.
            total: Sum of the values, or None if unknown.
            unit: UCUM unit, or "".
            attributes: Attributes that distinguish this series from others with the same name.
        """
        if not self._is_named(name, 1):
            return
        bounds = np.asarray(edges, np.float64)
        numbers = np.asarray(counts, np.float64)
        if numbers.size > _MOST_BUCKETS:
            self._tally.leave_out(f"histograms with more than {_MOST_BUCKETS:,} buckets")
            return
        is_valid = (
            bounds.ndim == numbers.ndim == 1
            and len(bounds) == len(numbers) + 1
            and (np.diff(bounds) > 0).all()
            and (numbers >= 0).all()
            and numbers.sum() < MOST_INTEGER
        )
        if not is_valid:
            self._tally.leave_out("histograms with invalid buckets")
            return
        finite = np.isfinite(bounds)  # the outermost edges may be infinite, as the outermost buckets of OTLP are open
        padded = np.concatenate(([0.0], numbers, [0.0])).round().astype(np.uint64)
        if not finite[0]:
            padded, bounds = padded[1:], bounds[1:]
        if not finite[-1]:
            padded, bounds = padded[:-1], bounds[:-1]
        moment = np.array([max(1, time)], np.int64)
        if step is not None:
            moment = self.place(np.array([step], np.int64), moment)
        sums, minima, maxima = (np.array([np.nan if value is None else value]) for value in (total, minimum, maximum))
        times = moment.view(np.uint64)
        self._tally.points += 1
        self._add_series(
            Histogram(
                name,
                times,
                start_times=times,
                counts=padded.sum(keepdims=True),
                sums=sums,
                minima=minima,
                maxima=maxima,
                bounds=bounds,
                buckets=padded[np.newaxis],
                unit=unit,
                attributes=attributes,
                temporality=Temporality.DELTA,
            ),
            1 + len(padded) // 4,
        )

    def item(
        self,
        kind: ItemKind,
        key: str,
        step: int | None,
        time: int,
        *,
        chart: Mapping[str, Any] | None = None,
        **content: Any,
    ) -> bool:
        """Add a media item. If it exceeds a limit or has an invalid type, it is counted as left out.

        Args:
            kind: Kind of the item. `tensormeter.otlp.media` describes the content of each.
            key: Key of the item; for an alert, its title.
            step: Step, or None.
            time: Time in nanoseconds since the Unix epoch.
            chart: Chart of a table, such as ``{"kind": "line", "x": "recall", "y": "precision"}``.
            content: Fields of the item, such as `data` and `content_type`.

        Returns:
            Whether the item was kept.
        """
        named: dict[str, Any] = {"title" if kind == "alert" else "key": key}
        if len(key) > _LONGEST_NAME:
            self._tally.leave_out(f"{kind} items with keys longer than {_LONGEST_NAME:,} characters")
            return False
        try:
            if max(time, abs(step or 0)) > MOST_INTEGER:
                raise EncodingError(f"{kind} {key!r}: the step or the time has more than 64 bits")
            event = _KINDS[kind](**named, **content).event(max(1, time), step)
        except TooLargeError as error:
            self._tally.leave_out(f"{kind} items that are too large")
            self._tally.report(str(error))
            return False
        except EncodingError as error:
            self._tally.leave_out(f"{kind} items that are invalid")
            self._tally.report(str(error))
            return False
        if chart is not None and isinstance(event.body, dict):
            event.body["chart"] = dict(chart)
        self._tally.media += 1
        self.event(event)
        return True

    def log(self, time: int, severity: int, text: str, *, severity_text: str = "", stream: str = "") -> None:
        """Add a line of the run's output. Secrets are masked. Lines with the same time get successive nanoseconds.

        Args:
            time: Time in nanoseconds since the Unix epoch.
            severity: OTLP severity number, such as 9 for INFO, 13 for WARN and 17 for ERROR.
            text: Line without its line break.
            severity_text: Severity as named by the source. Default: derived from the number.
            stream: `stdout`, `stderr` or "".
        """
        self._log_repeats = self._log_repeats + 1 if time == self._log_time else 0
        self._log_time = time
        names = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
        attributes: dict[str, Attribute] = {LOG_STREAM: stream} if stream else {}
        event = Event(
            "",
            max(1, time) + self._log_repeats,
            self._mask.line(text),
            attributes,
            severity_number=severity,
            severity_text=severity_text or names[min(max(severity - 1, 0) // 4, 5)],
        )
        self._tally.logs += 1
        self._records.add(self._process, event, len(text))

    def config(self, values: Mapping[str, Any], time: int) -> None:
        """Replace the configuration, if the source has it later than its start. Secrets are masked.

        Args:
            values: Configuration.
            time: Time of the change in nanoseconds since the Unix epoch.
        """
        fitting = self._fitting(values, "values of the configuration that are too large")
        self._records.add(self._process, Event(RUN_CONFIG, max(1, time), {"config": fitting}), 0)

    def summary(self, values: Mapping[str, Any], time: int) -> None:
        """Set the summary of the run: the values that its script wrote. Nested names are joined with "/".

        Args:
            values: Values by name.
            time: Time of the change in nanoseconds since the Unix epoch.
        """
        fitting = flatten(self._fitting(values, "values of the summary that are too large"))
        if fitting:
            self._records.add(self._process, Event(RUN_CONFIG, max(1, time), {"summary": fitting}), 0)

    def event(self, event: Event) -> None:
        """Add an event of another kind, such as an artifact's record."""
        self._records.add(self._process, event, _size_of(event.body))

    def finish(self, state: RunState, ended: int, message: str = "") -> None:
        """End the run, and send what is left.

        Args:
            state: Final state.
            ended: Time of the end in nanoseconds since the Unix epoch.
            message: Cause of the end, or "".
        """
        body: dict[str, Value] = {"state": state, "message": message, "dropped": {}}
        self._records.add(self._process, Event(RUN_END, max(1, ended), body), 0)
        self._flush()

    def left_out(self, kind: str, count: int = 1) -> None:
        """Count items of the source that are not kept. See `Tally.leave_out`."""
        self._tally.leave_out(kind, count)

    def _fitting(self, values: Mapping[str, Any], kind: str) -> dict[str, Value]:
        masked, _ = mask_config(plain_document(values))
        fitting, left_out = fit(masked, CONFIG_BYTES)
        self._tally.leave_out(kind, len(left_out))
        return fitting

    def _report_record(self, fault: str) -> None:
        self._tally.leave_out("records that cannot be encoded")
        self._tally.report(fault)

    def _is_named(self, name: str, points: int) -> bool:
        if name in self._names:
            return True
        if not name or len(name) > _LONGEST_NAME:
            self._tally.leave_out("points of metrics without a name or with one longer than 1,024 characters", points)
            return False
        if len(self._names) >= METRIC_NAMES:
            self._tally.leave_out(f"points of metrics beyond the limit of {METRIC_NAMES:,} metrics", points)
            return False
        self._names.add(name)
        return True

    def _add_series(self, series: Series, size: int) -> None:
        self._series.append(series)
        self._points += size
        if self._points >= _MOST_POINTS:
            self._flush_points()

    def _flush(self) -> None:
        self._flush_points()
        self._records.flush()

    def _flush_points(self) -> None:
        if self._series:
            batch = Batch(self._resources[self._process], self._series)
            self._sender.send("metrics", encode_metrics([batch]), batch.points)
        self._series, self._points = [], 0


def _size_of(value: Any) -> int:
    """Return roughly how many bytes a body has."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size_of, value.values()))
    if isinstance(value, list | tuple):
        return 8 + sum(map(_size_of, value))
    return 8
