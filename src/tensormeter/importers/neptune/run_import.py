"""Import of one Neptune run."""

import re
from typing import Any, Final

import numpy as np

from tensormeter.conventions.semconv import RUN_START
from tensormeter.importers.coded_points import add_coded_points
from tensormeter.importers.neptune.attributes import RunAttributes
from tensormeter.importers.neptune.export import MONITORING, RunExport, micro_steps, milliseconds
from tensormeter.importers.neptune.files import RunFiles
from tensormeter.importers.registry import ImportContext
from tensormeter.importers.repeated_texts import RepeatedTexts
from tensormeter.otlp.batch import Event, Value
from tensormeter.settings import IDENTIFIER

__all__ = ["RunImport"]

_COLUMNS: Final = (
    "attribute_path",
    "attribute_type",
    "step",
    "timestamp",
    "float_value",
    "string_value",
    "file_value",
    "histogram_value",
)
_OUTPUT: Final = re.compile(r"(monitoring/.*|runtime/)?(stdout|stderr)")
"""Paths of series with the output of a process."""

_MICRO: Final = 1_000_000
_APART: Final = _MICRO - 1
"""Nanoseconds that are added to times without a step, so that they differ from those of steps. Milliseconds stay the same."""
_FILES: Final = ("file", "file_series", "file_set", "artifact")
_COUNTS: Final = "COUNTING"
_INFO: Final = 9
_LATEST: Final = (1 << 62) // _MICRO


class RunImport:
    """Import of one run of an export."""

    def __init__(self, run: RunExport, attributes: RunAttributes, multiplier: int, context: ImportContext) -> None:
        """
        Args:
            run: Files of the run.
            attributes: Attributes of the run.
            multiplier: Factor that makes the steps integers.
            context: The import.
        """
        self._run = run
        self._attributes = attributes
        self._multiplier = multiplier
        self._context = context
        self._tally = context.tally
        self._requests = context.run()
        self._texts = RepeatedTexts(self._requests)
        self._files = RunFiles(self._requests, self._tally, run.files)
        self._started = attributes.time("sys/creation_time") or 1
        self._latest = self._started

    def send(self) -> None:
        """Send the run. Rows that cannot be read are reported.

        Raises:
            TensormeterError: The requests could not be sent.
        """
        self._start()
        for batch in self._run.batches(_COLUMNS, self._tally.report):
            self._points(batch)
            self._others(batch)
        self._texts.flush()
        ended = self._attributes.time("sys/modification_time")
        failed = self._attributes.values.get("sys/failed") is True
        self._requests.finish("failed" if failed else "finished", max(self._started, ended or self._latest))

    def _start(self) -> None:
        attributes, name = self._attributes, self._attributes.text("sys/name")
        config = attributes.config()
        if self._multiplier > 1:
            config["neptune_step_multiplier"] = self._multiplier
        tags, groups = attributes.texts("sys/tags"), attributes.texts("sys/group_tags")
        owner, host = attributes.text("sys/owner"), attributes.text("sys/hostname")
        resource = {"process.owner": owner, "host.name": host}
        self._requests.start(
            self._context.project(attributes.project),
            attributes.run_id,
            self._context.name(attributes.run_id if attributes.is_version_3 else name or attributes.run_id),
            started=self._started,
            config=config,
            group=name if attributes.is_version_3 else ", ".join(groups),
            tags=[*tags, *(group for group in groups if group not in tags)],
            notes=attributes.text("sys/description"),
            resource={key: value for key, value in resource.items() if value},
        )
        parent = attributes.parent
        if parent is not None and IDENTIFIER.fullmatch(parent[0]):
            fork: dict[str, Value] = {"run": parent[0], "step": round(parent[1] * self._multiplier)}
            self._requests.event(Event(RUN_START, self._started, {"forked_from": fork}))

    def _points(self, batch: Any) -> None:
        """Add the numbers of a batch. Those that Neptune's client has measured have no steps, but a counter."""
        import pyarrow.compute as pc

        rows = batch.filter(pc.equal(batch.column("attribute_type"), "float_series"))
        if not rows.num_rows:
            return
        paths = rows.column("attribute_path").dictionary_encode()
        names = [str(name) for name in paths.dictionary.to_pylist()]
        codes = paths.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        steps, has_step = micro_steps(rows.column("step"))
        times, has_time = milliseconds(rows.column("timestamp"))
        values = rows.column("float_value")
        numbers = np.array(values.to_numpy(zero_copy_only=False), np.float64)  # the exporter writes NaN as null
        kept = has_time & (times > 0) & (times < _LATEST)
        self._tally.leave_out("points without a time", int((~kept).sum()))
        is_measured = np.array([name.startswith(MONITORING) for name in names], bool)[codes]
        for stepped, chosen in ((True, kept & has_step & ~is_measured), (False, kept & (is_measured | ~has_step))):
            if chosen.any():
                moments = times[chosen] * _MICRO
                self._latest = max(self._latest, int(moments.max()))
                if not stepped:
                    moments = moments + _APART
                else:
                    moments = self._requests.place(steps[chosen] // (_MICRO // self._multiplier), moments)
                add_coded_points(self._requests, names, codes[chosen], moments, numbers[chosen])

    def _others(self, batch: Any) -> None:
        """Add texts, histograms and files of a batch."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kinds = pa.array(["string_series", "histogram_series", *_FILES])
        rows = batch.filter(pc.is_in(batch.column("attribute_type"), kinds))
        if not rows.num_rows:
            return
        steps, has_step = micro_steps(rows.column("step"))
        times, has_time = milliseconds(rows.column("timestamp"))
        for index, row in enumerate(rows.to_pylist()):
            step = int(steps[index]) // (_MICRO // self._multiplier) if has_step[index] else None
            time = int(times[index]) * _MICRO if has_time[index] and 0 < times[index] < _LATEST else self._latest
            self._add(str(row["attribute_path"]), str(row["attribute_type"]), step, time, row)

    def _add(self, path: str, kind: str, step: int | None, time: int, row: dict[str, Any]) -> None:
        if kind == "string_series":
            text, output = row.get("string_value"), _OUTPUT.fullmatch(path)
            if not isinstance(text, str):
                self._tally.leave_out("texts without a value")
            elif output is not None:
                for line in text.splitlines():
                    self._requests.log(time, _INFO, line, stream=output[2])
            else:
                self._texts.add(path, step, time, text)
        elif kind == "histogram_series":
            self._histogram(path, step, time, row.get("histogram_value"))
        elif isinstance(value := row.get("file_value"), dict) and isinstance(value.get("path"), str):
            self._files.add(path, kind, step, time, value["path"])
        else:
            self._tally.leave_out("files that were not downloaded")

    def _histogram(self, path: str, step: int | None, time: int, value: Any) -> None:
        if not isinstance(value, dict) or value.get("type") != _COUNTS:
            self._tally.leave_out("histograms without counts")
            return
        try:
            edges, counts = (np.array(value[name], np.float64) for name in ("edges", "values"))
        except (KeyError, TypeError, ValueError):
            self._tally.leave_out("histograms with invalid buckets")
            return
        self._requests.histogram(path, step, time, edges, counts)
