"""Conversion of logged values that are neither numbers nor `Media` items, such as figures, frames and lists of images."""

import array
import sys
from collections import deque
from collections.abc import ItemsView, KeysView, Mapping, Sequence, ValuesView
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.media_types import AUDIO_TYPES, IMAGE_TYPES, VIDEO_TYPES, content_type_of
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.record.media.array_copy import is_tensor
from tensormeter.record.media.arriving import is_on_device
from tensormeter.record.media.audio import Audio
from tensormeter.record.media.figure import PlotlyFigure, is_plotly_figure
from tensormeter.record.media.frames import is_frame
from tensormeter.record.media.image import Image, is_pil_image, matplotlib_figure
from tensormeter.record.media.item import Media
from tensormeter.record.media.table import Table
from tensormeter.record.media.text import Text
from tensormeter.record.media.video import Video
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, as_plain_tensor, classify, type_name
from tensormeter.record.values.number_types import is_extension_number

Number = float | int

__all__ = ["Parts", "as_loggable"]

_SMALLEST_IMAGE: Final = 8
"""Minimum height and width from which an array of more than two dimensions is assumed to contain images. Kernels of
convolutions are smaller."""

_MAX_PARTS: Final = 64
"""Maximum number of items in a list of videos, audio clips or documents."""


class Parts(dict[str, Media]):
    """Items that are recorded under separate names, by the end of the name."""


def as_loggable(value: Any, refusal: Refused) -> Number | Histogram | Media | Parts:
    """Return what a value that `classify` has refused stands for. Blocks only while it copies the value.

    Raises:
        Refused: The value cannot be recorded. The message names what to log instead.
        Exception: The value's own code raised it.
    """
    kind = type(value)
    if issubclass(kind, bytes | bytearray | memoryview):
        return _of_bytes(bytes(value))
    if is_tensor(value) or _is_numpy_array(value):
        return _of_array(value, refusal)
    if issubclass(kind, list | tuple | range | array.array):
        return _of_sequence(value)
    if is_pil_image(value) or matplotlib_figure(value) is not None:
        return Image(value)
    if is_plotly_figure(value):
        return PlotlyFigure(value)
    if is_frame(value):
        return _of_frame(value)
    raise Refused(_advice(value) or str(refusal))


def _of_bytes(data: bytes) -> Media:
    content_type = content_type_of(data)
    if content_type in IMAGE_TYPES:
        return Image(data)
    if content_type in VIDEO_TYPES:
        return Video(data)
    if content_type in AUDIO_TYPES:
        return Audio(data)
    raise Refused(
        "cannot tell what these bytes are; log a PNG, JPEG, GIF, WebP, MP4, WebM, WAV, MP3, OGG or FLAC file, or text as a str"
    )


def _of_array(value: Any, refusal: Refused) -> Histogram | Image:
    """Return an array as images if it looks like images, and otherwise as a distribution."""
    if is_tensor(value):
        value = as_plain_tensor(value)
        if type(value).__name__ not in ("Tensor", "Parameter") or value.is_meta or value.numel() < 2:
            raise refusal
        is_bytes, is_parameter = str(value.dtype) == "torch.uint8", type(value).__name__ == "Parameter"
        is_readable = value.device.type == "cpu" or is_on_device(value)
    else:
        if value.size < 2 or (value.dtype.kind not in "biuf" and not is_extension_number(value.dtype)):
            raise refusal
        is_bytes, is_parameter, is_readable = str(value.dtype) == "uint8", False, True
        if hasattr(value, "compressed"):  # a masked array
            return Histogram(value.compressed())
    if is_readable and not is_parameter and _looks_like_images(tuple(value.shape), is_bytes=is_bytes):
        return Image(value)
    return Histogram(value)


def _looks_like_images(shape: tuple[int, ...], *, is_bytes: bool) -> bool:
    """Return whether an array has the shape of a batch of images or, if its elements are bytes, of an image."""
    if len(shape) not in ((3, 4) if is_bytes else (4,)):
        return False
    channels = (1, 3, 4) if len(shape) == 4 else (3, 4)
    if shape[-1] in channels and min(shape[-3:-1]) >= _SMALLEST_IMAGE:
        return True
    return shape[-3] in channels and min(shape[-2:]) >= _SMALLEST_IMAGE


def _of_sequence(value: Sequence[Any]) -> Number | Histogram | Media | Parts:
    if not len(value):
        raise Refused("the list is empty; leave the key out if there is nothing to log")
    if issubclass(type(value), range | array.array):
        return Histogram(value)
    kinds = set(map(type, value))
    if kinds <= {float, int, bool}:
        return Histogram(value) if len(value) > 1 else value[0]
    pictures = list(map(_is_image, value))
    if all(pictures):
        return Image(list(value))
    if any(map(_is_surely_image, value)):
        if all(is_image or _has_two_dimensions(item) for item, is_image in zip(value, pictures, strict=True)):
            return Image(list(value))
        raise Refused(
            f"a list of images that contains a {type_name(value[pictures.index(False)])}; log only images in it"
        )
    if all(map(is_plotly_figure, value)):
        return _of_media([PlotlyFigure(figure) for figure in value])
    if all(issubclass(kind, Media) for kind in kinds):
        return _of_media(value)
    if all(issubclass(kind, Mapping) for kind in kinds):
        return Table(data=value)
    if all(issubclass(kind, str) for kind in kinds):
        return Table(["text"], [[text] for text in value])
    if all(issubclass(kind, list | tuple) for kind in kinds):
        return _of_rows(value)
    return _of_numbers(value)


def _is_surely_image(value: Any) -> bool:
    if issubclass(type(value), Image) or is_pil_image(value) or matplotlib_figure(value) is not None:
        return True
    return issubclass(type(value), bytes) and content_type_of(value) in IMAGE_TYPES


def _has_two_dimensions(value: Any) -> bool:
    return (is_tensor(value) or _is_numpy_array(value)) and len(value.shape) == 2


def _is_image(value: Any) -> bool:
    if _is_surely_image(value):
        return True
    if not (is_tensor(value) or _is_numpy_array(value)):
        return False
    shape = tuple(value.shape)
    return len(shape) == 3 and (shape[-1] in (1, 3, 4) or shape[0] in (1, 3, 4))


def _of_media(items: Sequence[Media]) -> Table | Parts:
    if all(isinstance(item, Text) for item in items):
        return Table(["text"], [[item.text] for item in items if isinstance(item, Text)])
    if len(items) > _MAX_PARTS:
        raise Refused(f"a list of {len(items)} items; log at most {_MAX_PARTS} at a time, or images, which form a grid")
    return Parts({str(number): item for number, item in enumerate(items)})


def _of_rows(rows: Sequence[Any]) -> Number | Histogram:
    import numpy as np

    try:
        values = np.asarray(rows)
    except ValueError:
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf" or not values.size:
        raise Refused("a list of lists that are not numbers of the same length; log a tensormeter.Table(data=rows)")
    return Histogram(values) if values.size > 1 else values.item()


def _of_numbers(values: Sequence[Any]) -> Number | Histogram:
    numbers: list[float | int] = []
    for value in values:
        try:
            number = classify(value)
        except Refused:
            raise Refused(_advice_on_items(values, value)) from None
        if isinstance(number, DeviceValue | Deferred):
            raise Refused("a list of values on a device; log torch.stack(values), or each under a separate name")
        numbers.append(number)
    return Histogram(numbers) if len(numbers) > 1 else numbers[0]


def _advice_on_items(values: Sequence[Any], refused: Any) -> str:
    """Return why a list is refused, given one of its items that is not a number."""
    if any(map(_has_two_dimensions, values)):
        return "a list of arrays; log tensormeter.Image(values) if they are images, or each under a separate name"
    others = [value for value in values if type(value) is not type(refused)]
    mixture = f" and a {type_name(others[0])}" if others else ""
    return (
        f"a list that contains a {type_name(refused)}{mixture}; log a list of only numbers, texts, images or mappings, or a "
        "tensormeter.Table"
    )


def _of_frame(value: Any) -> Number | Media | Histogram:
    """Return a frame as a table, a series of numbers as a distribution, and a series of one number as the number."""
    is_series = type(value).__name__ == "Series"
    if is_series and hasattr(value, "to_numpy"):
        values = value.to_numpy()
        if values.dtype.kind in "iuf" and values.size:
            return Histogram(values) if values.size > 1 else values.item()
    return Table(dataframe=value)


def _advice(value: Any) -> str:
    """Return the reason for a refusal, with what to log instead, or "" if nothing is known about the type."""
    name = type_name(value)
    if issubclass(type(value), Path):
        return "a path; log tensormeter.Image(path), Video(path), Audio(path) or Html(path), or its text with str(path)"
    if name.startswith("torch.") and hasattr(type(value), "state_dict"):
        return f"cannot record a {name}; use run.watch(model) for the norms and distributions of its parameters"
    if issubclass(type(value), complex):
        return "a complex number is not a single value; log its .real, .imag or abs()"
    if issubclass(type(value), set | frozenset | dict | deque | ValuesView | KeysView | ItemsView):
        return f"cannot record a {name}; log a list"
    if issubclass(type(value), timedelta):
        return f"cannot record a {name}; log its .total_seconds()"
    if hasattr(type(value), "__next__"):
        return f"cannot record a {name}, because reading it would use it up; log a list"
    return ""


def _is_numpy_array(value: object) -> bool:
    array_type = getattr(sys.modules.get("numpy"), "ndarray", None)
    return array_type is not None and issubclass(type(value), array_type)
