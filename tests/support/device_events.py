"""Events of devices, for tests that use CPU tensors in place of those of Apple's and Intel's devices."""

from typing import Any

import pytest

from tensormeter.record.device.event_copies import EventCopies

__all__ = ["FakeEvent", "use_fake_events"]


class FakeEvent:
    """An event that is over when the test says so."""

    def __init__(self) -> None:
        self.happened = False

    def query(self) -> bool:
        return self.happened


def use_fake_events(copies: Any, monkeypatch: pytest.MonkeyPatch) -> list[FakeEvent]:
    """Copy values of CPU tensors by events.

    Args:
        copies: The device copies of a recorder.
        monkeypatch: The fixture that restores the list of event devices.

    Returns:
        The events that are recorded from now on.
    """
    events: list[FakeEvent] = []

    def record(device: object) -> FakeEvent:
        events.append(FakeEvent())
        return events[-1]

    copies._events = EventCopies(copies.pending, record)
    monkeypatch.setattr("tensormeter.record.device.device_copies.EVENT_DEVICES", ("cpu",))
    return events
