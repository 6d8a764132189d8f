"""What logging does to a training step of a transformer on a GPU: about 125M parameters, bf16.

Every step logs ten scalars (tensors on the GPU, for those who take them), and every tenth the norms of all gradients and ten
histograms of them. Contenders take turns in one process, on one model. Reported are the time of a step (by the host, the GPU
being waited for at the end of a slice only), the share of it in which the GPU did nothing, and the bytes that came to the host;
the latter two from a profile of some steps of their own. Needs a CUDA device.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import print_table

STEPS = 50
ROUNDS = 6
PROFILED = 20
LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH, BATCH = 12, 768, 12, 32_000, 512, 8
HISTOGRAM_EVERY = 10

Log = Callable[[dict[str, torch.Tensor], torch.nn.Module, int], None]


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.embed(tokens)))
        return out


def watched(model: torch.nn.Module) -> list[torch.Tensor]:
    """The gradients of ten large parameters."""
    large = sorted((p for p in model.parameters() if p.grad is not None), key=lambda p: -p.numel())
    return [p.grad for p in large[:10] if p.grad is not None]


@contextlib.contextmanager
def nothing(folder: Path) -> Iterator[Log]:
    yield lambda values, model, step: None


@contextlib.contextmanager
def tensormeter_log(folder: Path) -> Iterator[Log]:
    import tensormeter

    with tensormeter.init("bench", settings={"directory": folder / "runs", "mode": "offline"}) as run:

        def log(values: dict[str, Any], model: torch.nn.Module, step: int) -> None:
            if step % HISTOGRAM_EVERY == 0:
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                norms = torch._foreach_norm(grads)
                row: dict[str, Any] = {f"norm/{i}": norm for i, norm in enumerate(norms)}
                row |= {f"grad/{i}": tensormeter.Histogram(grad) for i, grad in enumerate(watched(model))}
                run.log(values | row, step)
            else:
                run.log(values, step)

        yield log


@contextlib.contextmanager
def wandb_offline(folder: Path) -> Iterator[Log]:
    import wandb

    run = wandb.init(project="bench", dir=folder, mode="offline", settings=wandb.Settings(console="off", silent=True))

    def log(values: dict[str, Any], model: torch.nn.Module, step: int) -> None:
        row: dict[str, Any] = dict(values)
        if step % HISTOGRAM_EVERY == 0:
            row |= {f"norm/{i}": p.grad.norm() for i, p in enumerate(model.parameters()) if p.grad is not None}
            row |= {
                f"grad/{i}": wandb.Histogram(np_histogram=np.histogram(grad.float().cpu().numpy(), 64))
                for i, grad in enumerate(watched(model))
            }
        run.log(row, step=step)

    yield log
    run.finish()


CONTENDERS = {"nothing": nothing, "tensormeter": tensormeter_log, "wandb, offline": wandb_offline}


class Training:
    """A model that trains on random tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Transformer().to("cuda", torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), device="cuda")
        self.steps = 0

    def run(self, log: Log, steps: int) -> list[int]:
        """Nanoseconds of each step, as the host sees it; the last includes what the GPU has still to do."""
        taken = []
        for number in range(steps):
            start = time.perf_counter_ns()
            logits = self.model(self.tokens).float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens.flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            values = {"loss": loss.detach(), **{f"logit/{i}": logits[0, i].detach().amax() for i in range(9)}}
            log(values, self.model, self.steps)
            self.optimizer.step()
            self.steps += 1
            if number == steps - 1:
                torch.cuda.synchronize()
            taken.append(time.perf_counter_ns() - start)
        return taken


def profile(training: Training, log: Log) -> tuple[float, float]:
    """(share of the time in which the GPU did nothing, bytes to the host a step)."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        training.run(log, PROFILED)
    events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    to_host = [event for event in events if "DtoH" in event.name or "Device -> Pinned" in event.name]
    copied = float(sum(getattr(event, "nbytes", 0) or 0 for event in to_host))
    return 1 - busy / (end - spans[0][0]), copied / PROFILED if copied else float(len(to_host)) / PROFILED


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_step.py is left out: it needs a CUDA device", file=sys.stderr)
        return 0
    training = Training()
    samples: dict[str, list[float]] = {}
    profiles: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        logs = {}
        for contender, start in CONTENDERS.items():
            try:
                logs[contender] = stack.enter_context(start(Path(name)))
            except ImportError as error:
                print(f"{contender} is left out: {error}", file=sys.stderr)
        for number in range(ROUNDS + 1):  # the first is for kernels and caches, and does not count
            for contender, log in logs.items():
                taken = training.run(log, STEPS)
                if number:
                    samples.setdefault(contender, []).append(sum(taken) / STEPS / 1000)
        for contender, log in logs.items():
            profiles[contender] = profile(training, log)
    parameters = sum(p.numel() for p in training.model.parameters())
    title = (
        f"A step of a transformer of {parameters / 1e6:.0f}M parameters on {torch.cuda.get_device_name()}, microseconds"
    )
    print_table(title, {name: np.array(taken) for name, taken in samples.items()}, beside="nothing")
    for contender, (idle, copied) in profiles.items():
        print(f"{contender}: GPU idle {idle:.1%}, {copied:,.0f} bytes (or copies) to the host a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
