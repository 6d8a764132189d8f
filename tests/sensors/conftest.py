"""NVIDIA's library, replaced."""

from pathlib import Path

import pynvml
import pytest
from nvml_library import Library


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Library:
    """NVIDIA's module as it is, on top of a library that answers from `nvml.json`."""
    library = Library(Path(__file__).with_name("nvml.json"))
    monkeypatch.setattr(pynvml, "CDLL", lambda name: library)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return library
