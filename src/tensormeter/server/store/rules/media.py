"""Extraction and validation of images, audio and video in event bodies. A store identifies them by the digest of their bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensormeter.conventions.limits import MEDIA_BYTES, TABLE_IMAGES, too_large
from tensormeter.conventions.media_types import MEDIA_TYPES, is_of_type

__all__ = ["Media", "MediaError", "take_media"]


class MediaError(ValueError):
    """An item cannot be stored; the message contains the reason."""


@dataclass(frozen=True)
class Media:
    """An image, an audio clip or a video. `digest` is the hexadecimal SHA-256 digest of its bytes."""

    digest: str
    content_type: str
    data: bytes


def take_media(body: Any) -> tuple[Any, list[Media]]:
    """Replace each item in a body with a reference. Return the new body and the items.

    An item is a mapping with bytes under "data" and the content type under "content_type".

    Raises:
        MediaError: There are too many items, or an item is too large or has an unsupported type.
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
                raise MediaError(f"more than {TABLE_IMAGES} images or other media in one event")
            rest = {key: _take(item, images) for key, item in value.items() if key != "data"}
            return rest | {"digest": media.digest, "size": len(data)}
        return {key: _take(item, images) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take(item, images) for item in value]
    return value


def _check(data: bytes, content_type: object) -> Media:
    if not is_of_type(data, content_type):
        raise MediaError(f"media must be one of {', '.join(MEDIA_TYPES)}")
    if len(data) > MEDIA_BYTES:
        raise MediaError(too_large(len(data), MEDIA_BYTES, "the item", "send a smaller one"))
    assert isinstance(content_type, str)
    return Media(hashlib.sha256(data).hexdigest(), content_type, data)
