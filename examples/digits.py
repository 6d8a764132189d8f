"""Train a small convolutional network on scikit-learn's handwritten digits, and log the training with tensormeter.

The example uses real data and a real model. Like a real training script, it logs tensors and floats at every step, step
phases, gradient distributions, periodic evaluations with a table of mistakes, late results for earlier steps, an infinity and a
NaN.
"""

import argparse
import contextlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from torch import nn

import tensormeter

EVALUATE_EVERY = 50
MISTAKES_EVERY = 500
LATE_BY = 20
SHOWN_MISTAKES = 32
HAS_PILLOW = importlib.util.find_spec("PIL") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="name of the run")
    parser.add_argument(
        "--record",
        type=Path,
        help="file for a copy of all logged numbers, to compare: each line has metric, step and hexadecimal float64",
    )
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = {key: value for key, value in vars(arguments).items() if key not in ("name", "record")}
    with (
        _open(arguments.record) as record,
        tensormeter.init(project="digits", name=arguments.name, config=config) as run,
        Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress,
    ):
        print(f"run {run.id}", flush=True)
        train(run, record, progress, arguments)


def train(run: tensormeter.Run, record: TextIO | None, progress: Progress, arguments: argparse.Namespace) -> None:
    """Train the model and log each step."""

    def log(values: dict[str, Any], step: int) -> None:
        run.log(values, step)
        if record is not None:
            # Write exact hexadecimal floats, independently of tensormeter.
            for name, value in values.items():
                number = value.item() if isinstance(value, torch.Tensor) else float(value)
                record.write(f"{name}\t{step}\t{number.hex()}\n")

    (images, labels), (test_images, test_labels) = load_data()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate)
    steps = arguments.epochs * math.ceil(len(images) / arguments.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=steps)
    run.watch(model, every=EVALUATE_EVERY)
    task = progress.add_task("loss   -  ", total=steps)
    best = math.inf
    previous = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
    step = 0
    for epoch in range(arguments.epochs):
        for indices in torch.randperm(len(images)).split(arguments.batch_size):
            with run.step(step, items=len(indices)):
                with run.phase("model_forward"):
                    logits = model(images[indices])
                    loss = nn.functional.cross_entropy(logits, labels[indices])
                with run.phase("model_backward"):
                    optimizer.zero_grad()
                    loss.backward()
                    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]
                with run.phase("optimizer_update"):
                    optimizer.step()
                log(
                    {
                        "train/loss": loss,
                        "train/accuracy": (logits.argmax(1) == labels[indices]).float().mean(),
                        "train/gradient_norm": gradient.norm(),
                        # NaN (0/0) at the first step, which has no previous gradient. The charts should show it.
                        "train/gradient_cosine": gradient @ previous / (gradient.norm() * previous.norm()),
                        "train/learning_rate": schedule.get_last_lr()[0],
                        "train/epoch": epoch,
                    },
                    step,
                )
            previous = gradient
            schedule.step()
            averaged.update_parameters(model)
            if step % EVALUATE_EVERY == 0:
                # Log the best loss of all previous evaluations, which is infinite at first.
                log({"eval/best_loss": best}, step)
                test_loss, test_accuracy = evaluate(model, test_images, test_labels)
                log({"eval/loss": test_loss, "eval/accuracy": test_accuracy}, step)
                best = min(best, test_loss)
            if step % MISTAKES_EVERY == 0 or step == steps - 1:
                run.log({"eval/mistakes": mistakes(model, test_images, test_labels)}, step)
            if step % EVALUATE_EVERY == LATE_BY:
                # Log a late result for an earlier step.
                log({"eval/averaged_accuracy": evaluate(averaged, test_images, test_labels)[1]}, step - LATE_BY)
            progress.update(task, advance=1, description=f"loss {loss.item():.4f}")
            step += 1


def load_data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Load (images, labels) for training and testing: 1,437 and 360 images of 8 x 8 pixels with values from 0 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    cut = len(images) * 4 // 5
    return (images[order[:cut]], labels[order[:cut]]), (images[order[cut:]], labels[order[cut:]])


@torch.no_grad()
def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return the loss and accuracy of a model on the given images."""
    logits = model(images)
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def mistakes(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tensormeter.Table:
    """Return a table of misclassified digits, most confident first, with pictures if Pillow is installed."""
    confidence, predicted = model(images).softmax(1).max(1)
    table = tensormeter.Table(["picture", "label", "predicted", "confidence"])
    for i in confidence.argsort(descending=True).tolist():
        if predicted[i] != labels[i] and len(table) < SHOWN_MISTAKES:
            picture = tensormeter.Image(images[i].numpy()[0], f"a {labels[i]}") if HAS_PILLOW else f"test image {i}"
            table.add(picture, labels[i], predicted[i], confidence[i])
    return table


@contextlib.contextmanager
def _open(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
    else:
        with path.open("w") as file:
            yield file


if __name__ == "__main__":
    main()
