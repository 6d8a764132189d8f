"""Severity of tensormeter's own log records, for sorting and filtering in log stores."""

from collections.abc import Mapping
from typing import Final

from tensormeter.conventions.semconv import ALERT_EVENT, RUN_END
from tensormeter.otlp.batch import Event

__all__ = ["severity_of"]

_NUMBERS: Final = {"INFO": 9, "WARN": 13, "ERROR": 17}
"""Lowest number of each OTLP severity range."""

_BAD_ENDS: Final = ("failed", "crashed")


def severity_of(event: Event) -> tuple[int, str]:
    """Return the number and text of an event's severity. If the event has none, derive it from the event's content.

    An alert's level determines its severity. The end of a run that failed or crashed is an ERROR. Everything else is INFO.
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
