"""Extraction and validation of images in event bodies. A store identifies images by the digest of their bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensormeter.conventions.image_types import IMAGE_TYPES
from tensormeter.conventions.limits import IMAGE_BYTES, TABLE_IMAGES, too_large

__all__ = ["Media", "MediaError", "is_of_type", "take_media"]


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
    signature = IMAGE_TYPES.get(content_type) if isinstance(content_type, str) else None
    return signature is not None and signature.match(data) is not None


def _check(data: bytes, content_type: object) -> Media:
    if not is_of_type(data, content_type):
        raise MediaError(f"media must be one of {', '.join(IMAGE_TYPES)}")
    if len(data) > IMAGE_BYTES:
        raise MediaError(too_large(len(data), IMAGE_BYTES, "the image", "send a smaller one"))
    assert isinstance(content_type, str)
    return Media(hashlib.sha256(data).hexdigest(), content_type, data)
