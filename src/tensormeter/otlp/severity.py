"""The severity of tensormeter's own log records. Log stores use the severity for sorting and filtering."""

from collections.abc import Mapping
from typing import Final

from tensormeter.conventions.semconv import ALERT_EVENT, RUN_END
from tensormeter.otlp.batch import Event

__all__ = ["severity_of"]

_NUMBERS: Final = {"INFO": 9, "WARN": 13, "ERROR": 17}
"""Lowest number of the OTLP severity range for each severity."""

_BAD_ENDS: Final = ("failed", "crashed")


def severity_of(event: Event) -> tuple[int, str]:
    """Return the number and text of an event's severity. If the event has no severity, derive it from the event's content.

    The severity of an alert is its level. The end of a failed or crashed run has the severity ERROR. All other events are INFO.
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
