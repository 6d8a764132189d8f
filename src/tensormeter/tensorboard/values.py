"""Values as tensormeter records them, from the arguments of `SummaryWriter`: scaled, ordered and counted as torch does it.

Nothing here waits for a device. Tensors on a device are scaled there, and media are made of them once copies have arrived.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.limits import TABLE_IMAGES
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.record.media.array_copy import copy_array, is_array, is_tensor
from tensormeter.record.media.arriving import ArrivingMedia, is_on_device
from tensormeter.record.media.audio import Audio
from tensormeter.record.media.image import Image, matplotlib_figure
from tensormeter.record.media.item import EventContent, Media, refusal_of
from tensormeter.record.media.pixels import arrange
from tensormeter.record.media.table import Table
from tensormeter.record.media.video import Video
from tensormeter.record.values.outcomes import Refused
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "attempt",
    "audio_of",
    "curve_of",
    "figure_of",
    "histogram_of",
    "image_of",
    "image_with_boxes",
    "raw_curve",
    "raw_histogram",
    "video_of",
]

_notices: Final = WarnOnce()

_MOST_THRESHOLDS: Final = 127
_LEAST_COUNT: Final = 1e-7
"""Denominator that TensorBoard uses if there are no positives."""

_CURVE: Final = ("true_positives", "false_positives", "true_negatives", "false_negatives", "precision", "recall")


class _Unrecordable(Media):
    """A value that cannot be recorded. The log call counts it, and warns with its name."""

    def __init__(self, refusal: Refused) -> None:
        self._refusal = refusal

    def pack(self) -> EventContent:
        raise self._refusal


class _Made(ArrivingMedia):
    """A media item that is made of arrays and tensors once all of them are on the host."""

    def __init__(self, make: Callable[..., Media], *data: Any) -> None:
        """
        Args:
            make: Function that receives the data and returns the item. It may raise anything.
            data: Arrays, tensors, or None.
        """
        self._item: Media | None = None
        self._refusal: Refused | None = None
        self._begin(list(data), lambda arrays: self._make(make, arrays))

    def _make(self, make: Callable[..., Media], data: Sequence[Any]) -> None:
        self._item = make(*data)

    def _fail(self, refusal: Refused) -> None:
        self._refusal = refusal

    def pack(self) -> EventContent:
        self._check_arrival()
        if self._item is None:
            raise self._refusal or Refused("it has no data")
        return self._item.pack()


def attempt(make: Callable[..., Any], *arguments: Any) -> Any:
    """Return a value, or an item that `log` counts as lost if the function raises. Never raises."""
    try:
        return make(*arguments)
    except Exception as error:  # the data's own code may raise anything
        return _Unrecordable(refusal_of(error))


def image_of(image: Any, dataformats: str) -> Image:
    """Return an image, or images as a grid, up to `TABLE_IMAGES` of them.

    Args:
        image: Array or tensor of floats from 0 to 1, or of uint8. Paths, PIL images and encoded images are also accepted.
        dataformats: Order of the dimensions, such as "CHW" or "NHWC".
    """
    if not is_array(image) or is_pil(image):
        return Image(image)
    axis = str(dataformats).upper().find("N")
    if 0 <= axis < len(image.shape) and image.shape[axis] > TABLE_IMAGES:
        _notices.once(
            "images",
            "SummaryWriter: only the first %d of %d images are recorded; log fewer at a time",
            *(TABLE_IMAGES, image.shape[axis]),
        )
        image = image[(slice(None),) * axis + (slice(TABLE_IMAGES),)]
    return Image(_pixels(image), dataformats=dataformats)


def is_pil(image: Any) -> bool:
    return type(image).__module__.startswith("PIL.")


def image_with_boxes(image: Any, boxes: Any, dataformats: str, rescale: float, labels: Sequence[str] | None) -> Media:
    """Return an image with red rectangles.

    Args:
        image: Array or tensor, as for `image_of`.
        boxes: Array or tensor of shape (boxes, 4) with the columns xmin, ymin, xmax and ymax in pixels.
        dataformats: Order of the dimensions.
        rescale: Factor for the size of the image.
        labels: Text for each box.
    """

    def draw(image: Any, boxes: Any) -> Image:
        import PIL.Image

        pixels = arrange(copy_array(image, "image", Drop.IMAGE_TOO_LARGE), dataformats, channels_first=True)
        pixels = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
        picture = PIL.Image.fromarray(pixels)
        _draw_boxes(picture, copy_array(boxes, "image", Drop.IMAGE_TOO_LARGE), labels)
        if rescale != 1:
            size = (int(picture.width * rescale), int(picture.height * rescale))
            picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
        return Image(picture)

    return _Made(draw, _pixels(image), boxes)


def _draw_boxes(picture: Any, boxes: "NDArray[Any]", labels: Sequence[str] | None) -> None:
    from PIL import ImageDraw, ImageFont

    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default()
    if labels is not None and len(labels) != len(boxes):
        labels = None
    for index, (left, top, right, bottom) in enumerate(boxes.reshape(-1, 4).tolist()):
        canvas.line([(left, top), (left, bottom), (right, bottom), (right, top), (left, top)], fill="Red", width=2)
        if labels is not None and labels[index]:
            start, upper, end, lower = font.getbbox(str(labels[index]))
            width, height = end - start, lower - upper
            margin = math.ceil(0.05 * height)
            corner = (left, bottom - height - 2 * margin)
            canvas.rectangle([corner, (left + width, bottom)], fill="Red")
            canvas.text((left + margin, corner[1] + margin), str(labels[index]), fill="black", font=font)


def figure_of(figure: Any, *, close: bool) -> Image:
    """Return the picture of a Matplotlib figure, or of a list of figures as a grid. Blocks while Matplotlib draws.

    Args:
        figure: Figure, or list of figures.
        close: Whether to close the figures in pyplot afterwards.
    """
    figures = list(figure) if isinstance(figure, list | tuple) else [figure]
    picture = Image(figures if isinstance(figure, list | tuple) else figure)
    if close:
        import matplotlib.pyplot as plt

        for item in figures:
            if (drawn := matplotlib_figure(item)) is not None:
                plt.close(drawn)
    return picture


def video_of(frames: Any, fps: float) -> Video:
    """Return a video. Several videos are shown next to each other.

    Args:
        frames: Array or tensor of shape (videos, frames, channels, height, width), or without the first dimension. The values
            are floats from 0 to 1, or uint8.
        fps: Frames per second.
    """
    if not is_array(frames):
        return Video(frames, fps=fps)
    return Video(_pixels(frames), fps=fps, dataformats="TCHW" if len(frames.shape) == 4 else "NTCHW")


def audio_of(samples: Any, sample_rate: int) -> Audio:
    """Return an audio clip.

    Args:
        samples: Array or tensor of shape (1, samples) or (samples,), with values from -1 to 1.
        sample_rate: Samples per second.
    """
    if is_array(samples) and len(samples.shape) > 2:
        samples = samples.squeeze()
    return Audio(samples, sample_rate=sample_rate)


def _pixels(image: Any) -> Any:
    """Return pixels as uint8 where they are stored, from floats (or other numbers) between 0 and 1, as torch scales them."""
    if is_tensor(image):
        import torch

        if image.dtype is torch.uint8:
            return image
        return (image.detach().to(torch.float32) * 255).clamp(0, 255).to(torch.uint8)
    import numpy as np

    array = np.asarray(image)
    if array.dtype == np.uint8:
        return array
    with np.errstate(invalid="ignore"):
        return (array.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)


def histogram_of(values: Any, bins: Any, max_bins: int | None) -> Histogram:
    """Return the distribution of values.

    Args:
        values: Array, tensor, sequence or number.
        bins: "tensorflow" for the exponential buckets of `Histogram`, which do not depend on the values. Anything else is
            passed to `numpy.histogram`, except for tensors on a device.
        max_bins: Number of bins from `numpy.histogram` above which neighbours are merged, as torch merges them.
    """
    if isinstance(values, int | float) or getattr(values, "shape", None) == ():
        values = values.reshape(1) if is_array(values) else [values]
    if (isinstance(bins, str) and bins == "tensorflow") or is_on_device(values):
        return Histogram(values)
    import numpy as np

    counts, edges = np.histogram(copy_array(values, "histogram", Drop.UNSUPPORTED_VALUE).reshape(-1), bins=bins)
    if max_bins is not None and len(counts) > max_bins:
        width = len(counts) // max_bins
        starts = np.arange(0, len(counts), width)
        counts, edges = np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])
    return Histogram(np_histogram=(counts, edges))


def raw_histogram(limits: Any, counts: Any, lowest: float) -> Histogram:
    """Return a distribution from the upper limits of its buckets.

    Args:
        limits: Upper limits.
        counts: Number of values in each bucket.
        lowest: Smallest value. It is the lower limit of the first bucket, unless this bucket is empty.

    Raises:
        ValueError: There are not as many limits as counts.
    """
    import numpy as np

    limits = np.asarray(limits, np.float64).reshape(-1)
    counts = np.asarray(counts, np.float64).reshape(-1)
    if len(limits) != len(counts):
        raise ValueError(f"there are {len(limits)} limits of buckets for {len(counts)} counts; pass as many")
    if len(counts) > 1 and counts[0] == 0:
        counts, edges = counts[1:], limits
    else:
        below = np.nextafter(limits[0], -np.inf)
        edges = np.concatenate([[min(float(below), float(lowest))], limits])  # `lowest` may be NaN
    is_wide = np.diff(edges) > 0  # repeated limits have no values between them
    return Histogram(np_histogram=(counts[is_wide], np.append(edges[:-1][is_wide], edges[-1])))


def curve_of(tag: str, labels: Any, predictions: Any, num_thresholds: int, weights: Any) -> Media:
    """Return a precision-recall curve as a table with its chart.

    Args:
        tag: Title of the chart.
        labels: Array or tensor of true labels: 0 and 1, or booleans.
        predictions: Array or tensor of probabilities.
        num_thresholds: Number of thresholds, at most 127.
        weights: Array or tensor of the weights of the examples, a number, or None.
    """

    def count(labels: Any, predictions: Any, weights: Any) -> Table:
        return _curve_table(tag, _count_curve(labels, predictions, min(num_thresholds, _MOST_THRESHOLDS), weights))

    return _Made(count, labels, predictions, weights)


def raw_curve(tag: str, *rows: Any) -> Media:
    """Return a precision-recall curve as a table with its chart.

    Args:
        tag: Title of the chart.
        rows: Arrays or tensors of the true positives, false positives, true negatives, false negatives, precisions and recalls,
            each by threshold.
    """

    def stack(*rows: Any) -> Table:
        import numpy as np

        return _curve_table(tag, np.stack([_numbers(row) for row in rows]))

    return _Made(stack, *rows)


def _numbers(values: Any) -> "NDArray[Any]":
    import numpy as np

    return copy_array(values, "curve", Drop.TABLE_TOO_LARGE).astype(np.float64).reshape(-1)


def _count_curve(labels: Any, predictions: Any, thresholds: int, weights: Any) -> "NDArray[Any]":
    """Return the rows of `_CURVE`, by threshold. The formulas are those of `torch.utils.tensorboard.summary.compute_curve`."""
    import numpy as np

    truth = _numbers(labels)
    weight = 1.0 if weights is None else _numbers(weights)
    buckets = np.floor(_numbers(predictions) * (thresholds - 1)).astype(np.int32)
    span = (0, thresholds - 1)
    positives, _ = np.histogram(buckets, bins=thresholds, range=span, weights=truth * weight)
    negatives, _ = np.histogram(buckets, bins=thresholds, range=span, weights=(1 - truth) * weight)
    true_positives, false_positives = positives[::-1].cumsum()[::-1], negatives[::-1].cumsum()[::-1]
    true_negatives, false_negatives = false_positives[0] - false_positives, true_positives[0] - true_positives
    precision = true_positives / np.maximum(_LEAST_COUNT, true_positives + false_positives)
    recall = true_positives / np.maximum(_LEAST_COUNT, true_positives + false_negatives)
    return np.stack([true_positives, false_positives, true_negatives, false_negatives, precision, recall])


def _curve_table(tag: str, rows: "NDArray[Any]") -> Table:
    import numpy as np

    thresholds = np.linspace(0, 1, rows.shape[1])
    return Table(
        ["threshold", *_CURVE],
        np.vstack([thresholds, rows]).T,
        chart={"kind": "pr_curve", "x": "recall", "y": "precision", "title": tag},
    )
