"""Cost of an agent at rest: its processor time and wakeups while a trainer logs little or nothing.

The runs take place at the same time, each with its own agent. ``python benchmarks/rest.py [--seconds 60]``
"""

import argparse
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


@dataclass
class Agent:
    """An agent, and what it had used when the measurement began."""

    process: psutil.Process
    seconds: float = 0.0
    switches: int = 0

    def used(self) -> tuple[float, int]:
        """Return the processor time in seconds and the number of wakeups since `begin`."""
        return self._now()[0] - self.seconds, self._now()[1] - self.switches

    def begin(self) -> None:
        self.seconds, self.switches = self._now()

    def _now(self) -> tuple[float, int]:
        switches = sum(
            int(line.split()[1])
            for path in Path(f"/proc/{self.process.pid}/task").glob("*/status")
            for line in path.read_text().splitlines()
            if line.startswith("voluntary")
        )
        return sum(self.process.cpu_times()[:2]), switches


def find_agent(folder: Path) -> Agent:
    while True:
        for directory in list_runs(folder):
            if (pid := directory.agent_pid()) is not None:
                return Agent(psutil.Process(pid))
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
            threading.Event().wait(START_S)
            agents = [find_agent(folder) for folder in folders]
            for agent in agents:
                agent.begin()
            begun = time.monotonic()
            threading.Event().wait(seconds)
            for shape, agent in zip(SHAPES, agents, strict=True):
                used, switches = agent.used()
                elapsed = time.monotonic() - begun
                table.add_row(shape.name, f"{used / elapsed:.2%}", f"{switches / elapsed:.0f}")
        finally:
            for trainer in trainers:
                trainer.terminate()
            for trainer in trainers:
                trainer.wait(60)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
