"""The `process.*` metrics of training processes, their children (such as DataLoader workers) and the agent.

The values come from psutil.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import psutil

from tensormeter.conventions.semconv import PROCESS_ID, PROCESS_ROLE
from tensormeter.sensors.instrument import AbsentError, Instrument, Observed, Reading
from tensormeter.sensors.targets import TrainingProcess, Watch

__all__ = ["ProcessSensor"]

_WHO: Final = ("process.pid", PROCESS_ID, PROCESS_ROLE)
"""PID, `service.instance.id`, and role: `trainer`, `children` (the sum over a trainer's children) or `agent`."""

_CPU_TIME: Final = Instrument(
    "process.cpu.time", "counter", "s", "CPU time in user and system mode.", (*_WHO, "cpu.mode")
)
_CPU_UTILIZATION: Final = Instrument(
    "process.cpu.utilization",
    "gauge",
    "1",
    "CPU time since the last sample, as a fraction of the total time of all processors.",
    (*_WHO, "cpu.mode"),
)
_MEMORY: Final = Instrument(
    "process.memory.usage",
    "updowncounter",
    "By",
    "Resident memory. For `children`, shared memory is counted once per process that uses it.",
    _WHO,
)
_VIRTUAL: Final = Instrument("process.memory.virtual", "updowncounter", "By", "Virtual memory.", _WHO)
_THREADS: Final = Instrument("process.thread.count", "updowncounter", "{thread}", "Number of threads.", _WHO)
_FILES: Final = Instrument(
    "process.unix.file_descriptor.count", "updowncounter", "{file_descriptor}", "Number of open file descriptors.", _WHO
)
_DISK_IO: Final = Instrument(
    "process.disk.io",
    "counter",
    "By",
    "Bytes read from and written to disk (Linux).",
    (*_WHO, "disk.io.direction"),
)
_SWITCHES: Final = Instrument(
    "process.context_switches",
    "counter",
    "{context_switch}",
    "Number of context switches.",
    (*_WHO, "process.context_switch.type"),
)
_CHILDREN: Final = Instrument(
    "tensormeter.process.children",
    "updowncounter",
    "{process}",
    "Number of running descendants of a training process.",
    _WHO,
)

_LATE: Final = 1.0
"""Seconds by which a process's start time may exceed `began`. Start times are rounded to clock ticks."""


_Child = tuple[int, float]
"""PID and start time, which together identify a process."""


class ProcessSensor:
    """Sensor of the agent, the training processes and their children.

    The values of children are summed per training process, because one series per worker and epoch would be too many
    series. Summed times include children that have ended, if they appeared in at least one sample.
    """

    name = "process"
    instruments = (
        _CPU_TIME,
        _CPU_UTILIZATION,
        _MEMORY,
        _VIRTUAL,
        _THREADS,
        _FILES,
        _DISK_IO,
        _SWITCHES,
        _CHILDREN,
    )

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch
        self._known: dict[int, psutil.Process] = {}
        self._cpu_before: dict[tuple[object, ...], tuple[float, float]] = {}
        self._children_cpu: dict[str, _ChildrenTime] = {}
        self._family: dict[int, list[psutil.Process]] | None = None
        """Descendants of each training process in the current sample; None before they are looked up."""

    def readings(self) -> Iterable[Reading]:
        processes = self._watch.processes
        pids = {process.pid for process in processes} | {os.getpid()}
        self._known = {pid: process for pid, process in self._known.items() if pid in pids}
        self._children_cpu = {
            process.id: self._children_cpu.get(process.id) or _ChildrenTime() for process in processes
        }
        self._family = None
        if os.getpid() not in {process.pid for process in processes}:  # otherwise the agent is a thread of the trainer
            yield "agent", self._agent
        for process in processes:
            yield f"process {process.pid}", partial(self._trainer, process)
            yield f"children of {process.pid}", partial(self._children, process)

    def close(self) -> None:
        pass

    def _agent(self) -> Iterable[Observed]:
        who = {"process.pid": os.getpid(), PROCESS_ROLE: "agent"}
        yield from self._process(self._find(os.getpid()), who)

    def _trainer(self, trainer: "TrainingProcess") -> Iterable[Observed]:
        yield from self._process(self._find_trainer(trainer), _who(trainer, "trainer"))

    def _children(self, trainer: "TrainingProcess") -> Iterable[Observed]:
        process = self._find_trainer(trainer)
        who = _who(trainer, "children")
        cpu: dict[_Child, tuple[float, float]] = {}
        number = memory = threads = files = 0
        for child in self._descendants(process.pid):
            try:
                with child.oneshot():
                    times = child.cpu_times()
                    cpu[child.pid, child.create_time()] = (times.user, times.system)
                    memory += child.memory_info().rss
                    threads += child.num_threads()
                    files += child.num_fds()
                    number += 1
            except psutil.NoSuchProcess:
                continue
        yield _CHILDREN, number, who
        user, system = self._children_cpu[trainer.id].add(cpu)
        if number or user or system:
            yield from self._cpu(who, user, system)
            yield _MEMORY, memory, who
            yield _THREADS, threads, who
            yield _FILES, files, who

    def _process(self, process: psutil.Process, who: Mapping[str, Any]) -> Iterable[Observed]:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            switches = process.num_ctx_switches()
            yield from self._cpu(who, times.user, times.system)
            yield _MEMORY, memory.rss, who
            yield _VIRTUAL, memory.vms, who
            yield _THREADS, process.num_threads(), who
            yield _SWITCHES, switches.voluntary, {**who, "process.context_switch.type": "voluntary"}
            yield _SWITCHES, switches.involuntary, {**who, "process.context_switch.type": "involuntary"}
            yield _FILES, process.num_fds(), who
            if hasattr(process, "io_counters"):
                counters = process.io_counters()
                yield _DISK_IO, counters.read_bytes, {**who, "disk.io.direction": "read"}
                yield _DISK_IO, counters.write_bytes, {**who, "disk.io.direction": "write"}

    def _cpu(self, who: Mapping[str, Any], user: float, system: float) -> Iterable[Observed]:
        now = time.monotonic()
        processors = psutil.cpu_count() or 1
        for mode, seconds in (("user", user), ("system", system)):
            attributes = {**who, "cpu.mode": mode}
            yield _CPU_TIME, seconds, attributes
            key = tuple(attributes.values())
            before = self._cpu_before.get(key)
            self._cpu_before[key] = (now, seconds)
            if before is not None and now > before[0]:
                yield _CPU_UTILIZATION, max(0.0, seconds - before[1]) / (now - before[0]) / processors, attributes

    def _descendants(self, pid: int) -> list[psutil.Process]:
        """Return all descendants of a process except the agent, which is a child of the first training process."""
        if self._family is None:
            self._family = self._find_descendants()
        descendants = []
        generation = [pid]
        while generation:
            children = [
                child for parent in generation for child in self._family.get(parent, ()) if child.pid != os.getpid()
            ]
            descendants += children
            generation = [child.pid for child in children]
        return descendants

    def _find_descendants(self) -> dict[int, list[psutil.Process]]:
        roots = []
        for trainer in self._watch.processes:
            with contextlib.suppress(AbsentError):
                roots.append(self._find_trainer(trainer))
        parents = {root.ppid() for root in roots}
        if len(roots) > 1 and len(parents) == 1 and not parents & {0, 1}:
            # Each search for children reads all processes on the machine, so search once from the launcher instead of
            # once per rank.
            roots = [psutil.Process(parents.pop())]
        family: dict[int, list[psutil.Process]] = {}
        for child in {child.pid: child for root in roots for child in root.children(recursive=True)}.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                family.setdefault(child.ppid(), []).append(child)
        return family

    def _find(self, pid: int) -> psutil.Process:
        process = self._known.get(pid)
        if process is None or not process.is_running():
            process = self._known[pid] = psutil.Process(pid)
        return process

    def _find_trainer(self, trainer: "TrainingProcess") -> psutil.Process:
        """Find a training process.

        Raise AbsentError if it has ended or runs in another container, where its PID differs.
        """
        try:
            process = self._find(trainer.pid)
            if process.create_time() <= trainer.began + _LATE:
                return process
        except psutil.NoSuchProcess:
            pass
        raise AbsentError


class _ChildrenTime:
    """Total processor time of a training process's children, including ended ones that appeared in a sample."""

    def __init__(self) -> None:
        self._living: dict[_Child, tuple[float, float]] = {}
        self._dead = (0.0, 0.0)

    def add(self, living: dict[_Child, tuple[float, float]]) -> tuple[float, float]:
        """Update the times of living children, and return the user and system times summed over all children."""
        dead = [times for child, times in self._living.items() if child not in living]
        self._dead = _total([self._dead, *dead])
        self._living = living
        return _total([self._dead, *living.values()])


def _total(times: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(user for user, _ in times), sum(system for _, system in times)


def _who(trainer: "TrainingProcess", role: str) -> dict[str, Any]:
    return {"process.pid": trainer.pid, PROCESS_ID: trainer.id, PROCESS_ROLE: role}
