"""Phases with a clock that is set by hand, and with a device that is where the test says."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

from tensormeter.record.phases.phases import Phases


class FakeDevice:
    """A device that is some time behind the host. Its events are over up to a moment of the device's time."""

    def __init__(self, clock):
        self.clock = clock
        self.behind = 0.5
        self.reached = float("inf")
        self.capturing = False
        self.broken = False
        self.made = 0
        self.in_use = 0
        self.freed = []

    def record(self):
        if self.broken:
            raise RuntimeError("an illegal memory access")
        if self.capturing:
            return None
        self.made += 1
        self.in_use += 1
        return SimpleNamespace(time=self.clock.now / 1e9 + self.behind, thread=threading.get_ident())

    def asking(self):
        return nullcontext()

    def are_over(self, events):
        assert all(event.thread == threading.get_ident() for event in events)
        return not self.capturing and all(event.time <= self.reached for event in events)

    def seconds(self, first, second):
        assert max(first.time, second.time) <= self.reached, "an event that is not over was asked for its time"
        return second.time - first.time

    def free(self, event):
        assert not any(event is other for other in self.freed), "an event was freed twice"
        self.freed.append(event)
        self.in_use -= 1


class Clock:
    def __init__(self):
        self.now = 1_000_000_000_000

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += round(seconds * 1e9)


class Rig:
    """Phases whose rows are gathered: (step, values by metric, phase and clock)."""

    def __init__(self, clock, device):
        self.rows = []
        self.next_step = 0
        self.clock = clock
        self.device = device
        self.layouts = 0
        self.full = False
        events = device or SimpleNamespace(record=lambda: None)
        self.phases = Phases(self.find, self.write, lambda: self.next_step, lambda: events)

    def find(self, streams):
        if self.full:
            return None
        self.layouts += 1
        return streams

    def write(self, streams, values, step):
        row = {}
        for stream, value in zip(streams, values, strict=True):
            attributes = dict(stream.attributes)
            name = stream.name.removeprefix("tensormeter.")
            row[name, attributes.get("tensormeter.phase", ""), attributes.get("tensormeter.clock", "")] = value
        self.rows.append((step, row))

    def phase(self, name, seconds=0.0):
        with self.phases.phase(name):
            self.clock.pass_(seconds)

    def step(self, seconds=1.0, step=None, items=None):
        with self.phases.step(step, items):
            self.phase("model_forward", seconds)
