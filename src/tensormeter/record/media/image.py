"""Images from arrays, tensors, PIL images, Matplotlib figures, files and encoded bytes."""

import importlib.util
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from tensormeter.conventions.limits import IMAGE_BYTES, PIXEL_BYTES, TABLE_IMAGES, too_large
from tensormeter.conventions.media_types import IMAGE_TYPES, content_type_of
from tensormeter.conventions.semconv import IMAGE_EVENT, IMAGES_EVENT
from tensormeter.record.media.array_copy import copy_array, is_array, is_tensor
from tensormeter.record.media.arriving import ArrivingMedia
from tensormeter.record.media.item import EventContent, caption_of, read_media_file
from tensormeter.record.media.pixels import arrange, describe_pixels
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

__all__ = ["Image", "ImagePart", "check_pillow", "describe_excess", "is_pil_image", "join_images", "matplotlib_figure"]

_DEEP_MODES: Final = ("F", "I")
"""First letters of Pillow's modes with more than 8 bits per channel."""


class ImagePart(NamedTuple):
    """One image as bytes.

    Attributes:
        body: The content type of encoded bytes, or the description of pixels, and the caption.
        data: Encoded bytes or pixels.
        remark: Sentence about a scaling that may surprise, or "".
    """

    body: dict[str, Any]
    data: bytes
    remark: str = ""

    @property
    def encoded_size(self) -> int:
        """Size of the encoded image in bytes, or 0 if `data` contains pixels."""
        return len(self.data) if "content_type" in self.body else 0


class Image(ArrivingMedia):
    """An image, or several images of one size.

    The data is an array, a tensor, a PIL image, a Matplotlib figure, a file, the bytes of a PNG, JPEG, GIF or WebP, or a
    list of these. The agent encodes arrays as PNG, which requires Pillow.

    Arrays have the dimensions height and width, and optionally 1 to 4 channels: gray, gray with alpha, RGB, or RGB with alpha.
    A fourth dimension counts images, which are shown as a grid. Elements have any real type:

    - uint8 and bool are recorded unchanged. Integers that are only 0 and 1 are a mask, and become black and white.
    - Floats from 0 to 1, floats and integers from 0 to 255, and 16-bit integers from 0 to 65,535 are recorded as such.
    - Other values are scaled so that the smallest becomes black and the largest white, with one warning.
    - Pixels with NaN become magenta.

    The limits are 16 MiB for the encoded image and 60 MiB for pixels. A larger image is dropped and counted. The warning
    appears when the image is logged, or after the agent has encoded it.
    """

    def __init__(self, data: Any, caption: str | None = "", *, dataformats: str | None = None) -> None:
        """
        Args:
            data: Array, tensor, PIL image, figure, path, encoded bytes, or a list of these. The constructor copies the data.
            caption: Text to show with the image, truncated to 65,536 characters.
            dataformats: Order of an array's dimensions: the letters N (images), C (channels), H (height) and W (width), for
                example "CHW" or "NHWC". Default: (height, width, channels) or, if the shape permits only this or the data is
                a tensor, (channels, height, width).
        """
        self._caption = caption_of(caption)
        self._parts: list[ImagePart | Refused] = []
        self._is_list = False
        self._begin(data, partial(self._read_images, dataformats=dataformats))

    def pack(self) -> EventContent:
        self._check_arrival()
        if not self._is_list:
            part = self.part()
            return EventContent(IMAGE_EVENT, part.body, part.data, remarks=[part.remark] if part.remark else [])
        return join_images(self._parts)

    def part(self) -> ImagePart:
        """Return the image.

        Raises:
            Refused: The image cannot be recorded, has not arrived from a device, or there are several.
        """
        self._check_arrival()
        if self._is_list:
            raise Refused("expected one image, but this is a list or a batch of images")
        (part,) = self._parts
        if isinstance(part, Refused):
            raise part
        for size, limit, what, advice in (
            (part.encoded_size, IMAGE_BYTES, "the image", "log a smaller one, or a JPEG"),
            (
                len(part.data),
                PIXEL_BYTES,
                "the uncompressed image",
                "log a smaller one, or pass uint8 values or an encoded image",
            ),
        ):
            if size > limit:
                raise Refused(too_large(size, limit, what, advice), Drop.IMAGE_TOO_LARGE)
        return part

    @property
    def parts(self) -> "Sequence[ImagePart | Refused]":
        """The images, and the refusals of those that cannot be recorded."""
        return self._parts

    def _fail(self, refusal: Refused) -> None:
        self._parts = [refusal]

    def _read_images(self, data: Any, dataformats: str | None) -> None:
        self._parts = self._parts_of(data, dataformats)

    def _parts_of(self, data: Any, dataformats: str | None) -> "list[ImagePart | Refused]":
        kind = type(data)
        if issubclass(kind, Image):
            self._is_list = data._is_list
            return list(data._parts)
        if issubclass(kind, str | Path):
            data = read_media_file(data, IMAGE_BYTES)
            kind = bytes
        if issubclass(kind, bytes | bytearray | memoryview):
            return [self._encoded(bytes(data))]
        if issubclass(kind, list | tuple) and any(_is_image_data(item) for item in data):
            self._is_list = True
            items = (Image(item, self._caption, dataformats=dataformats) for item in data[: TABLE_IMAGES + 1])
            return [part for item in items for part in item._parts]
        if (figure := matplotlib_figure(data)) is not None:
            return [ImagePart({"content_type": "image/png", "caption": self._caption}, _render(figure))]
        check_pillow()
        if is_pil_image(data):
            return [self._pil(data)]
        if not is_array(data) and not issubclass(kind, list | tuple):
            raise Refused(
                "expected an array, a tensor, a PIL image, a figure, a path, bytes or a list of these, got a "
                f"{kind.__name__}"
            )
        array = copy_array(data, "image", Drop.IMAGE_TOO_LARGE)
        images = arrange(array, dataformats, channels_first=is_tensor(data))
        self._is_list = images.ndim > 3
        if not self._is_list:
            return [self._pixels(images)]
        if len(images) > TABLE_IMAGES:
            raise _too_many(len(images))
        span = describe_pixels(images)  # of the whole batch, so that its images have the same scale
        same = {name: value for name, value in span.body.items() if name.endswith("span")}
        return [
            ImagePart(
                {**same, "shape": list(image.shape), "dtype": str(image.dtype), "caption": self._caption},
                image.tobytes(),
                span.remark,
            )
            for image in images
        ]

    def _encoded(self, data: bytes) -> ImagePart:
        content_type = content_type_of(data)
        if content_type not in IMAGE_TYPES:
            raise Refused("expected a PNG, JPEG, GIF or WebP file")
        return ImagePart({"content_type": content_type, "caption": self._caption}, data)

    def _pil(self, image: Any) -> ImagePart:
        if not image.width or not image.height:
            raise Refused(f"it is empty: its size is {image.width} x {image.height}")
        if image.width * image.height > PIXEL_BYTES:  # before it is decoded
            size = image.width * image.height
            raise Refused(
                too_large(size, PIXEL_BYTES, "the uncompressed image", "log a smaller one"), Drop.IMAGE_TOO_LARGE
            )
        if image.mode.startswith(_DEEP_MODES):
            array = arrange(copy_array(image, "image", Drop.IMAGE_TOO_LARGE), "HW", channels_first=False)
            least = 255 if image.mode == "I" else -1  # "I" has 32 bits, and often holds values up to 255
            is_deep = image.mode != "F" and least < array.max() <= 65535 and array.min() >= 0
            return self._pixels(array.astype("uint16") if is_deep else array, sixteen_bits=is_deep)
        transparent = "transparency" in image.info or image.mode in ("RGBa", "La", "PA")
        mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else "RGB"
        image = image.convert("RGBA" if transparent else "L" if image.mode == "1" else mode)
        channels = len(image.getbands())
        body = {"shape": [image.height, image.width, channels], "dtype": "uint8", "caption": self._caption}
        return ImagePart(body, image.tobytes())

    def _pixels(self, array: Any, *, sixteen_bits: bool = False) -> ImagePart:
        pixels = describe_pixels(array, sixteen_bits=sixteen_bits)
        return ImagePart({**pixels.body, "caption": self._caption}, pixels.data, pixels.remark)


def join_images(parts: "Sequence[ImagePart | Refused]") -> EventContent:
    """Return the content of one event with several images. Images that cannot be recorded are left out.

    Raises:
        Refused: No image can be recorded, or there are too many or too large images.
    """
    if len(parts) > TABLE_IMAGES:
        raise _too_many(len(parts))
    images = [part for part in parts if isinstance(part, ImagePart)]
    refusals = [part for part in parts if isinstance(part, Refused)]
    if not images:
        raise refusals[0] if refusals else Refused("the list of images is empty")
    if excess := describe_excess(images, "all images together", "log fewer or smaller ones"):
        raise Refused(excess, Drop.IMAGE_TOO_LARGE)
    data = b"".join(image.data for image in images)
    body = {"images": [{**image.body, "size": len(image.data)} for image in images]}
    remarks = [f"an image is not recorded: {refusal}" for refusal in refusals]
    remarks += dict.fromkeys(image.remark for image in images if image.remark)
    return EventContent(IMAGES_EVENT, body, data, remarks=remarks, omitted=len(refusals))


def describe_excess(images: Sequence[ImagePart], noun: str, advice: str) -> str:
    """Return the message for images that are too large together, or "" if they are not.

    Args:
        images: The images.
        noun: Noun for them, such as "all images together".
        advice: Remedy.
    """
    for form, total, limit in (
        ("encoded", sum(image.encoded_size for image in images), IMAGE_BYTES),
        ("uncompressed", sum(len(image.data) for image in images), PIXEL_BYTES),
    ):
        if total > limit:
            return too_large(total, limit, f"{noun} ({form})", advice)
    return ""


def check_pillow() -> None:
    """Check that Pillow is installed, which the agent needs to encode pixels.

    Raises:
        Refused: Pillow is missing.
    """
    if importlib.util.find_spec("PIL") is None:
        raise Refused("encoding pixels needs Pillow; run pip install 'tensormeter[media]'")


def is_pil_image(value: object) -> bool:
    """Return whether a value is a PIL image. Does not import Pillow."""
    image_type = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return image_type is not None and issubclass(type(value), image_type)


def matplotlib_figure(value: Any) -> Any:
    """Return the Matplotlib figure that a value is or belongs to, or None. The module pyplot stands for its current figure."""
    figure_type = getattr(sys.modules.get("matplotlib.figure"), "FigureBase", None)
    if figure_type is None:
        return None
    if issubclass(type(value), figure_type):
        return value
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and value is pyplot:
        return pyplot.gcf()
    artist_type = getattr(sys.modules.get("matplotlib.artist"), "Artist", None)
    if artist_type is not None and issubclass(type(value), artist_type):
        return getattr(value, "figure", None)
    return None


def _render(figure: Any) -> bytes:
    """Render a Matplotlib figure. Blocks while Matplotlib draws, which must happen before the script changes the figure."""
    while (parent := getattr(figure, "figure", figure)) is not figure and parent is not None:
        figure = parent  # a subfigure is part of a figure
    width, height = figure.bbox.size
    if width * height > PIXEL_BYTES:  # before it takes the memory
        raise Refused(
            too_large(int(width * height), PIXEL_BYTES, "the rendered figure", "use a smaller figsize or dpi"),
            Drop.IMAGE_TOO_LARGE,
        )
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1})
    return file.getvalue()


def _is_image_data(value: Any) -> bool:
    """Return whether an item of a list is an image, rather than a number or a row of numbers."""
    if issubclass(type(value), Image | bytes | str | Path) or is_pil_image(value):
        return True
    return matplotlib_figure(value) is not None or (is_array(value) and len(value.shape) > 1)


def _too_many(number: int) -> Refused:
    return Refused(
        f"there are {number}{'' if number <= TABLE_IMAGES else ' or more'} images, but the limit is {TABLE_IMAGES}; log fewer "
        "at a time",
        Drop.IMAGE_TOO_LARGE,
    )
