"""Limits of control groups, in the files that the kernel shows: both versions, nested, with and without a limit."""

from pathlib import Path

import psutil
import pytest

from tensormeter.sensors.host.container import ContainerSensor
from tensormeter.sensors.instrument import observe

MOUNT_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def read(root: Path) -> dict:
    failures: dict[str, int] = {}
    observed = observe(ContainerSensor(root), failures)
    assert failures == {}
    return {(name, *item[2].values()): item[1] for name, items in observed.items() for item in items}


def test_limits_and_usage_come_from_cgroup_version_2(tmp_path, machine):
    """The pod's limit on memory is lower than the container's; only the container's processors are limited."""
    pod = "sys/fs/cgroup/kubepods/pod1"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods/pod1/container\n",
            "proc/self/mountinfo": MOUNT_V2,
            f"{pod}/container/memory.max": "4000000000\n",
            f"{pod}/container/memory.current": "1000000000\n",
            f"{pod}/container/cpu.max": "250000 100000\n",
            f"{pod}/container/cpu.stat": "usage_usec 9000000\nuser_usec 6000000\nsystem_usec 3000000\nthrottled_usec 1500000\n",
            f"{pod}/memory.max": "2000000000\n",
            f"{pod}/memory.current": "1200000000\n",
            f"{pod}/memory.stat": "anon 900000000\ninactive_file 200000000\n",
            f"{pod}/memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
            f"{pod}/cpu.max": "max 100000\n",
        },
    )
    assert read(root) == {
        ("tensormeter.container.memory.limit",): 2_000_000_000,
        ("container.memory.usage",): 1_200_000_000,
        ("container.memory.working_set",): 1_000_000_000,
        ("tensormeter.container.memory.oom_kills",): 1,
        ("tensormeter.container.cpu.limit",): 2.5,
        ("tensormeter.container.cpu.throttled_time",): 1.5,
        ("container.cpu.time", "user"): 6.0,
        ("container.cpu.time", "system"): 3.0,
    }


def test_limits_and_usage_come_from_cgroup_version_1(tmp_path, machine):
    """As in a container, whose mounts begin at its own group."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "11:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "proc/self/mountinfo": (
                "31 30 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                "32 30 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
            ),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000000\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 500000000\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 2500000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage_user": "7000000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage_sys": "1000000000\n",
        },
    )
    assert read(root) == {
        ("tensormeter.container.memory.limit",): 3_000_000_000,
        ("container.memory.usage",): 1_500_000_000,
        ("container.memory.working_set",): 1_000_000_000,
        ("tensormeter.container.memory.oom_kills",): 4,
        ("tensormeter.container.cpu.limit",): 0.5,
        ("tensormeter.container.cpu.throttled_time",): 2.5,
        ("container.cpu.time", "user"): 7.0,
        ("container.cpu.time", "system"): 1.0,
    }


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": MOUNT_V2, "sys/fs/cgroup/cpu.stat": "usage_usec 1\n"},
        {
            "proc/self/cgroup": "0::/job\n",
            "proc/self/mountinfo": MOUNT_V2,
            "sys/fs/cgroup/job/memory.max": "max\n",
            "sys/fs/cgroup/job/cpu.max": "max 100000\n",
        },
        {
            "proc/self/cgroup": "0::/job\n",
            "proc/self/mountinfo": MOUNT_V2,
            "sys/fs/cgroup/job/memory.max": f"{1 << 60}\n",
            "sys/fs/cgroup/job/cpu.max": "800000 100000\n",  # all that the machine has
        },
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu:/job\n",
            "proc/self/mountinfo": (
                "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                "32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            ),
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        {},
    ],
    ids=["the root group", "no limit", "limits that do not bind", "no limit, version 1", "no control groups"],
)
def test_silent_where_nothing_binds(tmp_path, machine, files):
    assert read(write(tmp_path, files)) == {}


def test_this_machine_can_be_read():
    failures: dict[str, int] = {}
    observe(ContainerSensor(), failures)
    assert failures == {}
