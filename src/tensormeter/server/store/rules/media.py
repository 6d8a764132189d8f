"""Extraction and validation of images in event bodies. A store identifies images by the digest of their bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tensormeter.conventions.limits import IMAGE_BYTES, TABLE_IMAGES, too_large

__all__ = ["Media", "MediaError", "is_of_type", "take_media"]

_SIGNATURES: Final = {
    "image/png": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda data: data.startswith(b"\xff\xd8\xff"),
    "image/gif": lambda data: data.startswith((b"GIF87a", b"GIF89a")),
    "image/webp": lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
}
"""Supported content types, each with a test of the first bytes. SVG is refused because it can contain scripts."""


class MediaError(ValueError):
    """An image cannot be stored; the message contains the reason."""


@dataclass(frozen=True)
class Media:
    """An image. `digest` is the hexadecimal SHA-256 digest of its bytes."""

    digest: str
    content_type: str
    data: bytes


def take_media(body: Any) -> tuple[Any, list[Media]]:
    """Replace each image in a body with a reference. Return the new body and the images.

    An image is a mapping with bytes under "data" and the content type under "content_type".

    Raises:
        MediaError: There are too many images, or an image is too large or has an unsupported type.
    """
    images: list[Media] = []
    return _take(body, images), images


def _take(value: Any, images: list[Media]) -> Any:
    if isinstance(value, Mapping):
        data, content_type = value.get("data"), value.get("content_type")
        if isinstance(data, bytes) and content_type is not None:
            media = _check(data, content_type)
            images.append(media)
            if len(images) > TABLE_IMAGES:
                raise MediaError(f"more than {TABLE_IMAGES} images in one event")
            rest = {key: _take(item, images) for key, item in value.items() if key != "data"}
            return rest | {"digest": media.digest, "size": len(data)}
        return {key: _take(item, images) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take(item, images) for item in value]
    return value


def is_of_type(data: bytes, content_type: object) -> bool:
    """Return whether the content type is supported and the bytes are an image of this type."""
    matches = _SIGNATURES.get(content_type) if isinstance(content_type, str) else None
    return matches is not None and matches(data)


def _check(data: bytes, content_type: object) -> Media:
    if not is_of_type(data, content_type):
        raise MediaError(f"media must be one of {', '.join(_SIGNATURES)}")
    if len(data) > IMAGE_BYTES:
        raise MediaError(too_large(len(data), IMAGE_BYTES, "the image", "send a smaller one"))
    assert isinstance(content_type, str)
    return Media(hashlib.sha256(data).hexdigest(), content_type, data)
