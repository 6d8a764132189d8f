"""The `console` destination, which prints a line for each series and event to standard output.

With `agent="thread"`, output appears in the script's terminal; an agent process writes to the run's `agent.log`.
Retried requests are printed again.
"""

import sys
from typing import ClassVar

from tensormeter.conventions.semconv import RUN_CODE
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Request, Retry
from tensormeter.otlp.media import Alert
from tensormeter_exporters.base import UNCHANGED, DecodingExporter
from tensormeter_exporters.otlp_series import ProcessRef, RunEvent, read_events, read_metrics, scalars
from tensormeter_exporters.provenance import code_rows

__all__ = ["ConsoleExporter"]


class ConsoleExporter(DecodingExporter):
    """The exporter of the `console` destination. It implements `tensormeter.exporter.Exporter` and has no options."""

    media: ClassVar = dict.fromkeys(UNCHANGED, "a line")

    def __init__(self, config: ExporterConfig) -> None:
        config.options_or()

    def deliver(self, request: Request) -> Outcome:
        lines = self._metrics(request) if request.signal == "metrics" else self._events(request)
        text = "".join(f"{_plain(line)}\n" for line in lines)
        if sys.stdout is None or sys.stdout.closed:
            return Retry("standard output is closed")
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
        return Accepted()

    @staticmethod
    def _metrics(request: Request) -> list[str]:
        return [
            f"{_run(stepped.sender)} {f'step {stepped.steps[-1]}' if stepped.stepped[-1] else '-'} "
            f"{numbers.name} = {numbers.values[-1]:.6g} {stepped.series.unit}".rstrip()
            + (f" (last of {len(numbers.values)})" if len(numbers.values) > 1 else "")
            for stepped in read_metrics(request)
            if len(stepped.steps)
            for numbers in scalars(stepped)
        ]

    @staticmethod
    def _events(request: Request) -> list[str]:
        return [f"{_run(run_event.sender)} {_text(run_event)}" for run_event in read_events(request)]


def _text(run_event: RunEvent) -> str:
    if run_event.error:
        return run_event.error
    match run_event.media:
        case None if run_event.event.name == RUN_CODE:
            return f"{RUN_CODE} {dict(code_rows(run_event.body))}"
        case None:
            return f"{run_event.event.name} {run_event.event.body}"
        case Alert(title, text, level):
            return f"{level} {title}: {text}"
        case media:
            return f"{'-' if run_event.step is None else f'step {run_event.step}'} {run_event.event.name} {media.key}"


def _run(sender: ProcessRef) -> str:
    return f"{sender.project}/{sender.run}"


def _plain(line: str) -> str:
    """Shorten a line, and replace characters that would move the terminal's cursor."""
    return "".join(char if char.isprintable() else "�" for char in line[:1000])
