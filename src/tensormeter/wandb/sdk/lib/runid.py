"""The module `wandb.sdk.lib.runid`."""

import secrets
import string

__all__ = ["generate_id"]


def generate_id(length: int = 8) -> str:
    """Return a random ID of lowercase letters and digits."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))
