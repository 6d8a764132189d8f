"""What logging does to a training step of about a millisecond: its slowest steps most of all.

Each contender trains in a process of its own, so that its threads and helpers slow its own steps; all are started first, and
take short turns, one at a time. A turn of a contender follows one without logging, and the figure is the ratio of the two
medians; of all rounds' ratios the median counts. So the machine's moods, which last longer than two turns, fall on both.
Before each pair the machine may rest, so that what a contender still does in the background slows nobody else.
The training thread stays on one core (where the system lets it); helper threads and processes go where they like.
Every step logs the loss and three floats.

The last column is the processor time of the training thread, beside that without logging: what the calls themselves cost, whoever
else wants the processor.

`BENCH_ROUNDS`, `BENCH_STEPS` and `BENCH_CONTENDERS` (names, separated by semicolons) make it smaller.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, tensormeter_without_agent
from report import print_paired_table

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
STEPS = int(os.environ.get("BENCH_STEPS", "300"))
WARM_UP = 300
REST = 0.5
"""Seconds."""

ALL = {**CONTENDERS, "tensormeter, no agent": tensormeter_without_agent}
CHOSEN = [name for name in os.environ.get("BENCH_CONTENDERS", "").split(";") if name] or list(ALL)


def serve_turns(contender: str) -> None:
    """A trainer: for each line that comes, a turn; its answer are the nanoseconds of each step, and the thread's of all."""
    import torch

    answers, sys.stdout = sys.stdout, io.StringIO()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    inputs, labels = torch.randn(256, 128), torch.randint(10, (256,))
    step = 0
    with tempfile.TemporaryDirectory() as folder, ALL[contender](Path(folder)) as log:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread only
        for line in sys.stdin:
            taken, running = [], time.thread_time_ns()
            for _ in range(int(line)):
                start = time.perf_counter_ns()
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                log({"loss": loss.item(), "lr": 1e-2, "epoch": 1.0, "accuracy": 0.5}, step)
                taken.append(time.perf_counter_ns() - start)
                step += 1
            print(json.dumps([taken, time.thread_time_ns() - running]), file=answers, flush=True)


class Trainer:
    """A contender's process."""

    def __init__(self, contender: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, contender], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def turn(self, steps: int) -> tuple[np.ndarray, float]:
        """Milliseconds of each step, and of processor time of the thread in all.

        Raises:
            OSError, ValueError: The contender cannot be had.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        taken, running = json.loads(self._process.stdout.readline())
        return np.array(taken) / 1e6, running / 1e6

    def end(self) -> None:
        self._process.communicate()


def main() -> int:
    if len(sys.argv) > 1:
        serve_turns(sys.argv[1])
        return 0
    trainers: dict[str, Trainer] = {}
    for contender in dict.fromkeys(["nothing", *CHOSEN]):
        trainer = Trainer(contender)
        try:
            trainer.turn(WARM_UP)
            trainers[contender] = trainer
        except (OSError, ValueError):
            print(f"{contender} is left out: it does not start here", file=sys.stderr)
            trainer.end()
    taken: dict[str, list[np.ndarray]] = {name: [] for name in trainers}
    ratios: dict[str, list[float]] = {name: [] for name in trainers if name != "nothing"}
    processor: dict[str, list[float]] = {name: [] for name in ratios}
    pause = threading.Event()
    for _ in range(ROUNDS):
        for name, found in ratios.items():
            pause.wait(REST)
            (without, cpu_without), (with_logging, cpu_with_logging) = (
                trainers[trainer].turn(STEPS) for trainer in ("nothing", name)
            )
            taken["nothing"].append(without)
            taken[name].append(with_logging)
            found.append(float(np.median(with_logging) / np.median(without)))
            processor[name].append(cpu_with_logging / cpu_without)
    for trainer in trainers.values():
        with contextlib.suppress(OSError):
            trainer.end()
    print_paired_table(
        f"A training step on one CPU thread, {ROUNDS} pairs of turns of {STEPS} steps each, milliseconds",
        {name: np.concatenate(samples) for name, samples in taken.items()},
        {name: np.array(each) for name, each in ratios.items()},
        {name: float(np.median(each)) for name, each in processor.items()},
        beside="nothing",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
