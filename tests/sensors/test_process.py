"""Figures of processes, compared with what the kernel says of them, read by the test itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.waiting import wait_for
from tensormeter.sensors.host.process import ProcessSensor, _ChildrenTime
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import TrainingProcess, Watch

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="compares with Linux's /proc")

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

TRAINER = """
import subprocess, sys, threading
blocks = [bytearray(1 << 25)]
threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
files = [open("/dev/null") for _ in range(20)]
code = "import sys; b = bytearray(1 << 24); sum(range(3_000_000)); print('ready', flush=True); sys.stdin.read()"
workers = [
    subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
]
for worker in workers:
    worker.stdout.readline()
print(*[worker.pid for worker in workers], flush=True)
for line in sys.stdin:
    workers[0].communicate()
    print("one has ended", flush=True)
"""


def waits_for_input(pid):
    """Whether a process has left the processor in a system call whose first argument is its standard input."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[1:2] == ["0x0"]


@pytest.fixture
def trainer():
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.workers = [int(pid) for pid in process.stdout.readline().split()]
    pids = [process.pid, *process.workers]
    wait_for(lambda: all(map(waits_for_input, pids)), "they wait for input")
    yield process
    process.communicate()


@pytest.fixture
def watch(trainer):
    return Watch(processes=(TrainingProcess("its-id", trainer.pid, time.time(), None),))


def figures(observed, role):
    """{(instrument, other attributes...): value} of one role."""
    return {
        (name, *[value for key, value in item[2].items() if not key.startswith(("process.pid", "tensormeter."))]): item[
            1
        ]
        for name, items in observed.items()
        for item in items
        if item[2]["tensormeter.process.role"] == role
    }


def kernel(pid):
    """Processor seconds in user and system mode, threads, virtual and resident bytes, open files, as proc(5) has them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    user, system, threads = int(fields[11]) * TICK, int(fields[12]) * TICK, int(fields[17])
    return user, system, threads, int(pages[0]) * PAGE, int(pages[1]) * PAGE, files


def context_switches(pid):
    """{kind: number}. The numbers grow also while the process waits: the kernel counts what interrupts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = [int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line]
    return dict(zip(("voluntary", "involuntary"), numbers, strict=True))


def test_figures_of_a_trainer_and_its_children_agree_with_the_kernel(trainer, watch):
    failures: dict[str, int] = {}
    before = context_switches(trainer.pid)
    observed = observe(ProcessSensor(watch), failures)
    assert failures == {}
    user, system, threads, virtual, resident, files = kernel(trainer.pid)  # it waits: nothing of it changes
    values = figures(observed, "trainer")
    assert values["process.cpu.time", "user"] == pytest.approx(user)
    assert values["process.cpu.time", "system"] == pytest.approx(system)
    assert values["process.thread.count",] == threads == 4
    assert values["process.memory.usage",] == resident > 1 << 25
    assert values["process.memory.virtual",] == virtual
    assert values["process.unix.file_descriptor.count",] == files > 20
    after = context_switches(trainer.pid)
    for kind in ("voluntary", "involuntary"):
        assert before[kind] <= values["process.context_switches", kind] <= after[kind]
    workers = [kernel(pid) for pid in trainer.workers]
    values = figures(observed, "children")
    assert values["tensormeter.process.children",] == 2
    assert values["process.memory.usage",] == sum(worker[4] for worker in workers) > 2 << 24
    assert values["process.cpu.time", "user"] == pytest.approx(sum(worker[0] for worker in workers))
    assert values["process.thread.count",] == 2
    (who,) = {tuple(item[2].items())[:3] for item in observed["tensormeter.process.children"]}
    assert dict(who) == {
        "process.pid": trainer.pid,
        "tensormeter.process.id": "its-id",
        "tensormeter.process.role": "children",
    }


def test_children_of_several_trainers_are_told_apart(trainer):
    """The trainers have one parent, this test, as ranks have their launcher."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    watch = Watch(processes=tuple(TrainingProcess(str(p.pid), p.pid, time.time()) for p in (trainer, other)))
    try:
        observed = observe(ProcessSensor(watch), {})
        children = {item[2]["process.pid"]: item[1] for item in observed["tensormeter.process.children"]}
        assert children == {trainer.pid: 2, other.pid: 1}
    finally:
        other.communicate()


def test_the_agent_reports_its_own_cost():
    observed = observe(ProcessSensor(Watch()), {})
    values = figures(observed, "agent")
    assert {item[2]["process.pid"] for item in observed["process.memory.usage"]} == {os.getpid()}
    assert values["process.memory.usage",] == pytest.approx(kernel(os.getpid())[4], rel=0.1)


def test_time_of_children_that_have_ended_stays(trainer, watch):
    sensor = ProcessSensor(watch)
    before = figures(observe(sensor, {}), "children")
    trainer.stdin.write("end one\n")
    trainer.stdin.flush()
    trainer.stdout.readline()
    after = figures(observe(sensor, {}), "children")
    assert after["tensormeter.process.children",] == 1
    assert after["process.memory.usage",] < before["process.memory.usage",]
    assert after["process.cpu.time", "user"] >= before["process.cpu.time", "user"] > 0


def test_children_come_and_go_without_end():
    time = _ChildrenTime()
    assert time.add({(1, 0.0): (1.0, 0.5)}) == (1.0, 0.5)
    assert time.add({(1, 0.0): (2.0, 0.5), (2, 0.0): (1.0, 0.0)}) == (3.0, 0.5)
    assert time.add({(1, 9.0): (0.5, 0.0)}) == (3.5, 0.5)  # the same pid, another process
    assert time.add({}) == (3.5, 0.5)


def test_utilization_is_of_all_processors():
    sensor = ProcessSensor(Watch())

    def sample():
        start = time.monotonic()
        values = figures(observe(sensor, {}), "agent")
        return start, values, time.monotonic()

    def seconds(values, name):
        return values[name, "user"] + values[name, "system"]

    first_start, before, first_end = sample()
    spent = time.process_time()
    while time.process_time() - spent < 0.1:
        sum(range(10_000))
    second_start, after, second_end = sample()
    used = (seconds(after, "process.cpu.time") - seconds(before, "process.cpu.time")) / os.cpu_count()
    share = seconds(after, "process.cpu.utilization")
    assert used > 0
    assert used / (second_end - first_start) <= share <= used / (second_start - first_end)


def test_another_process_with_the_pid_of_a_trainer_is_not_taken_for_it(trainer, caplog):
    """As from another container, or after the trainer has ended."""
    watch = Watch(processes=(TrainingProcess("old", trainer.pid, time.time() - 3600, None),))
    failures: dict[str, int] = {}
    observed = observe(ProcessSensor(watch), failures)
    assert figures(observed, "trainer") == figures(observed, "children") == {}
    assert failures == {}


def test_a_trainer_that_has_ended_is_absent(watch, trainer):
    trainer.communicate()
    failures: dict[str, int] = {}
    observed = observe(ProcessSensor(watch), failures)
    assert figures(observed, "trainer") == {}
    assert failures == {}
