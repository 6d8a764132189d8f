"""Duration of computing a histogram of many values on the CPU, compared with alternatives.

The contenders take turns in one process, each on one thread. tensormeter's exponential buckets resolve any range of
values; the others use 64 buckets of equal width.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import print_table

import tensormeter

ROUNDS = 15
SIZES = (10_000, 1_000_000, 10_000_000)


def contenders(run: tensormeter.Run) -> dict[str, Callable[[np.ndarray], object]]:
    calls: dict[str, Callable[[np.ndarray], object]] = {
        "tensormeter": lambda values: run.log({"values": tensormeter.Histogram(values)}),
        "np.histogram": lambda values: np.histogram(values, 64),
    }
    try:
        import wandb

        calls["wandb.Histogram"] = wandb.Histogram
    except ImportError as error:
        print(f"skipping wandb: {error}", file=sys.stderr)
    try:
        import torch

        torch.set_num_threads(1)
        calls["torch.histogram"] = lambda values: torch.histogram(torch.from_numpy(values), 64)
    except ImportError as error:
        print(f"skipping torch: {error}", file=sys.stderr)
    return calls


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        settings = {"directory": Path(name), "mode": "offline", "schedule_delay": 0.1}
        with tensormeter.init("bench", settings=settings) as run:
            calls = contenders(run)
            for size in SIZES:
                values = (1e-3 * np.random.default_rng(0).standard_normal(size)).astype(np.float32)
                taken: dict[str, list[float]] = {name: [] for name in calls}
                for turn in range(ROUNDS + 1):  # the first turn does not count
                    for contender, call in calls.items():
                        start = time.perf_counter()
                        call(values)
                        if turn:
                            taken[contender].append((time.perf_counter() - start) * 1e3)
                title = f"Histogram of {size:,} float32 values on the CPU: milliseconds, {ROUNDS} calls each"
                print_table(title, {key: np.array(times) for key, times in taken.items()}, beside="tensormeter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
