"""The severity with which tensormeter's own log records are sent: log stores sort and filter by it."""

from collections.abc import Mapping
from typing import Final

from tensormeter.conventions.semconv import ALERT_EVENT, RUN_END
from tensormeter.otlp.batch import Event

__all__ = ["severity_of"]

_NUMBERS: Final = {"INFO": 9, "WARN": 13, "ERROR": 17}
"""The first of each of OTLP's ranges."""

_BAD_ENDS: Final = ("failed", "crashed")


def severity_of(event: Event) -> tuple[int, str]:
    """Number and text of an event's severity: its own, or else what its content implies.

    An alert has the severity of its level. A run that failed or crashed ends with ERROR. Everything else is INFO.
    """
    if event.severity_number or event.severity_text:
        return event.severity_number, event.severity_text
    text = "INFO"
    if isinstance(event.body, Mapping):
        level = event.body.get("level")
        if event.name == ALERT_EVENT and isinstance(level, str) and level in _NUMBERS:
            text = level
        elif event.name == RUN_END and event.body.get("state") in _BAD_ENDS:
            text = "ERROR"
    return _NUMBERS[text], text
