"""Small scripts in the manner of public ones. They run with W&B's package and with `tensormeter.wandb`."""

STEPS = """
import datetime
import enum
import json
import pathlib
import types
import numpy as np
import torch

class Kind(enum.Enum):
    FAST = 1

kinds = {"path": pathlib.Path("a/b"), "kind": Kind.FAST, "day": datetime.date(2024, 1, 2), "array": np.arange(3), "call": len}
config = {**kinds, "lr": 0.1, "betas": (0.9, 0.99), "model": {"depth": 2}, "device": torch.device("cpu"), "size": np.int64(3)}
run = wandb.init(project="steps", name="a run", config=config)
for i in range(4):
    wandb.log({"loss": 1 / (i + 1), "np": np.float32(i)}, step=2 * i)
    wandb.log({"eval": {"acc": i, "deep": {"er": 0.5}}}, step=2 * i)
wandb.log({"same row as step 6": 1})
wandb.log({"tensor": torch.tensor(1.5), "bool": True})
wandb.log(data={"last": 2})
wandb.log({"merged": 1, "kept": 3}, commit=False)
wandb.log({"merged": 2}, commit=False)
wandb.log({"committed": 4})
wandb.log({"a": 1}, step=20, commit=True)
wandb.log({"b": 2})
run.log({"c": 3})
wandb.log({"pending": 1}, commit=False)
wandb.log({"next": 1}, step=40)
wandb.log({"tail": 1}, commit=False)
wandb.config.later = "x"
wandb.config["nested"] = {"a": [1, 2]}
wandb.config.update({"lr": 0.2, "seed": 1}, allow_val_change=True)
wandb.config.update(types.SimpleNamespace(spaced=1))
wandb.config.setdefaults({"seed": 5, "other": None})
print("step", wandb.run.step, wandb.run.name, wandb.run.project, sorted(wandb.config.keys()))
print(json.dumps(dict(wandb.config), sort_keys=True))
wandb.log({"best": {"x": np.float64(0.5), "y": np.int64(2)}, "text": "done"})
print(wandb.summary["best"]["x"], wandb.summary["best"]["y"], wandb.summary["text"], wandb.summary["loss"])
wandb.finish()
print("run", wandb.run)
"""
