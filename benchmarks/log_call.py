"""Duration of a log call, compared with alternatives.

Each contender logs the same four Python floats from the same prebuilt dictionaries. On a machine with a CUDA device,
contenders that support tensors also log four CUDA tensors, whose values have already been computed.

The contenders take turns in one process, so that changes in the machine's speed affect all of them equally. Compare only
ratios within one run of the benchmark. Only the calls are timed. A contender's work on other threads or processes slows
the calls of all contenders equally.
"""

import contextlib
import gc
import io
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, Log
from report import print_table

SLICE = 1000
SLICES = 20
SLOW_SLICE = 100
"""Calls per turn if a call takes more than 0.3 ms. With more calls, some contenders would flush for minutes."""

ROWS = [{"loss": 1.0 / (i + 1), "accuracy": i / 100, "lr": 1e-3, "grad_norm": float(i)} for i in range(64)]


TAKE_TENSORS = ("tensormeter", "wandb, offline", "tensorboard", "mlflow, async")

Rows = Sequence[Mapping[str, Any]]


def tensor_rows() -> Rows:
    """Return rows of CUDA tensors, or none if there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return []
    rows = [{name: torch.tensor(value, device="cuda") for name, value in row.items()} for row in ROWS]
    torch.cuda.synchronize()
    return rows


def measure(logs: dict[str, Log], rows: Rows) -> dict[str, np.ndarray]:
    """Return the duration of each call in microseconds, by contender, without the timer's own duration."""
    clock = time.perf_counter_ns
    empty = min(-(clock() - clock()) for _ in range(10_000))
    samples: dict[str, list[int]] = {name: [] for name in logs}
    steps = dict.fromkeys(logs, 0)
    slices = dict.fromkeys(logs, SLOW_SLICE)
    for _ in range(SLICES + 1):  # the first turn creates tables, threads and files, and does not count
        for name, log in logs.items():
            taken = []
            for step in range(steps[name], steps[name] + slices[name]):
                row = rows[step & 63]
                start = clock()
                log(row, step)
                taken.append(clock() - start)
            if steps[name]:
                samples[name] += taken
            steps[name] += slices[name]
            slices[name] = SLICE if np.median(taken) < 300_000 else SLOW_SLICE
    return {name: np.maximum(np.array(taken) - empty, 0) / 1000 for name, taken in samples.items()}


def run(title: str, rows: Rows, contenders: Iterable[str]) -> None:
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        logs: dict[str, Log] = {}
        for contender in contenders:
            try:
                with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                    logs[contender] = stack.enter_context(CONTENDERS[contender](Path(name)))
            except ImportError as error:
                print(f"skipping {contender}: {error}", file=sys.stderr)
        gc.collect()
        taken = measure(logs, rows)
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            stack.close()
    print_table(f"{title}: microseconds, up to {SLICE * SLICES:,} calls each", taken, beside="tensormeter")


def main() -> int:
    run("One log call of 4 floats", ROWS, (name for name in CONTENDERS if name != "nothing"))
    if rows := tensor_rows():
        run("One log call of 4 CUDA tensors", rows, TAKE_TENSORS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
