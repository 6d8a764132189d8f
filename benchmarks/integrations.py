"""Effect of loggers on a step of Lightning's and Transformers' Trainers, on one CPU thread.

Each contender trains in a separate process, so that its threads and helper processes slow only its own steps. All
processes are started first and then take short turns, one at a time. Each turn of a contender follows a turn without a
logger, and the two medians give a ratio. The result is the median of the ratios from all rounds. Each step logs the loss: Lightning's as a
value of `self.log`, Transformers' with `logging_steps=1`, which adds the gradient norm, the learning rate and the epoch.

The last column is the training thread's processor time in each step beyond that of training without a logger.

To shorten the benchmark, set `BENCH_ROUNDS`, `BENCH_STEPS` or `BENCH_CONTENDERS` (names separated by semicolons).
"""

import io
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import print_on_machine
from rich.table import Table
from trainers import paired_turns, start_trainers

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "20"))
STEPS = int(os.environ.get("BENCH_STEPS", "100"))
WARM_UP = 50
REST = 0.2
"""Pause before each turn, in seconds."""

Turns = Callable[[Callable[[], None]], None]
"""A training that calls a function after each step, until the function raises `StopIteration`."""


def lightning(make: Callable[[Path], dict[str, Any]], folder: Path) -> Turns:
    """Prepare a training with Lightning. `make` returns the Trainer's logger and callbacks."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels = batch
            loss = torch.nn.functional.cross_entropy(self.net(inputs), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    class StepEnd(Callback):
        """Turns end when a batch starts: the metrics of the batch before have been logged then."""

        def __init__(self, after_step: Callable[[], None]) -> None:
            self.after_step = after_step

        def on_train_batch_start(self, *args: Any) -> None:
            self.after_step()

    def train(after_step: Callable[[], None]) -> None:
        options = {"logger": False, "callbacks": [], **make(folder)}
        options["callbacks"] = [*options["callbacks"], StepEnd(after_step)]
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        data = torch.utils.data.TensorDataset(torch.randn(6400, 128), torch.randint(10, (6400,)))
        trainer = Trainer(accelerator="cpu", max_epochs=-1, log_every_n_steps=1, **quiet, **options)
        trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=64))

    return train


def transformers(make: Callable[[Path], dict[str, Any]], folder: Path) -> Turns:
    """Prepare a training with Transformers. `make` returns arguments of `TrainingArguments`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class StepEnd(TrainerCallback):
        def __init__(self, after_step: Callable[[], None]) -> None:
            self.after_step = after_step

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.after_step()

    def train(after_step: Callable[[], None]) -> None:
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 64, "n_positions": 32}
        rows = [{"input_ids": (tokens := torch.randint(64, (32,))), "labels": tokens} for _ in range(256)]
        arguments = TrainingArguments(
            str(folder / "output"),
            use_cpu=True,
            max_steps=10**9,
            logging_steps=1,
            save_strategy="no",
            per_device_train_batch_size=8,
            disable_tqdm=True,
            **make(folder),
        )
        trainer = Trainer(GPT2LMHeadModel(GPT2Config(**sizes)), arguments, train_dataset=rows)
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.add_callback(StepEnd(after_step))
        trainer.train()

    return train


def tensormeter_settings(folder: Path) -> dict[str, Any]:
    return {"directory": folder / "runs", "mode": "offline"}


def lightning_nothing(folder: Path) -> dict[str, Any]:
    return {}


def lightning_tensormeter_logger(folder: Path) -> dict[str, Any]:
    from tensormeter.integrations.lightning import TensormeterLogger

    return {"logger": TensormeterLogger(settings=tensormeter_settings(folder), save_dir=folder)}


def lightning_tensormeter_callback(folder: Path) -> dict[str, Any]:
    from tensormeter.integrations.lightning import TensormeterCallback

    return {"callbacks": [TensormeterCallback(settings=tensormeter_settings(folder))]}


def lightning_tensorboard(folder: Path) -> dict[str, Any]:
    from lightning.pytorch.loggers import TensorBoardLogger

    return {"logger": TensorBoardLogger(folder)}


def lightning_csv(folder: Path) -> dict[str, Any]:
    from lightning.pytorch.loggers import CSVLogger

    return {"logger": CSVLogger(folder)}


def lightning_wandb(folder: Path) -> dict[str, Any]:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    settings = wandb.Settings(console="off", silent=True)
    return {"logger": WandbLogger(save_dir=folder, offline=True, settings=settings)}


def transformers_nothing(folder: Path) -> dict[str, Any]:
    return {"report_to": "none"}


def transformers_tensormeter(folder: Path) -> dict[str, Any]:
    import tensormeter.integrations.huggingface  # noqa: F401 - registers the name

    os.environ.update(TENSORMETER_MODE="offline", TENSORMETER_DIR=str(folder / "runs"), TENSORMETER_QUIET="1")
    return {"report_to": "tensormeter"}


def transformers_tensorboard(folder: Path) -> dict[str, Any]:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    return {"report_to": "tensorboard"}


def transformers_wandb(folder: Path) -> dict[str, Any]:
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_CONSOLE="off", WANDB_DIR=str(folder))
    return {"report_to": "wandb"}


FRAMEWORKS: dict[str, tuple[Callable[..., Turns], dict[str, Callable[[Path], dict[str, Any]]]]] = {
    "Lightning": (
        lightning,
        {
            "nothing": lightning_nothing,
            "tensormeter, callback": lightning_tensormeter_callback,
            "tensormeter, logger": lightning_tensormeter_logger,
            "CSVLogger": lightning_csv,
            "TensorBoardLogger": lightning_tensorboard,
            "WandbLogger, offline": lightning_wandb,
        },
    ),
    "Transformers": (
        transformers,
        {
            "nothing": transformers_nothing,
            "tensormeter": transformers_tensormeter,
            "tensorboard": transformers_tensorboard,
            "wandb, offline": transformers_wandb,
        },
    ),
}
CHOSEN = [name for name in os.environ.get("BENCH_CONTENDERS", "").split(";") if name]


def serve_turns(framework: str, contender: str) -> None:
    """Train one turn for each line on standard input, which contains the number of steps.

    Answer with the duration of each step and the thread's total processor time, in nanoseconds.
    """
    import torch

    answers, sys.stdout = sys.stdout, io.StringIO()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    taken: list[int] = []
    left, start, running = 0, 0, 0

    def after_step() -> None:
        nonlocal left, start, running
        now = time.perf_counter_ns()
        if left:
            taken.append(now - start)
            left -= 1
        if not left:
            if taken:
                print(json.dumps([taken, time.thread_time_ns() - running]), file=answers, flush=True)
                taken.clear()
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # neither framework has a quick way to stop within a step
            left, running = int(line), time.thread_time_ns()
        start = time.perf_counter_ns()

    prepare, contenders = FRAMEWORKS[framework]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(contenders[contender], Path(folder))(after_step)


def measure(framework: str) -> None:
    """Measure all contenders of a framework, and print a table."""
    contenders = FRAMEWORKS[framework][1]
    commands = {name: [__file__, framework, name] for name in contenders if not CHOSEN or name in ("nothing", *CHOSEN)}
    taken, ratios, added, processor = (defaultdict[str, list[Any]](list) for _ in range(4))
    with start_trainers(commands, WARM_UP) as trainers:
        for name, without, logged in paired_turns(trainers, ROUNDS, STEPS, REST):
            taken["nothing"].append(without.durations / 1e3)
            taken[name].append(logged.durations / 1e3)
            ratios[name].append(np.median(logged.durations) / np.median(without.durations))
            added[name].append((np.median(logged.durations) - np.median(without.durations)) / 1e3)
            processor[name].append((logged.running - without.running) / 1e3 / STEPS)
    table = Table(title=f"A step of {framework} on one CPU thread: microseconds, {ROUNDS} rounds of {STEPS} steps each")
    for column in ("", "p50", "p99", "relative to nothing", "middle half", "added per step", "added processor time"):
        table.add_column(column, justify="right" if column else "left")
    for name in taken:
        p50, p99 = np.percentile(np.concatenate(taken[name]), [50, 99])
        row = [name, f"{p50:.0f}", f"{p99:.0f}"]
        if name in ratios:
            low, middle, high = np.percentile(ratios[name], [25, 50, 75])
            row += [f"{middle:.3f}x", f"{low:.3f} to {high:.3f}"]
            row += [f"{np.median(samples):.0f}" for samples in (added[name], processor[name])]
        table.add_row(*row)
    print_on_machine(table)


def main() -> int:
    if len(sys.argv) > 1:
        serve_turns(*sys.argv[1:])
        return 0
    for framework in FRAMEWORKS:
        measure(framework)
    return 0


if __name__ == "__main__":
    sys.exit(main())
