"""Content types of images, audio and video that clients log and servers store, with the first bytes of each type."""

import re
from typing import Final

__all__ = ["AUDIO_TYPES", "IMAGE_TYPES", "MEDIA_TYPES", "VIDEO_TYPES", "content_type_of", "is_of_type"]

IMAGE_TYPES: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""Patterns of the first bytes by content type. SVG is not included, because it can contain scripts."""

AUDIO_TYPES: Final = {
    "audio/wav": re.compile(rb"RIFF.{4}WAVE", re.DOTALL),
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfb]"),
    "audio/ogg": re.compile(rb"OggS"),
    "audio/flac": re.compile(rb"fLaC"),
}

VIDEO_TYPES: Final = {
    "video/mp4": re.compile(rb".{4}ftyp", re.DOTALL),
    "video/webm": re.compile(rb"\x1aE\xdf\xa3"),
}

MEDIA_TYPES: Final = IMAGE_TYPES | AUDIO_TYPES | VIDEO_TYPES


def content_type_of(data: bytes) -> str | None:
    """Return the content type that the first bytes of a file indicate, or None if it is not in `MEDIA_TYPES`."""
    return next((content_type for content_type, signature in MEDIA_TYPES.items() if signature.match(data)), None)


def is_of_type(data: bytes, content_type: object) -> bool:
    """Return whether the content type is in `MEDIA_TYPES` and the first bytes are those of this type."""
    signature = MEDIA_TYPES.get(content_type) if isinstance(content_type, str) else None
    return signature is not None and signature.match(data) is not None
