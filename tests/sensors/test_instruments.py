"""Names, kinds, units and attributes: the semantic conventions' own package knows them; the page shows them."""

import importlib
import os
import pkgutil
import time
from pathlib import Path

import opentelemetry.semconv._incubating.attributes as attribute_modules
import opentelemetry.semconv._incubating.metrics as metric_modules
import opentelemetry.semconv.attributes as stable_attribute_modules
import pytest

from tensormeter.cli.sensors_reference import ALL_INSTRUMENTS, page
from tensormeter.sensors.gpu.nvidia import NvidiaSensor
from tensormeter.sensors.host.container import ContainerSensor
from tensormeter.sensors.host.filesystem import FilesystemSensor
from tensormeter.sensors.host.host import HostSensor
from tensormeter.sensors.host.process import ProcessSensor
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import TrainingProcess, Watch

ROOT = Path(__file__).parents[2]
KINDS = {"gauge": "observable_gauge", "counter": "counter", "updowncounter": "up_down_counter"}


class Notebook:
    """A meter that only notes what is asked of it."""

    def __init__(self):
        self.noted = {}

    def __getattr__(self, name):
        kind = name.removeprefix("create_")

        def create(*, name, unit="", **_):
            self.noted[name] = (kind, unit)

        return create


@pytest.fixture(scope="module")
def conventions():
    """{metric: (kind, unit)}, from the functions that make the instruments."""
    notebook = Notebook()
    for module in pkgutil.iter_modules(metric_modules.__path__):
        functions = vars(importlib.import_module(f"{metric_modules.__name__}.{module.name}"))
        for name, function in functions.items():
            if name.startswith("create_"):
                function(notebook, *([None] if "callbacks" in function.__annotations__ else []))
    assert notebook.noted["hw.power"] == ("observable_gauge", "W")
    return notebook.noted


@pytest.fixture(scope="module")
def conventional_attributes():
    return {
        value
        for package in (attribute_modules, stable_attribute_modules)
        for module in pkgutil.iter_modules(package.__path__)
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
        if isinstance(value, str)
    }


@pytest.mark.parametrize("instrument", ALL_INSTRUMENTS, ids=lambda instrument: instrument.name)
def test_instruments_keep_the_semantic_conventions(instrument, conventions, conventional_attributes):
    if instrument.name.startswith("tensormeter."):
        assert instrument.name not in conventions
    else:
        assert conventions[instrument.name] == (KINDS[instrument.kind], instrument.unit)
    for attribute in instrument.attributes:
        assert attribute.startswith("tensormeter.") or attribute in conventional_attributes
    assert instrument.description.endswith((".", "else 0."))


def test_names_are_unique():
    names = [instrument.name for instrument in ALL_INSTRUMENTS]
    assert len(names) == len(set(names))


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/sensors.md").read_text() == page(), (
        "python -m tensormeter.cli.sensors_reference > docs/sensors.md"
    )


def test_points_have_only_the_attributes_that_are_listed(nvml):
    watch = Watch(processes=(TrainingProcess("p", os.getpid(), time.time(), None),))
    sensors = [HostSensor(), FilesystemSensor(watch), ProcessSensor(watch), ContainerSensor(), NvidiaSensor(watch)]
    known = {instrument.name for instrument in ALL_INSTRUMENTS}
    for sensor in sensors:
        observe(sensor, {})
        for name, items in observe(sensor, {}).items():
            assert name in known
            for instrument, value, attributes in items:
                assert instrument in sensor.instruments
                assert attributes.keys() <= set(instrument.attributes), instrument.name
                assert type(value) in (int, float)
        sensor.close()
