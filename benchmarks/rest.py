"""Cost of an agent at rest: its processor time and wakeups while a trainer logs little or nothing.

The runs take place at the same time, each with its own agent. wandb offline runs too if it is installed. The last
row is a process that only wakes up once per second, because on some virtual machines a wakeup costs more than the work
that follows. ``python benchmarks/rest.py [--seconds 60]``
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from delivery import serving
from rich.console import Console
from rich.table import Table

from tensormeter.agent.run_directory.directory import list_runs

START_S = 5.0
"""Seconds from the start of the trainers until the measurement begins, because starting costs more than resting."""

TRAINER = """
import sys, time, tensormeter
url, folder, mode, rate, interval = sys.argv[1:]
settings = {"endpoint": url, "directory": folder, "mode": mode, "sample_interval": float(interval)}
with tensormeter.init("bench", settings=settings) as run:
    for step in range(1_000_000):
        if float(rate):
            run.log({"loss": step * 0.5, "lr": 1e-3, "norm": 2.0, "rate": step * 1.5}, step)
        time.sleep(1 / (float(rate) or 1))
"""


@dataclass(frozen=True)
class Shape:
    """Work of a trainer: its mode, the rows of four values that it logs per second, and its sampling interval."""

    name: str
    mode: str = "online"
    rate: float = 0
    sample_interval: float = 10


SHAPES = (
    Shape("10 rows/s, sensors every 10 s", rate=10),
    Shape("1 row/s, sensors every 10 s", rate=1),
    Shape("nothing, sensors every 10 s"),
    Shape("nothing, no sensors", sample_interval=0),
    Shape("nothing, no sensors, offline", mode="offline", sample_interval=0),
)


WANDB = """
import sys, time, wandb
settings = wandb.Settings(console="off", silent=True, x_stats_sampling_interval=10.0)
run = wandb.init(project="bench", dir=sys.argv[1], mode="offline", settings=settings)
for step in range(1_000_000):
    run.log({"loss": step * 0.5, "lr": 1e-3, "norm": 2.0, "rate": step * 1.5}, step)
    time.sleep(0.1)
"""

SLEEPER = "import time\nwhile True: time.sleep(1)"


class Usage:
    """Processor time and wakeups of processes from `begin` on."""

    def __init__(self, *processes: psutil.Process) -> None:
        self._processes = processes
        self._seconds, self._switches = 0.0, 0

    def begin(self) -> None:
        self._seconds, self._switches = self._now()

    def used(self) -> tuple[float, int]:
        """Return the processor time in seconds and the number of wakeups since `begin`."""
        seconds, switches = self._now()
        return seconds - self._seconds, switches - self._switches

    def _now(self) -> tuple[float, int]:
        switches = sum(
            int(line.split()[1])
            for process in self._processes
            for path in Path(f"/proc/{process.pid}/task").glob("*/status")
            for line in path.read_text().splitlines()
            if line.startswith("voluntary")
        )
        return sum(sum(process.cpu_times()[:2]) for process in self._processes), switches


def find_agent(folder: Path) -> psutil.Process:
    while True:
        for directory in list_runs(folder):
            if (pid := directory.agent_pid()) is not None:
                return psutil.Process(pid)
        threading.Event().wait(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    table = Table(title=f"An agent at rest, over {seconds:.0f} s")
    for column in ("the trainer logs", "share of one core", "wakeups per second"):
        table.add_column(column, justify="right" if table.columns else "left")
    with tempfile.TemporaryDirectory(prefix="tensormeter-bench-") as name, serving(Path(name)) as url:
        trainers, folders = [], []
        try:
            for number, shape in enumerate(SHAPES):
                folder = Path(name, f"state-{number}")
                arguments = [url, str(folder), shape.mode, str(shape.rate), str(shape.sample_interval)]
                trainers.append(subprocess.Popen([sys.executable, "-c", TRAINER, *arguments]))
                folders.append(folder)
                find_agent(folder)
            has_wandb = importlib.util.find_spec("wandb") is not None
            if has_wandb:
                rival = subprocess.Popen([sys.executable, "-c", WANDB, name])
                trainers.append(rival)
            sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER])
            trainers.append(sleeper)
            threading.Event().wait(START_S)
            usages = {shape.name: Usage(find_agent(folder)) for shape, folder in zip(SHAPES, folders, strict=True)}
            if has_wandb:
                usages[f"{SHAPES[0].name}: wandb's service"] = Usage(
                    *psutil.Process(rival.pid).children(recursive=True)
                )
            usages["a process that wakes up once per second"] = Usage(psutil.Process(sleeper.pid))
            for usage in usages.values():
                usage.begin()
            begun = time.monotonic()
            threading.Event().wait(seconds)
            for what, usage in usages.items():
                used, switches = usage.used()
                elapsed = time.monotonic() - begun
                table.add_row(what, f"{used / elapsed:.2%}", f"{switches / elapsed:.0f}")
        finally:
            for trainer in trainers:
                trainer.terminate()
            for trainer in trainers:
                trainer.wait(60)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
