"""Images from arrays, tensors, PIL images, files and encoded bytes."""

import importlib.util
from pathlib import Path
from typing import Any

from tensormeter.conventions.image_types import IMAGE_TYPES
from tensormeter.conventions.limits import CAPTION_CHARACTERS, IMAGE_BYTES, PIXEL_BYTES, too_large
from tensormeter.conventions.semconv import IMAGE_EVENT
from tensormeter.errors import UsageError
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.classify import Refused
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Image"]


class Image(Media):
    """An image from an array, a tensor on the CPU, a PIL image, a file, or the bytes of a PNG, JPEG, GIF or WebP.

    Arrays have the shape (height, width) or (height, width, c), where c is 1, 3 or 4. Tensors may also have torch's shape
    (c, height, width). Elements are uint8, bool, or floats from 0 to 1. The agent encodes arrays as PNG, which requires Pillow.

    The limits are 16 MiB for the encoded image and 60 MiB for pixels. A larger image is dropped and counted. The warning
    appears when the image is logged, or after the agent has encoded it.

    Attributes:
        body: JSON object that describes `data`.
        data: Encoded bytes or rows of pixels.
    """

    def __init__(self, data: Any, caption: str = "") -> None:
        """
        Args:
            data: Array, tensor, PIL image, path or encoded bytes (see above). The constructor copies the data.
            caption: Text to show with the image, truncated to 65,536 characters.

        Raises:
            UsageError: `data` cannot be read as an image, or Pillow is missing.
        """
        self._caption = text_of(caption)
        if len(self._caption) > CAPTION_CHARACTERS:
            self._caption = self._caption[: CAPTION_CHARACTERS - 1] + "…"
        if isinstance(data, str | Path):
            try:
                data = Path(data).read_bytes()
            except OSError as error:
                raise UsageError(f"Image: cannot read {data}: {error.strerror}") from None
        if isinstance(data, bytes | bytearray | memoryview):
            self._set(_encoded(bytes(data)), bytes(data))
            return
        if importlib.util.find_spec("PIL") is None:
            raise UsageError("Image: encoding an array as PNG needs Pillow; run pip install 'tensormeter[media]'")
        self._set(*_pixels(data))

    def _set(self, body: dict[str, Any], data: bytes) -> None:
        self.body = {**body, "caption": self._caption}
        self.data = data

    @property
    def encoded_size(self) -> int:
        """Size of the encoded image in bytes, or 0 if `data` contains pixels."""
        return len(self.data) if "content_type" in self.body else 0

    def pack(self) -> EventContent:
        for size, limit, what, advice in (
            (self.encoded_size, IMAGE_BYTES, "the image", "log a smaller one, or a JPEG"),
            (
                len(self.data),
                PIXEL_BYTES,
                "the uncompressed image",
                "log a smaller one, or pass uint8 values or an encoded image",
            ),
        ):
            if size > limit:
                raise Refused(too_large(size, limit, what, advice), Drop.IMAGE_TOO_LARGE)
        return EventContent(IMAGE_EVENT, self.body, self.data)


def _encoded(data: bytes) -> dict[str, Any]:
    """Detect the content type of encoded bytes."""
    for content_type, signature in IMAGE_TYPES.items():
        if signature.match(data):
            return {"content_type": content_type}
    raise UsageError("Image: expected a PNG, JPEG, GIF or WebP file as bytes")


def _pixels(data: Any) -> tuple[dict[str, Any], bytes]:
    """Return the shape, dtype and bytes of an image's pixels. The bytes are ordered row by row."""
    if hasattr(data, "convert") and hasattr(data, "tobytes"):  # PIL
        mode = data.mode if data.mode in ("L", "RGB", "RGBA") else "RGB"
        image = data.convert(mode)
        return {"shape": [image.height, image.width, len(mode)], "dtype": "uint8"}, image.tobytes()
    channels_first = False
    if hasattr(data, "detach"):
        if data.device.type != "cpu":
            raise UsageError(
                f"Image: the tensor is on {data.device}, and reading it would block until the device is done; log "
                "image.cpu()"
            )
        data, channels_first = data.detach().numpy(), True
    if not hasattr(data, "__array_interface__"):
        raise UsageError(f"Image: expected an array, a tensor, a PIL image, a path or bytes, got {type(data).__name__}")
    shape, dtype = list(data.shape), str(data.dtype)
    if dtype not in ("uint8", "float16", "float32", "float64", "bool"):
        raise UsageError(f"Image: expected an array of uint8, bool, or floats from 0 to 1, got {dtype}")
    if channels_first and len(shape) == 3 and shape[0] in (1, 3, 4):
        data = data.transpose(1, 2, 0)
        shape = [*shape[1:], shape[0]]
    if len(shape) == 2:
        shape = [*shape, 1]
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        raise UsageError(
            f"Image: expected shape (h, w), (h, w, c) or, for a tensor, (c, h, w), got {tuple(data.shape)}"
        )
    return {"shape": shape, "dtype": dtype}, data.tobytes()
