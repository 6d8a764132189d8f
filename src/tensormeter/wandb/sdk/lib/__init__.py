"""The modules of `wandb.sdk.lib` that code refers to."""

from tensormeter.wandb.sdk.lib import config_util, runid

__all__ = ["RunDisabled", "config_util", "runid"]


class RunDisabled:
    """The class of disabled runs in old versions of W&B, which code passes to `isinstance`. No run belongs to it."""
