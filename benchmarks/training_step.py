"""What logging does to a training step of about a millisecond: its slowest steps most of all.

Each contender trains in a process of its own, so that its threads and helpers slow its own steps only; the processes take
turns, several rounds, one at a time. Every step logs the loss (a tensor for those who take one) and three floats.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from contenders import CONTENDERS
from report import print_table

ROUNDS = 4
STEPS = 1500
WARM_UP = 300


def train(contender: str) -> list[int]:
    """Nanoseconds of each step."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    inputs, labels = torch.randn(256, 128), torch.randint(10, (256,))
    taken = []
    with tempfile.TemporaryDirectory() as folder, CONTENDERS[contender](Path(folder)) as log:
        for step in range(WARM_UP + STEPS):
            start = time.perf_counter_ns()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log({"loss": loss.item(), "lr": 1e-2, "epoch": 1.0, "accuracy": 0.5}, step)
            taken.append(time.perf_counter_ns() - start)
    return taken[WARM_UP:]


def main() -> int:
    if len(sys.argv) > 1:
        with contextlib.redirect_stdout(io.StringIO()):
            taken = train(sys.argv[1])
        print("\n" + json.dumps(taken))
        return 0
    samples: dict[str, list[int]] = {}
    for _ in range(ROUNDS):
        for contender in CONTENDERS:
            done = subprocess.run([sys.executable, __file__, contender], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{contender} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            samples.setdefault(contender, []).extend(json.loads(done.stdout.splitlines()[-1]))
    milliseconds = {name: np.array(taken) / 1e6 for name, taken in samples.items()}
    steps = f"{ROUNDS * STEPS:,}"
    print_table(f"A training step on one CPU thread, {steps} steps each, milliseconds", milliseconds, beside="nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
