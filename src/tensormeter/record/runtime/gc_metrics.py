"""Metrics of Python's garbage collector: `cpython.gc.*` from OpenTelemetry's semantic conventions."""

import gc
from collections.abc import Iterator, Mapping
from typing import Final

from tensormeter.ring.layout import Stream

__all__ = ["GARBAGE", "garbage"]

GARBAGE: Final[Mapping[str, tuple[str, str, str]]] = {
    "cpython.gc.collections": ("collections", "{collection}", "Number of times that the generation was collected."),
    "cpython.gc.collected_objects": ("collected", "{object}", "Number of collected objects."),
    "cpython.gc.uncollectable_objects": ("uncollectable", "{object}", "Number of objects that could not be collected."),
}
"""Metrics by name. Each has a key in `gc.get_stats`, a unit and a description."""


def garbage() -> Iterator[tuple[Stream, int]]:
    """Yield the garbage collector's totals for each generation. Takes a few microseconds. Thread-safe."""
    for generation, statistics in enumerate(gc.get_stats()):
        attributes = (("cpython.gc.generation", generation),)
        for name, (key, unit, description) in GARBAGE.items():
            yield Stream(name, "observable_counter", unit, description, attributes), statistics[key]
