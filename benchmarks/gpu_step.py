"""Effect of logging on a training step of a transformer with about 125M parameters, in bf16 on a GPU.

Each step logs ten scalars, as GPU tensors. Every step, or every tenth step, also logs the norms of all gradients and
ten histograms of gradients. The contenders take turns in one process, with one model. A CUDA device is required.

A turn ends with a wait for the GPU. The duration of a step is the turn's duration divided by its number of steps. The
host times do not include this wait. The GPU's idle share, the kernels per step and the bytes copied to the host per step
come from a trace of separate steps. The 8 bytes per value that tensormeter's kernels store directly in host memory are
not included.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from report import print_on_machine
from rich.table import Table

PROFILED = 20

Log = Callable[[dict[str, torch.Tensor], torch.nn.Module, int], None]


class Size(NamedTuple):
    """Size of the model and of a batch."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 32_000
    length: int = 512
    batch: int = 8


class Transformer(torch.nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(size.vocabulary, size.width)
        layer = torch.nn.TransformerEncoderLayer(
            size.width, size.heads, 4 * size.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = torch.nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.embed(tokens)))
        return out


def watched(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the gradients of the ten largest parameters."""
    large = sorted((p for p in model.parameters() if p.grad is not None), key=lambda p: -p.numel())
    return [p.grad for p in large[:10] if p.grad is not None]


@contextlib.contextmanager
def nothing(folder: Path, every: int) -> Iterator[Log]:
    yield lambda values, model, step: None


@contextlib.contextmanager
def one_launch(folder: Path, every: int, device_path: str = "auto") -> Iterator[Log]:
    import tensormeter

    settings = {"directory": folder / "runs", "mode": "offline", "device_path": device_path}
    with tensormeter.init("bench", settings=settings) as run:

        def log(values: dict[str, Any], model: torch.nn.Module, step: int) -> None:
            if step % every == 0:
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                norms = torch._foreach_norm(grads)
                row: dict[str, Any] = {f"norm/{i}": norm for i, norm in enumerate(norms)}
                row |= {f"grad/{i}": tensormeter.Histogram(grad) for i, grad in enumerate(watched(model))}
                run.log(values | row, step)
            else:
                run.log(values, step)

        yield log


def two_launches(folder: Path, every: int) -> contextlib.AbstractContextManager[Log]:
    return one_launch(folder, every, "two_launches")


@contextlib.contextmanager
def wandb_offline(folder: Path, every: int) -> Iterator[Log]:
    import wandb

    run = wandb.init(project="bench", dir=folder, mode="offline", settings=wandb.Settings(console="off", silent=True))

    def log(values: dict[str, Any], model: torch.nn.Module, step: int) -> None:
        row: dict[str, Any] = dict(values)
        if step % every == 0:
            row |= {f"norm/{i}": p.grad.norm() for i, p in enumerate(model.parameters()) if p.grad is not None}
            row |= {
                f"grad/{i}": wandb.Histogram(np_histogram=np.histogram(grad.float().cpu().numpy(), 64))
                for i, grad in enumerate(watched(model))
            }
        run.log(row, step=step)

    yield log
    run.finish()


CONTENDERS: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[Log]]] = {
    "nothing": nothing,
    "tensormeter": one_launch,
    "tensormeter, two launches": two_launches,
    "wandb, offline": wandb_offline,
}


class Training:
    """A model that trains on random tokens."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        self.model = Transformer(size).to("cuda", torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = torch.randint(size.vocabulary, (size.batch, size.length), device="cuda")
        self.steps = 0

    def run(self, log: Log, steps: int) -> tuple[float, list[float]]:
        """Train some steps. Return their total duration, including the wait for the GPU, and the host's time per step.

        All times are in seconds.
        """
        torch.cuda.synchronize()
        began, taken = time.perf_counter(), []
        for _ in range(steps):
            start = time.perf_counter()
            logits = self.model(self.tokens).float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens.flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            values = {"loss": loss.detach(), **{f"logit/{i}": logits[0, i].detach().amax() for i in range(9)}}
            log(values, self.model, self.steps)
            self.optimizer.step()
            self.steps += 1
            taken.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        return time.perf_counter() - began, taken


class Trace(NamedTuple):
    """Activity of the GPU.

    Attributes:
        idle: Share of time, from 0 to 1, for which the GPU is idle between its first and last operations.
        kernels: Number of kernels per step.
        to_host: Bytes copied to the host per step.
    """

    idle: float
    kernels: float
    to_host: float


def profile(training: Training, log: Log, folder: Path) -> Trace | None:
    """Profile some steps, or return None if the profiler records no GPU activity."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        training.run(log, PROFILED)
    file = folder / "trace.json"
    profiled.export_chrome_trace(str(file))
    return read_trace(json.loads(file.read_text())["traceEvents"], PROFILED)


def read_trace(events: list[dict[str, Any]], steps: int) -> Trace | None:
    """Evaluate a trace in Chrome's format, or return None if it contains no GPU activity."""
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not work:
        return None
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in work)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    copied = sum(event["args"]["bytes"] for event in work if event["name"].startswith("Memcpy DtoH"))
    kernels = sum(event["cat"] == "kernel" for event in work)
    return Trace(1 - busy / (end - spans[0][0]), kernels / steps, copied / steps)


def measure(size: Size, every: int, steps: int, rounds: int) -> None:
    training = Training(size)
    slices: dict[str, list[float]] = {}
    hosts: dict[str, list[float]] = {}
    traces: dict[str, Trace | None] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        logs = {}
        for contender, start in CONTENDERS.items():
            try:
                logs[contender] = stack.enter_context(start(Path(name), every))
            except ImportError as error:
                print(f"skipping {contender}: {error}", file=sys.stderr)
        for number in range(rounds + 1):  # the first turn fills caches of kernels and memory, and does not count
            for contender, log in logs.items():
                whole, taken = training.run(log, steps)
                if number:
                    slices.setdefault(contender, []).append(whole / steps)
                    hosts.setdefault(contender, []).extend(taken)
        for contender, log in logs.items():
            traces[contender] = profile(training, log, Path(name))
    parameters = sum(p.numel() for p in training.model.parameters())
    table = Table(
        title=f"A step of a transformer with {parameters / 1e6:.0f}M parameters on {torch.cuda.get_device_name()}; norms and "
        f"histograms every {every} steps"
    )
    columns = (
        "",
        "step, ms",
        "relative to nothing",
        "host p50, ms",
        "host p99, ms",
        "GPU idle",
        "kernels",
        "KiB to host",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for contender, seconds in slices.items():
        ratios = np.array(seconds) / np.array(slices["nothing"])
        p50, p99 = np.percentile(hosts[contender], [50, 99]) * 1e3
        row = [contender, f"{np.median(seconds) * 1e3:.2f}", f"{np.median(ratios):.3f}x", f"{p50:.2f}", f"{p99:.2f}"]
        trace = traces[contender]
        if trace is not None:
            row += [f"{trace.idle:.1%}", f"{trace.kernels:,.0f}", f"{trace.to_host / 1024:,.1f}"]
        table.add_row(*row)
    print_on_machine(table)


@click.command(help=__doc__)
@click.option(
    "--every",
    "everys",
    type=int,
    multiple=True,
    default=(10, 1),
    help="Number of steps between two histograms. Repeat the option to measure several.",
)
@click.option("--steps", default=30, help="Number of steps per turn.")
@click.option("--rounds", default=7, help="Number of turns per contender.")
@click.option(
    "--size", type=int, nargs=6, default=Size(), help="Layers, width, heads, vocabulary, sequence length, batch size."
)
def main(everys: tuple[int, ...], steps: int, rounds: int, size: tuple[int, ...]) -> None:
    if not torch.cuda.is_available():
        print("skipping gpu_step.py: it needs a CUDA device", file=sys.stderr)
        return
    for every in everys:
        measure(Size(*size), every, steps, rounds)


if __name__ == "__main__":
    main()
