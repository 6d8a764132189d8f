"""Functions of `wandb.util` that scripts use."""

from tensormeter.wandb.sdk.lib.runid import generate_id

__all__ = ["generate_id"]
