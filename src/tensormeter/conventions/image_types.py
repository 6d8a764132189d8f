"""Content types of images that clients log and servers store, with the first bytes of each type."""

import re
from typing import Final

__all__ = ["IMAGE_TYPES"]

IMAGE_TYPES: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""Patterns of the first bytes by content type. SVG is not included, because it can contain scripts."""
