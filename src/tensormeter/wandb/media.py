"""W&B's media classes. They take W&B's arguments, and are media items of `tensormeter`."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tensormeter
from tensormeter.record.media.figure import PlotlyFigure, is_plotly_figure
from tensormeter.record.media.image import matplotlib_figure
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.outcomes import Refused
from tensormeter.wandb.notices import warn_ignored

__all__ = [
    "Audio",
    "BoundingBoxes2D",
    "Classes",
    "Graph",
    "Histogram",
    "Html",
    "Image",
    "ImageMask",
    "Molecule",
    "Object3D",
    "Plotly",
    "Video",
]

_ORDERS: Final = {4: "TCHW", 5: "NTCHW"}
"""Orders of the dimensions of a video, and of several videos, by their number."""


class Image(tensormeter.Image):
    """An image (see `tensormeter.Image`)."""

    def __init__(
        self,
        data_or_path: Any,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Any = None,
        boxes: Any = None,
        masks: Any = None,
        file_type: str | None = None,
        normalize: bool = True,
    ) -> None:
        """
        Args:
            data_or_path: Array with the dimensions (height, width) or (height, width, channels), tensor with the dimensions
                (channels, height, width), PIL image, Matplotlib figure, path, or another `Image`. Floats from 0 to 1 are scaled
                to 0 to 255, as in W&B before 0.20; later versions show them as black.
            mode: Mode to which a PIL image is converted; ignored for others.
            caption: Text to show with the image.
            grouping: Ignored.
            classes: Ignored with a warning.
            boxes: Ignored with a warning.
            masks: Ignored with a warning.
            file_type: Ignored: arrays are recorded as PNG.
            normalize: Ignored.
        """
        if boxes or masks or classes:
            warn_ignored("wandb.Image(boxes=, masks=, classes=)", "draw them on the image before you log it")
        super().__init__(_image_data(data_or_path, mode), _caption_of(data_or_path, caption))
        self.caption = caption


def _caption_of(data: Any, caption: str | None) -> str | None:
    return data.caption if caption is None and isinstance(data, Image) else caption


def _image_data(data: Any, mode: str | None) -> Any:
    convert = getattr(data, "convert", None)
    if mode and convert is not None and hasattr(data, "getbands"):
        return convert(mode)
    if type(data).__module__.partition(".")[0] == "tensorflow" and hasattr(data, "numpy"):
        data = data.numpy()
    shape = getattr(data, "shape", ())
    if type(data).__module__ == "numpy" and len(shape) > 2 and 1 in shape:
        return data.squeeze()  # W&B does this, too
    return data


class Video(tensormeter.Video):
    """A video (see `tensormeter.Video`)."""

    def __init__(
        self, data_or_path: Any, caption: str | None = None, fps: int | None = None, format: str | None = None
    ) -> None:
        """
        Args:
            data_or_path: Array with the dimensions (frames, channels, height, width), or with one more before them for several
                videos; a path, or an open file.
            caption: Text to show with the video.
            fps: Frames per second of an array. Default: 4.
            format: Ignored: arrays become MP4 or, without PyAV, GIF.
        """
        order = _ORDERS.get(getattr(data_or_path, "ndim", 0))
        super().__init__(_read_open_file(data_or_path), fps or 4, caption, dataformats=order)
        self.caption = caption


class Audio(tensormeter.Audio):
    """An audio clip (see `tensormeter.Audio`)."""

    def __init__(self, data_or_path: Any, sample_rate: int | None = None, caption: str | None = None) -> None:
        """
        Args:
            data_or_path: Array with the dimensions (samples,) or (samples, channels), or a path.
            sample_rate: Samples per second; required for arrays.
            caption: Text to show with the clip.
        """
        super().__init__(_read_open_file(data_or_path), sample_rate, caption)
        self.caption = caption


class Html(tensormeter.Html):
    """An HTML document (see `tensormeter.Html`)."""

    def __init__(self, data: Any, inject: bool = True, data_is_not_path: bool = False) -> None:
        """
        Args:
            data: HTML text, a path, or an open file.
            inject: Ignored: the page adds no styles to the document.
            data_is_not_path: Whether a text is always HTML, even if it is the name of a file.
        """
        super().__init__(io.StringIO(data) if data_is_not_path and isinstance(data, str) else data)


class Histogram(tensormeter.Histogram):
    """A distribution (see `tensormeter.Histogram`)."""

    __slots__ = ()

    def __init__(self, sequence: Any = None, np_histogram: Any = None, num_bins: int = 64) -> None:
        """
        Args:
            sequence: Tensor, array or sequence of numbers.
            np_histogram: Result of `numpy.histogram`, instead of `sequence`.
            num_bins: Ignored: the buckets grow exponentially, at eight per power of two.
        """
        if isinstance(sequence, Iterator):
            sequence = list(sequence)
        elif sequence is not None and not hasattr(sequence, "__len__"):
            sequence = [sequence]
        super().__init__(_flat(sequence), np_histogram=np_histogram)


def _flat(sequence: Any) -> Any:
    """Return a list of tensors as one tensor. Others stay as they are, also tensors on several devices, which `log` refuses."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(sequence, list | tuple) or not sequence:
        return sequence
    if all(isinstance(item, torch.Tensor) for item in sequence):
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            return torch.cat([item.detach().reshape(-1) for item in sequence])
    return sequence


class Plotly(Media):
    """A chart of Plotly, or a Matplotlib figure, which becomes an image."""

    def __init__(self, val: Any) -> None:
        """
        Args:
            val: Figure of Plotly or Matplotlib.
        """
        self._item: Media | None = None
        if is_plotly_figure(val):
            self._item = PlotlyFigure(val)
        elif matplotlib_figure(val) is not None:
            self._item = tensormeter.Image(val)
        self._kind = type(val).__name__

    def pack(self) -> EventContent:
        if self._item is None:
            raise Refused(f"expected a figure of Plotly or Matplotlib, got a {self._kind}")
        return self._item.pack()


class _Unsupported(Media):
    """An item that cannot be recorded. Logging it is counted, with one warning per key."""

    _remedy = "log an image of it"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Accept any arguments."""

    @classmethod
    def from_file(cls, *arguments: Any, **named: Any) -> "_Unsupported":
        return cls()

    from_numpy = from_point_cloud = from_rdkit = from_smiles = from_file

    def pack(self) -> EventContent:
        raise Refused(f"a wandb.{type(self).__name__} is not supported; {self._remedy}")


class Object3D(_Unsupported):
    """A point cloud or a 3D object, which is not recorded."""


class Molecule(_Unsupported):
    """A molecule, which is not recorded."""


class Graph(_Unsupported):
    """A graph of a model, which is not recorded."""

    _remedy = "log a text, such as str(model)"


class Classes:
    """Names of the classes of masks and boxes, which are not recorded."""

    def __init__(self, class_set: Any = ()) -> None:
        self.class_set = list(class_set)


class BoundingBoxes2D:
    """Boxes on an image, which are not recorded."""

    def __init__(self, val: Any = None, key: str = "") -> None:
        self.val, self.key = val, key


class ImageMask:
    """A mask of an image, which is not recorded."""

    def __init__(self, val: Any = None, key: str = "") -> None:
        self.val, self.key = val, key


def _read_open_file(data: Any) -> Any:
    """Return the contents of an open file. Other data stays as it is."""
    if isinstance(data, str | Path) or not hasattr(data, "read"):
        return data
    if hasattr(data, "getvalue"):
        return data.getvalue()
    return data.read()
