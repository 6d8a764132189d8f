"""Redaction of source code and diffs."""

import os
from typing import Final

from tensormeter.redaction import MASK, environment_secrets, mask_text
from tensormeter.redaction.values import mask_tokens

__all__ = ["mask_lines"]

_BLOCK: Final = 1 << 14
"""Characters that are masked at once. Regular expressions hold the interpreter's lock, and the agent must read rows meanwhile."""


def mask_lines(text: str) -> str:
    """Return text with secrets masked: those of a known form or name, and those of this process's environment."""
    for secret in environment_secrets(os.environ):
        text = text.replace(secret, MASK)
    text = mask_tokens(text)  # at once, because private keys have several lines
    blocks: list[str] = []
    start = 0
    while start < len(text):
        end = text.find("\n", start + _BLOCK) + 1 or len(text)
        blocks.append(mask_text(text[start:end]))
        start = end
    return "".join(blocks)
