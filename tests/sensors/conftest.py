"""NVIDIA's library, replaced."""

from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from nvml_library import Library


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Library:
    """pynvml as it is, on top of a library that answers from `nvml.json`."""
    library = Library(Path(__file__).with_name("nvml.json"))
    monkeypatch.setattr(pynvml, "CDLL", lambda name: library)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return library


@pytest.fixture
def values() -> Callable[..., dict]:
    """Takes one sample of a sensor, as {(instrument, attribute values...): value}."""
    from tensormeter.sensors.instrument import observe

    def read(sensor, failures=None, *attributes: str) -> dict:
        observed = observe(sensor, {} if failures is None else failures)
        return {
            (name, *(str(item[2].get(key)) for key in attributes)): item[1] for name, items in observed.items() for item in items
        }

    return read
