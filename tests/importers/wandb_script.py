"""A script that logs an offline run with the real wandb."""

import sys

import numpy as np
import wandb

run = wandb.init(
    mode="offline",
    dir=sys.argv[1],
    project="vision",
    id="abcd1234",
    name="my run",
    group="sweep",
    job_type="train",
    tags=["a", "b"],
    notes="some notes",
    config={
        "lr": 0.1,
        "model": {"layers": [1, 2], "bias": None},
        "api_key": "sk-proj-0123456789abcdefghijklmnopqrstuv",
    },
)
wandb.define_metric("acc", summary="max")
print("hello from the script")
rng = np.random.default_rng(0)
losses = rng.normal(size=200).tolist()
for step, loss in enumerate(losses):
    row = {"loss": loss, "acc": step % 7, "opt": {"lr": 0.1 / (1 + step), "deep": {"x": -step}}, "big": 2**60 + step}
    if step % 3 == 0:
        row["sparse"] = float("nan") if step == 3 else 1e-30 * step
    if step < 30:
        row["phase"] = "warmup" if step < 20 else "decay"
    if step == 5:
        row |= {"none": None, "list": [1, 2, 3], "flag": True}
    wandb.log(row)
picture = (np.arange(60).reshape(4, 5, 3) * 4).astype(np.uint8)
wandb.log(
    {
        "picture": wandb.Image(picture, caption="a caption"),
        "pictures": [wandb.Image(picture), wandb.Image(picture[::-1])],
        "weights": wandb.Histogram(np_histogram=(np.array([1, 2, 3]), np.array([0.0, 0.5, 1.0, 2.0]))),
        "predictions": wandb.Table(columns=["i", "label"], data=[[1, "x"], [2.5, None]]),
        "page": wandb.Html("<b>bold</b>"),
        "mesh": wandb.Object3D(np.zeros((4, 3))),
    }
)
wandb.log({"curve": wandb.plot.line(wandb.Table(columns=["x", "y"], data=[[1, 2], [3, 4]]), "x", "y", title="A line")})
wandb.log({"later": 1.5}, step=300)
wandb.alert("careful", "the loss is high", level="WARN")
run.config.update({"late": 1})
run.name = "renamed run"
run.summary["best"] = 0.25
wandb.finish()
