"""Overhead of timing the phases of a training step: a step with four empty phases, compared with a log call."""

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import print_table

import tensormeter

STEPS = 5000
NAMES = ("data_loading", "model_forward", "model_backward", "optimizer_update")


def measure(step: Callable[[], None]) -> np.ndarray:
    """Return the duration of each step except the first, in microseconds."""
    taken = []
    for _ in range(STEPS + 1):
        start = time.perf_counter_ns()
        step()
        taken.append(time.perf_counter_ns() - start)
    return np.array(taken[1:]) / 1000


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        settings = {"directory": Path(name), "mode": "offline"}
        with tensormeter.init("bench", settings=settings) as run:

            def logged() -> None:
                run.log({"loss": 1.0, "accuracy": 1.0, "lr": 1e-3, "norm": 1.0})

            def one_phase() -> None:
                with run.phase("model_forward"):
                    pass

            def step_alone() -> None:
                with run.step(items=8):
                    pass

            def step() -> None:
                with run.step(items=8):
                    for phase in NAMES:
                        with run.phase(phase):
                            pass

            gc.collect()
            taken = {
                "log of 4 floats": measure(logged),
                "one phase outside of steps": measure(one_phase),
                "step": measure(step_alone),
                "step with 4 phases": measure(step),
            }
    print_table(f"Phases and steps on the CPU: microseconds, {STEPS:,} calls each", taken, beside="log of 4 floats")
    return 0


if __name__ == "__main__":
    sys.exit(main())
