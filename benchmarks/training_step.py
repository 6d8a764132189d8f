"""Effect of logging on a training step of about a millisecond, especially on the slowest steps.

Each contender trains in a separate process, so that its threads and helper processes slow only its own steps. All
processes are started first and then take short turns, one at a time. Each turn of a contender follows a turn without
logging, and the two medians give a ratio. The result is the median of the ratios from all rounds. Changes in the
machine's speed usually last longer than two turns, so they affect both medians of a pair.

Before each pair, the benchmark pauses, so that a contender's background work does not slow the next one. The training
thread stays on one core if the system supports this; helper threads and processes can use any core. Each step logs the
loss and three floats.

The last column is the training thread's processor time relative to training without logging. It shows the cost of the
calls themselves, independent of other processes' load.

To shorten the benchmark, set `BENCH_ROUNDS`, `BENCH_STEPS` or `BENCH_CONTENDERS` (names separated by semicolons).
"""

import io
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, tensormeter_without_agent
from report import print_paired_table
from trainers import paired_turns, start_trainers

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
STEPS = int(os.environ.get("BENCH_STEPS", "300"))
WARM_UP = 300
REST = 0.5
"""Pause before each pair of turns, in seconds."""

ALL = {**CONTENDERS, "tensormeter, no agent": tensormeter_without_agent}
CHOSEN = [name for name in os.environ.get("BENCH_CONTENDERS", "").split(";") if name] or list(ALL)


def serve_turns(contender: str) -> None:
    """Train one turn for each line on standard input, which contains the number of steps.

    Answer with the duration of each step and the thread's total processor time, in nanoseconds.
    """
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
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # only for this thread
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


def main() -> int:
    if len(sys.argv) > 1:
        serve_turns(sys.argv[1])
        return 0
    taken, ratios, processor = (defaultdict[str, list[Any]](list) for _ in range(3))
    commands = {name: [__file__, name] for name in dict.fromkeys(["nothing", *CHOSEN])}
    with start_trainers(commands, WARM_UP) as trainers:
        for name, without, with_logging in paired_turns(trainers, ROUNDS, STEPS, REST):
            taken["nothing"].append(without.durations / 1e6)
            taken[name].append(with_logging.durations / 1e6)
            ratios[name].append(np.median(with_logging.durations) / np.median(without.durations))
            processor[name].append(with_logging.running / without.running)
    print_paired_table(
        f"A training step on one CPU thread: milliseconds, {ROUNDS} pairs of turns with {STEPS} steps each",
        {name: np.concatenate(samples) for name, samples in taken.items()},
        {name: np.array(each) for name, each in ratios.items()},
        {name: float(np.median(each)) for name, each in processor.items()},
        beside="nothing",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
