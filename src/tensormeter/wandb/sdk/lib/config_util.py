"""The module `wandb.sdk.lib.config_util`."""

from tensormeter.wandb.errors import Error

__all__ = ["ConfigError"]


class ConfigError(Error):
    """W&B's refusal to change a configuration value. It is never raised here, because values may always change."""
