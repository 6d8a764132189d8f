"""NVIDIA's GPUs: what the library says, read through pynvml's own code."""

import subprocess
import sys

import pynvml
import pytest
from record_nvml import record

from tensormeter.sensors.gpu.instruments import GPU_INSTRUMENTS, Monotonic, visible_to
from tensormeter.sensors.gpu.nvidia import NvidiaSensor
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import TrainingProcess, Watch

HEALTHY = "GPU-5c1ad2e5-89ad-5f5e-0f0d-000000000000"
SPLIT = "GPU-5c1ad2e5-89ad-5f5e-0f0d-000000000001"
OLD = "GPU-5c1ad2e5-89ad-5f5e-0f0d-000000000003"
PARTS = ["MIG-0b1f6d0a-1111-5c5c-9d9d-000000000000", "MIG-0b1f6d0a-2222-5c5c-9d9d-000000000002"]


@pytest.fixture
def watch():
    return Watch(processes=(TrainingProcess("p", 4242, 0.0, "0"),))


@pytest.fixture
def sample(nvml, watch):
    """Samples all GPUs: {GPU: {(instrument, its own attributes' values...): value}}, and the failures."""
    sensor = NvidiaSensor(watch)
    failures: dict[str, int] = {}
    device = {"hw.id", "hw.name", "hw.type", "hw.parent", "hw.model", "hw.vendor", "hw.driver_version"}

    def take():
        values: dict[str, dict] = {}
        for name, items in observe(sensor, failures).items():
            for _, value, attributes in items:
                assert attributes["hw.type"] == "gpu"
                own = [value for key, value in attributes.items() if key not in device]
                values.setdefault(attributes["hw.id"], {})[name, *own] = value
        return values, failures

    yield take
    sensor.close()


def test_every_reading_of_a_healthy_gpu_becomes_a_point(sample):
    sample()
    values = sample()[0][HEALTHY]
    assert values == {
        ("hw.gpu.utilization", "general"): 0.97,
        ("hw.gpu.utilization", "encoder"): 0.0,
        ("hw.gpu.utilization", "decoder"): 0.12,
        ("tensormeter.gpu.memory.activity",): 0.41,
        ("hw.gpu.memory.usage",): 64578125824,
        ("hw.gpu.memory.limit",): 85520809984,
        ("hw.gpu.memory.utilization",): 64578125824 / 85520809984,
        ("hw.power",): pytest.approx(612.345),
        ("tensormeter.gpu.power.limit",): pytest.approx(700),
        ("hw.energy",): pytest.approx(12345678.9),
        ("hw.temperature", "gpu"): 63,
        ("hw.temperature", "memory"): 71,
        ("hw.errors", "corrected"): 3,
        ("hw.errors", "uncorrected"): 0,
        ("hw.gpu.io", "transmit"): 5_000_000_000,
        ("hw.gpu.io", "receive"): 7_000_000_000,
        ("tensormeter.gpu.nvlink.io", "transmit"): 1 << 30,
        ("tensormeter.gpu.nvlink.io", "receive"): 2 << 30,
        ("tensormeter.gpu.clock.frequency", "graphics"): 1.755e9,
        ("tensormeter.gpu.clock.frequency", "sm"): 1.755e9,
        ("tensormeter.gpu.clock.frequency", "memory"): 2.619e9,
        ("tensormeter.gpu.clock.frequency", "video"): 1.56e9,
        ("tensormeter.gpu.sm.activity",): 0.885,
        ("tensormeter.gpu.sm.occupancy",): 0.4225,
        ("tensormeter.gpu.tensor.activity",): 0.61,
        ("tensormeter.gpu.dram.activity",): 0.555,
        ("tensormeter.gpu.process.memory.usage", 4242, "trainer"): 64_000_000_000,
        ("tensormeter.gpu.process.memory.usage", 99, "other"): 500_000_000,
        ("tensormeter.gpu.visible",): 1,
        **{
            ("tensormeter.gpu.throttled", reason): int(reason == "power_cap")
            for reason in (
                "idle",
                "applications_clocks_setting",
                "power_cap",
                "hardware_slowdown",
                "sync_boost",
                "thermal",
                "hardware_thermal",
                "power_brake",
                "display_clock_setting",
            )
        },
    }


def test_mig_devices_are_parts_of_their_gpu(sample, nvml, watch):
    watch.processes = (TrainingProcess("p", 1, 0.0, PARTS[1][:16]),)
    sample()
    by_device, _ = sample()
    assert [by_device[part]["hw.gpu.memory.limit",] for part in PARTS] == [42412802048, 10468982784]
    assert [by_device[part]["tensormeter.gpu.sm.activity",] for part in PARTS] == [0.33, 0.44]
    assert by_device[SPLIT]["tensormeter.gpu.sm.activity",] == 0.1
    assert [by_device[device]["tensormeter.gpu.visible",] for device in (SPLIT, *PARTS, HEALTHY)] == [1, 0, 1, 0]
    (attributes,) = [
        attributes
        for name, items in observe(NvidiaSensor(watch), {}).items()
        for _, _, attributes in items
        if name == "hw.gpu.memory.limit" and attributes["hw.id"] == PARTS[1]
    ]
    assert attributes == {
        "hw.id": PARTS[1],
        "hw.parent": SPLIT,
        "hw.name": "GPU 1 MIG 2",
        "hw.type": "gpu",
        "hw.model": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "hw.vendor": "NVIDIA",
        "hw.driver_version": "550.90.07",
    }


def test_an_old_card_gives_what_it_has(sample):
    values = sample()[0][OLD]
    assert values["hw.gpu.memory.usage",] == 589934592
    assert values["hw.temperature", "gpu"] == 48
    assert values["hw.fan.speed_ratio", "fan0"] == 0.33
    assert values["tensormeter.gpu.pcie.throughput", "transmit"] == 1_500_000
    assert values["tensormeter.gpu.pcie.throughput", "receive"] == 2_500_000
    reasons = {key[1] for key, value in values.items() if key[0] == "tensormeter.gpu.throttled" and value}
    assert reasons == {"idle", "thermal"}
    assert not {"hw.energy", "hw.errors", "hw.power", "tensormeter.gpu.nvlink.io"} & {key[0] for key in values}


def test_failures_are_counted_and_stop_nothing(sample):
    """GPU 2 has fallen off the bus; the power of GPU 3 cannot be read. A quantity that does not exist is no failure."""
    by_device, failures = sample()
    assert failures == {"NVMLError_GpuIsLost": 1, "NVMLError_Unknown": 1}
    assert {HEALTHY, SPLIT, *PARTS, OLD} == set(by_device)
    assert sample()[1] == {"NVMLError_GpuIsLost": 2, "NVMLError_Unknown": 2}


def test_absent_readings_are_not_asked_for_again(sample, nvml):
    sample()
    before = nvml.calls["nvmlDeviceGetTotalEnergyConsumption"], nvml.calls["nvmlDeviceGetUtilizationRates"]
    sample()
    after = nvml.calls["nvmlDeviceGetTotalEnergyConsumption"], nvml.calls["nvmlDeviceGetUtilizationRates"]
    assert (after[0] - before[0], after[1] - before[1]) == (1, 2)


def test_a_gpu_that_comes_back_is_read(sample, nvml):
    sample()
    nvml.devices["2"] = {**nvml.devices["0"], "nvmlDeviceGetUUID": "GPU-back"}
    assert "GPU-back" in sample()[0]


def test_the_replayed_library_can_be_recorded_again(nvml):
    """The recorder, for a machine with a GPU, on top of the stand-in: it notes what that was told to say."""
    nvml.events.append(("0", 31))
    recorded = record()
    assert recorded["devices"].keys() == nvml.devices.keys()
    for device, answers in nvml.devices.items():
        noted = recorded["devices"][device]
        assert {key: noted.get(key) for key in answers} == answers
        # Beyond that: what the GPU does not have.
        assert all("error" in noted[key] for key in noted.keys() - answers.keys() if key != "fields")
    assert recorded["system"].items() >= nvml.system.items()


def test_xid_errors_are_counted_by_number(sample, nvml):
    key = "tensormeter.gpu.xid.errors"
    assert not any(name[0] == key for name in sample()[0][HEALTHY])
    nvml.events += [("0", 31), ("0", 79), ("0", 31)]
    values = sample()[0][HEALTHY]
    assert (values[key, 31], values[key, 79]) == (2, 1)
    assert sample()[0][HEALTHY][key, 31] == 2


def test_all_instruments_are_known(sample):
    known = {instrument.name: instrument for instrument in GPU_INSTRUMENTS}
    assert len(known) == len(GPU_INSTRUMENTS)
    sample()
    observed = {name[0] for device in sample()[0].values() for name in device}
    assert observed == known.keys() - {"tensormeter.gpu.xid.errors"}


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_no_driver_is_silent(nvml, watch, code, caplog):
    nvml.system["nvmlInitWithFlags"] = code
    assert NvidiaSensor(watch).instruments == ()
    assert caplog.text == ""


def test_no_library_is_silent(nvml, watch, monkeypatch, caplog):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert NvidiaSensor(watch).instruments == ()
    assert caplog.text == ""


def test_no_pynvml_is_silent(watch, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvidiaSensor(watch).instruments == ()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("0,2", [0, 2]),
        (" 1 ", [1]),
        ("2,-1,0", [2]),
        ("GPU-bb", [1]),
        ("GPU-zz,0", [0]),
        ("none", []),
    ],
)
def test_only_visible_devices_are_read(devices, expected):
    uuids = ["GPU-aa00", "GPU-bb11", "GPU-cc22"]
    assert [number for number, uuid in enumerate(uuids) if visible_to(devices, number, uuid)] == expected


def test_a_wrapped_counter_goes_on():
    total = Monotonic()
    assert [total.add(reading) for reading in (10, 25, 5, 7)] == [10, 25, 30, 32]


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_nvidia_smi():
    """NVIDIA's own program reads the same library, in another process."""
    try:
        query = "--query-gpu=uuid,memory.total,power.limit,name"
        output = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no NVIDIA GPU: {error}")
    sensor = NvidiaSensor(Watch(processes=(TrainingProcess("p", 1, 0.0, None),)))
    failures: dict[str, int] = {}
    observe(sensor, failures)
    observed = observe(sensor, failures)
    sensor.close()
    assert failures == {}
    limits = {item[2]["hw.id"]: item for item in observed["hw.gpu.memory.limit"]}
    powers = {item[2]["hw.id"]: item[1] for item in observed["tensormeter.gpu.power.limit"]}
    for line in output.splitlines():
        uuid, memory, power, name = (field.strip() for field in line.split(","))
        assert limits[uuid][1] == pytest.approx(int(memory) << 20, abs=1 << 20)
        assert limits[uuid][2]["hw.model"] == name
        assert powers[uuid] == pytest.approx(float(power), abs=1)
    for name in ("hw.gpu.utilization", "hw.temperature", "hw.power", "hw.gpu.memory.usage"):
        assert observed[name]
    assert all(0 <= item[1] <= 1 for item in observed["hw.gpu.utilization"])
