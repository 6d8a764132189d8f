"""The `wandb` destination: Weights & Biases."""

from tensormeter.packages import is_replaced

if is_replaced("wandb"):
    raise ImportError(
        "the destination 'wandb' needs W&B's package, but wandb.install() has replaced it in this process; run the agent in "
        "another process (agent='process')"
    )
