"""The machine's figures, compared with what the kernel says, read by the test itself."""

import os
from pathlib import Path

import psutil
import pytest

from tensormeter.sensors.host.filesystem import FilesystemSensor, _mount_point
from tensormeter.sensors.host.host import HostSensor
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import Watch

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="compares with Linux's /proc")

TICK = 1 / os.sysconf("SC_CLK_TCK")


def table(path: str) -> dict[str, list[str]]:
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {fields[0].rstrip(":"): fields[1:] for fields in lines if fields}


def named(observed, name, *attributes):
    return {tuple(item[2].get(key) for key in attributes): item[1] for item in observed[name]}


@pytest.fixture
def observed():
    failures: dict[str, int] = {}
    points = observe(HostSensor(), failures)
    assert failures == {}
    return points


def between(low, value, high):
    assert low <= value <= high, (low, value, high)


def test_processor_time_agrees_with_the_kernel():
    sensor = HostSensor()
    before = [int(ticks) * TICK for ticks in table("/proc/stat")["cpu"]]
    times = named(observe(sensor, {}), "system.cpu.time", "cpu.mode")
    after = [int(ticks) * TICK for ticks in table("/proc/stat")["cpu"]]
    order = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    low, high = (dict(zip(order, column, strict=False)) for column in (before, after))
    for mode in ("user", "nice", "system", "steal"):
        between(low[mode] - TICK, times[mode,], high[mode] + TICK)
    between(low["irq"] + low["softirq"] - TICK, times["interrupt",], high["irq"] + high["softirq"] + TICK)
    assert {mode for (mode,) in times} == {"user", "nice", "system", "idle", "iowait", "interrupt", "steal"}


def test_processor_utilization_is_of_the_time_between_samples():
    sensor = HostSensor()
    first = observe(sensor, {})
    assert "system.cpu.utilization" not in first
    before = named(first, "system.cpu.time", "cpu.mode")
    while (points := observe(sensor, {})).get("system.cpu.utilization") is None:
        pass  # the kernel counts in ticks of 10 ms: nothing has changed before the next
    after, share = named(points, "system.cpu.time", "cpu.mode"), named(points, "system.cpu.utilization", "cpu.mode")
    assert sum(share.values()) == pytest.approx(1)
    spent = {mode: max(0.0, after[mode] - before[mode]) for mode in after}
    assert share == {mode: pytest.approx(seconds / sum(spent.values())) for mode, seconds in spent.items()}


def test_memory_agrees_with_the_kernel(observed):
    kilobytes = {name: int(fields[0]) for name, fields in table("/proc/meminfo").items()}
    usage = named(observed, "system.memory.usage", "system.memory.state")
    ((limit,),) = [[item[1] for item in observed["system.memory.limit"]]]
    assert limit == kilobytes["MemTotal"] * 1024
    # Everybody on the machine allocates meanwhile.
    assert usage["free",] == pytest.approx(kilobytes["MemFree"] * 1024, rel=0.1)
    assert usage["buffers",] == pytest.approx(kilobytes["Buffers"] * 1024, rel=0.1)
    available = observed["system.memory.linux.available"][0][1]
    assert available == pytest.approx(kilobytes["MemAvailable"] * 1024, rel=0.1)
    share = named(observed, "system.memory.utilization", "system.memory.state")
    assert share == {state: pytest.approx(size / limit) for state, size in usage.items()}


def test_swap_agrees_with_the_kernel(observed):
    kilobytes = {name: int(fields[0]) for name, fields in table("/proc/meminfo").items()}
    usage = named(observed, "system.paging.usage", "system.paging.state")
    assert usage["used",] + usage["free",] == kilobytes["SwapTotal"] * 1024
    pages = table("/proc/vmstat")
    operations = named(observed, "system.paging.operations", "system.paging.direction")
    assert operations["in",] == pytest.approx(int(pages["pswpin"][0]), abs=1000)
    assert operations["out",] == pytest.approx(int(pages["pswpout"][0]), abs=1000)


def test_disks_agree_with_the_kernel():
    def read():
        lines = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
        return {fields[2]: [int(field) for field in fields[3:]] for fields in lines}

    before = read()
    observed = observe(HostSensor(), {})
    after = read()
    devices = {item[2]["system.device"] for item in observed.get("system.disk.io", [])}
    whole = {path.name for path in Path("/sys/block").iterdir()}
    assert devices == {
        name for name in before if name in whole and not name.startswith(("loop", "ram", "zram", "fd", "sr"))
    }
    for device in devices:
        both = {"system.device": device}
        for direction, count, sectors in (("read", 0, 2), ("write", 4, 6)):
            key = (device, direction)
            io = named(observed, "system.disk.io", "system.device", "disk.io.direction")[key]
            between(before[device][sectors] * 512, io, after[device][sectors] * 512)
            operations = named(observed, "system.disk.operations", "system.device", "disk.io.direction")[key]
            between(before[device][count], operations, after[device][count])
        busy = named(observed, "system.disk.io_time", "system.device")[both["system.device"],]
        between(before[device][9] / 1000, busy, after[device][9] / 1000)


def test_network_agrees_with_the_kernel():
    def read():
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
        return {line.split(":")[0].strip(): [int(field) for field in line.split(":")[1].split()] for line in lines}

    before = read()
    observed = observe(HostSensor(), {})
    after = read()
    interfaces = {item[2]["network.interface.name"] for item in observed.get("system.network.io", [])}
    assert "lo" not in interfaces
    for interface in interfaces:
        for direction, first in (("receive", 0), ("transmit", 8)):
            key = (interface, direction)
            for name, column, attribute in (
                ("system.network.io", 0, "network.interface.name"),
                ("system.network.packet.count", 1, "system.device"),
                ("system.network.errors", 2, "network.interface.name"),
                ("system.network.packet.dropped", 3, "network.interface.name"),
            ):
                value = named(observed, name, attribute, "network.io.direction")[key]
                between(before[interface][first + column], value, after[interface][first + column])


def test_file_systems(tmp_path):
    sensor = FilesystemSensor(Watch(folders=(str(tmp_path),)))
    failures: dict[str, int] = {}
    observed = observe(sensor, failures)
    assert failures == {}
    points = {item[2]["system.filesystem.mountpoint"] for item in observed["system.filesystem.limit"]}
    assert "/" in points
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert max((mount for mount in mounts if str(tmp_path).startswith(mount)), key=len) in points
    for point in points:
        space = os.statvfs(point)
        limit = named(observed, "system.filesystem.limit", "system.filesystem.mountpoint")[point,]
        assert limit == space.f_blocks * space.f_frsize
        usage = named(observed, "system.filesystem.usage", "system.filesystem.mountpoint", "system.filesystem.state")
        assert sum(usage[point, state] for state in ("used", "free", "reserved")) == limit
        # Everybody on the machine writes meanwhile.
        assert usage[point, "free"] == pytest.approx(space.f_bavail * space.f_frsize, rel=0.1, abs=1 << 28)


def test_the_mount_point_is_found_by_name():
    mounts = {"/", "/data", "/data/team"}
    assert _mount_point("/data/team/run/checkpoints", mounts) == "/data/team"
    assert _mount_point("/data/teams", mounts) == "/data"
    assert _mount_point("/home", mounts) == "/"
    assert _mount_point("relative", {"/data"}) == ""


def test_processors(observed):
    assert (
        observed["system.cpu.logical.count"][0][1]
        == psutil.cpu_count()
        == len([name for name in table("/proc/stat") if name.startswith("cpu") and name != "cpu"])
    )
