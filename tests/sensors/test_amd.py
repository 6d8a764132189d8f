"""AMD's GPUs: what the library says, read through amdsmi's own Python code. Written from its documentation."""

import ctypes
import importlib.util
import sys
from typing import Any

import pytest

from tensormeter.sensors.gpu.amd import AmdSensor
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import TrainingProcess, Watch

NOT_SUPPORTED, IO_ERROR, SUCCESS = 2, 12, 0


class Library:
    """Stands in for `libamd_smi.so`: one socket with one MI300X."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self._functions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("amdsmi_"):
            raise AttributeError(name)
        fill = getattr(self, f"_{name}", None)

        def call(*arguments: Any) -> int:
            code = self.codes.get(name, SUCCESS if fill else NOT_SUPPORTED)
            if code == SUCCESS:
                fill(*[getattr(argument, "_obj", argument) for argument in arguments])
            return code

        return self._functions.setdefault(name, call)

    def _amdsmi_init(self, flags): ...

    def _amdsmi_shut_down(self): ...

    def _amdsmi_get_socket_handles(self, count, handles):
        count.value = 1

    def _amdsmi_get_processor_handles(self, socket, count, handles):
        count.value = 1

    def _amdsmi_get_gpu_device_uuid(self, handle, length, text):
        text.value = b"76ff74a1-0000-1000-80c2-000000000000"

    def _amdsmi_get_gpu_activity(self, handle, usage):
        usage.gfx_activity, usage.umc_activity, usage.mm_activity = 93, 37, 0xFFFF

    def _amdsmi_get_gpu_vram_usage(self, handle, usage):
        usage.vram_total, usage.vram_used = 196_592, 98_296

    def _amdsmi_get_gpu_asic_info(self, handle, info):
        info.market_name = b"AMD Instinct MI300X"
        info.asic_serial = b"1234"

    def _amdsmi_get_gpu_driver_info(self, handle, info):
        info.driver_version = b"6.12.12"

    def _amdsmi_get_power_info(self, handle, info):
        info.current_socket_power, info.average_socket_power = 612, 0xFFFF

    def _amdsmi_get_power_cap_info(self, handle, sensor, info):
        info.power_cap = 750_000_000

    def _amdsmi_get_energy_count(self, handle, energy, resolution, timestamp):
        energy.value, resolution.value = 1_000_000_000, 15.25

    def _amdsmi_get_temp_metric(self, handle, sensor, metric, value):
        value.value = {1: 51, 2: 47}[int(sensor)]

    def _amdsmi_get_clock_info(self, handle, domain, info):
        info.clk = {0: 2100, 4: 1300}.get(int(domain), 0)

    def _amdsmi_get_gpu_total_ecc_count(self, handle, counts):
        counts.correctable_count, counts.uncorrectable_count = 5, 1

    def _amdsmi_get_gpu_process_list(self, handle, count, processes):
        count.value = 2
        for place, (pid, size) in enumerate([(4242, 90_000_000_000), (7, 1_000_000)]):
            processes[place].pid, processes[place].memory_usage.vram_mem = pid, size


@pytest.fixture
def library(monkeypatch):
    """amdsmi, imported on top of the stand-in."""
    if importlib.util.find_spec("amdsmi") is None:
        pytest.skip("the extra `amd` is not installed")
    for name in [name for name in sys.modules if name.partition(".")[0] == "amdsmi"]:
        monkeypatch.delitem(sys.modules, name)
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: library)
    yield library
    for name in [name for name in sys.modules if name.partition(".")[0] == "amdsmi"]:
        del sys.modules[name]


@pytest.fixture
def sample(library, tmp_path):
    sensor = AmdSensor(Watch(processes=(TrainingProcess("p", 4242, 0.0, "0"),)), tmp_path)
    failures: dict[str, int] = {}
    device = {"hw.id", "hw.name", "hw.type", "hw.model", "hw.vendor", "hw.driver_version"}

    def take():
        values = {}
        for name, items in observe(sensor, failures).items():
            for _, value, attributes in items:
                assert attributes["hw.id"] == "76ff74a1-0000-1000-80c2-000000000000"
                values[name, *[value for key, value in attributes.items() if key not in device]] = value
        return values, failures

    yield take
    sensor.close()


def test_every_reading_of_a_gpu_becomes_a_point(sample):
    values, failures = sample()
    assert failures == {}
    assert values == {
        ("hw.gpu.utilization", "general"): 0.93,
        ("tensormeter.gpu.memory.activity",): 0.37,
        ("hw.gpu.memory.usage",): 98_296 << 20,
        ("hw.gpu.memory.limit",): 196_592 << 20,
        ("hw.gpu.memory.utilization",): 0.5,
        ("hw.power",): 612,
        ("tensormeter.gpu.power.limit",): 750,
        ("hw.energy",): pytest.approx(15250),
        ("hw.temperature", "gpu"): 51,
        ("hw.temperature", "memory"): 47,
        ("tensormeter.gpu.clock.frequency", "graphics"): 2.1e9,
        ("tensormeter.gpu.clock.frequency", "memory"): 1.3e9,
        ("hw.errors", "corrected"): 5,
        ("hw.errors", "uncorrected"): 1,
        ("tensormeter.gpu.process.memory.usage", 4242, "trainer"): 90_000_000_000,
        ("tensormeter.gpu.process.memory.usage", 7, "other"): 1_000_000,
        ("tensormeter.gpu.visible",): 1,
    }  # no fan: it is cooled by the server's


def test_a_failing_reading_stops_nothing(sample, library):
    library.codes["amdsmi_get_power_info"] = IO_ERROR
    library.codes["amdsmi_get_energy_count"] = NOT_SUPPORTED
    values, failures = sample()
    assert ("hw.power",) not in values
    assert ("hw.energy",) not in values
    assert values["hw.temperature", "gpu"] == 51
    assert failures == {"AmdSmiLibraryException": 1}
    del library.codes["amdsmi_get_power_info"]
    assert sample()[0]["hw.power",] == 612


def test_no_driver_is_silent(tmp_path, caplog, capsys):
    assert AmdSensor(Watch(), tmp_path / "none").instruments == ()
    assert caplog.text == ""
    assert capsys.readouterr() == ("", "")
