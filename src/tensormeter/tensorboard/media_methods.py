"""The methods of `SummaryWriter` that record distributions, images, videos, audio clips and curves."""

from typing import Any

from tensormeter.record.media.array_copy import is_array
from tensormeter.tensorboard.values import (
    attempt,
    audio_of,
    curve_of,
    figure_of,
    histogram_of,
    image_of,
    image_with_boxes,
    raw_curve,
    raw_histogram,
    video_of,
)

__all__ = ["MediaMethods"]


class MediaMethods:
    """The methods of `SummaryWriter` for values other than numbers and texts.

    In all of them, `tag` is the value's name, and `global_step` its step. By default, this is one more than the last step of the tag.
    The argument `walltime` is ignored.
    """

    def _write(self, tag: Any, value: Any, step: Any) -> None:
        raise NotImplementedError

    def add_tensor(self, tag: Any, tensor: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Record the distribution of a tensor's elements, or its only element as a number. Its shape is not kept."""
        if is_array(tensor) and tuple(tensor.shape) not in ((), (1,)):
            tensor = attempt(histogram_of, tensor, "tensorflow", None)
        self._write(tag, tensor, global_step)

    def add_histogram(
        self,
        tag: Any,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Record the distribution of values, which are counted where they are stored.

        Args:
            values: Array, tensor, sequence or number.
            bins: "tensorflow" for exponential buckets, or bins for `numpy.histogram`. Tensors on a device always have exponential
                buckets.
            max_bins: Number of bins from `numpy.histogram` above which neighbours are merged.
        """
        self._write(tag, attempt(histogram_of, values, bins, max_bins), global_step)

    def add_histogram_raw(
        self,
        tag: Any,
        min: Any,
        max: Any,
        num: Any,
        sum: Any,
        sum_squares: Any,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Record a distribution from the upper limits of its buckets and their counts.

        The arguments `max`, `sum` and `sum_squares` are not kept.
        """
        self._write(tag, attempt(raw_histogram, bucket_limits, bucket_counts, min), global_step)

    def add_image(
        self,
        tag: Any,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Record an image.

        Args:
            img_tensor: Array or tensor of floats from 0 to 1, or of uint8.
            dataformats: Order of the dimensions.
        """
        self._write(tag, attempt(image_of, img_tensor, dataformats), global_step)

    def add_images(
        self,
        tag: Any,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Record several images of one size, at most 256, which are shown as a grid. See `add_image` for the arguments."""
        self._write(tag, attempt(image_of, img_tensor, dataformats), global_step)

    def add_image_with_boxes(
        self,
        tag: Any,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: Any = None,
    ) -> None:
        """Record an image with rectangles.

        Args:
            img_tensor: Array or tensor, as for `add_image`.
            box_tensor: Array or tensor of shape (boxes, 4) with the columns xmin, ymin, xmax and ymax in pixels.
            rescale: Factor for the size of the image.
            dataformats: Order of the dimensions.
            labels: Text for each box.
        """
        names = [labels] if isinstance(labels, str) else labels
        image = attempt(image_with_boxes, img_tensor, box_tensor, dataformats, rescale, names)
        self._write(tag, image, global_step)

    def add_figure(
        self, tag: Any, figure: Any, global_step: Any = None, close: bool = True, walltime: float | None = None
    ) -> None:
        """Record a Matplotlib figure, or a list of figures as a grid. Blocks while Matplotlib draws.

        Args:
            figure: Figure, or list of figures.
            close: Whether to close the figures afterwards.
        """
        self._write(tag, attempt(lambda: figure_of(figure, close=close)), global_step)

    def add_video(
        self, tag: Any, vid_tensor: Any, global_step: Any = None, fps: float = 4, walltime: float | None = None
    ) -> None:
        """Record a video. Several videos are shown next to each other.

        Args:
            vid_tensor: Array or tensor of shape (videos, frames, channels, height, width), of floats from 0 to 1 or of uint8.
            fps: Frames per second.
        """
        self._write(tag, attempt(video_of, vid_tensor, fps), global_step)

    def add_audio(
        self,
        tag: Any,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Record an audio clip.

        Args:
            snd_tensor: Array or tensor of shape (1, samples) or (samples,), with values from -1 to 1.
            sample_rate: Samples per second.
        """
        self._write(tag, attempt(audio_of, snd_tensor, sample_rate), global_step)

    def add_pr_curve(
        self,
        tag: Any,
        labels: Any,
        predictions: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Record a precision-recall curve as a table with its chart.

        Args:
            labels: Array or tensor of true labels: 0 and 1, or booleans.
            predictions: Array or tensor of probabilities.
            num_thresholds: Number of thresholds, at most 127.
            weights: Array or tensor of the weights of the examples, or a number.
        """
        self._write(tag, attempt(curve_of, tag, labels, predictions, num_thresholds, weights), global_step)

    def add_pr_curve_raw(
        self,
        tag: Any,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Record a precision-recall curve from its rows, one value for each threshold, as a table with its chart."""
        rows = (
            true_positive_counts,
            false_positive_counts,
            true_negative_counts,
            false_negative_counts,
            precision,
            recall,
        )
        self._write(tag, attempt(raw_curve, tag, *rows), global_step)
