"""Values of event files other than plain scalars: media, distributions, texts and tensors."""

from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tensormeter.conventions.media_types import content_type_of
from tensormeter.importers.bounded_parsing import parse_message
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.importers.tensorboard.messages import HParams, text_of

__all__ = ["EventValues", "numbers_of"]

_NUMBERS: Final = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
"""NumPy's types by TensorFlow's number of the data type."""
_HALF, _BFLOAT16 = 19, 14
_FIELDS: Final = ("float_val", "double_val", "int_val", "int64_val", "bool_val")
_CURVE: Final = ("true_positives", "false_positives", "true_negatives", "false_negatives", "precision", "recall")
_LARGEST: Final = 1.79e308
"""TensorFlow uses the largest double for buckets without a limit."""
_TEXT_SUFFIX: Final = "/text_summary"
_MOST_NUMBERS: Final = 1 << 20


class EventValues:
    """Converter of the values of one run. It passes on everything but scalars. Not thread-safe."""

    def __init__(self, requests: RunRequests, tally: Tally, label: str) -> None:
        """
        Args:
            requests: Receiver of the items.
            tally: Counts of the import.
            label: Name of the run, for messages.
        """
        self._requests = requests
        self._tally = tally
        self._label = label
        self._plugins: dict[str, str] = {}

    def add(self, value: Any, step: int, time: int) -> float | None:
        """Add a value of an event.

        Args:
            value: Message `messages.Value`.
            step: Step of the event.
            time: Time in nanoseconds since the Unix epoch.

        Returns:
            The number if the value is a scalar tensor; None otherwise.
        """
        tag = text_of(value.tag)
        if value.metadata.plugin_data.plugin_name and len(self._plugins) < 1 << 20:
            # Writers may leave out the metadata of all but the first value of a tag.
            self._plugins.setdefault(tag, text_of(value.metadata.plugin_data.plugin_name))
        plugin = self._plugins.get(tag, "")
        try:
            if plugin == "hparams":
                self._hparams(value.metadata.plugin_data.content, time)
            elif value.HasField("image"):
                image = value.image
                self._picture(tag, step, time, image.encoded_image_string, image.width, image.height)
            elif value.HasField("histo"):
                self._histogram(tag, step, time, value.histo)
            elif value.HasField("audio"):
                audio = value.audio
                self._audio(tag, step, time, audio.encoded_audio_string, round(audio.sample_rate))
            elif value.HasField("tensor"):
                return self._tensor(tag, plugin, step, time, value.tensor)
            else:
                self._tally.leave_out(f"values of the TensorBoard plugin {plugin or 'unknown'}")
        except (DecodeError, ValueError, OverflowError) as error:
            self._tally.leave_out("damaged values in event files")
            self._tally.report(f"{self._label}: left out {tag!r} at step {step}, {error}")
        return None

    def _tensor(self, tag: str, plugin: str, step: int, time: int, tensor: Any) -> float | None:
        shape = [dimension.size for dimension in tensor.tensor_shape.dim]
        texts = [bytes(text) for text in tensor.string_val]
        if plugin == "text" or (not plugin and texts):
            text = "\n\n".join(text.decode(errors="replace") for text in texts)
            key = tag.removesuffix(_TEXT_SUFFIX)
            self._requests.item("text", key, step, time, text=text, content_type="text/markdown")
        elif plugin == "images":  # width, height, and the images
            width, height = (int(text) if text.isdigit() else 0 for text in (*texts, b"", b"")[:2])
            for number, data in enumerate(texts[2:]):
                key = tag if len(texts) == 3 else f"{tag}/{number}"
                self._picture(key, step, time, data, width, height)
        elif plugin == "audio":
            clips = texts[::2] if len(shape) == 2 and shape[1] == 2 else texts  # a clip may have a label
            for number, data in enumerate(clips):
                self._audio(tag if len(clips) == 1 else f"{tag}/{number}", step, time, data, 0)
        elif plugin == "histograms" and len(shape) == 2 and shape[1] == 3:
            self._bucket_tensor(tag, step, time, numbers_of(tensor))
        elif plugin == "pr_curves" and len(shape) == 2 and shape[0] == len(_CURVE):
            self._curve(tag, step, time, numbers_of(tensor))
        elif plugin in ("", "scalars") and not texts:
            numbers = numbers_of(tensor)
            if len(numbers) == 1:
                return float(numbers[0])
            self._tally.leave_out("tensors with several numbers")
        else:
            self._tally.leave_out(f"values of the TensorBoard plugin {plugin or 'unknown'}")
        return None

    def _picture(self, key: str, step: int, time: int, data: bytes, width: int, height: int) -> None:
        content_type = content_type_of(data)
        if content_type is None or not content_type.startswith("image/"):
            self._tally.leave_out("images of unsupported formats")
            return
        kind = "video" if content_type == "image/gif" else "image"  # `add_video` writes animations as images
        self._requests.item(
            kind,  # type: ignore[arg-type]
            key,
            step,
            time,
            data=data,
            content_type=content_type,
            width=max(width, 0),
            height=max(height, 0),
        )

    def _audio(self, key: str, step: int, time: int, data: bytes, rate: int) -> None:
        content_type = content_type_of(data)
        if content_type is None or not content_type.startswith("audio/"):
            self._tally.leave_out("audio clips of unsupported formats")
            return
        self._requests.item("audio", key, step, time, data=data, content_type=content_type, sample_rate=max(rate, 0))

    def _histogram(self, tag: str, step: int, time: int, histogram: Any) -> None:
        """Add a histogram of the older form: the upper limits of the buckets, and their counts."""
        limits, counts = np.array(histogram.bucket_limit, float), np.array(histogram.bucket, float)
        if not len(limits) or len(limits) != len(counts):
            self._tally.leave_out("histograms without buckets")
            return
        limits = np.where(limits >= _LARGEST, np.inf, np.where(limits <= -_LARGEST, -np.inf, limits))
        if counts[0] == 0 and len(limits) > 1:
            edges, counts = limits, counts[1:]
        else:
            edges = np.concatenate(([histogram.min if histogram.min < limits[0] else -np.inf], limits))
        self._requests.histogram(
            tag, step, time, edges, counts, minimum=histogram.min, maximum=histogram.max, total=histogram.sum
        )

    def _bucket_tensor(self, tag: str, step: int, time: int, numbers: NDArray[Any]) -> None:
        """Add a histogram of the newer form: left edge, right edge and count of each bucket."""
        rows = numbers.astype(float).reshape(-1, 3)
        if not len(rows):
            self._tally.leave_out("histograms without buckets")
            return
        edges, counts = np.concatenate((rows[:1, 0], rows[:, 1])), rows[:, 2]
        if edges[0] == edges[-1]:  # all values are equal, so all buckets are empty intervals
            edges, counts = np.array([np.nextafter(edges[0], -np.inf), edges[0]]), counts.sum(keepdims=True)
        self._requests.histogram(tag, step, time, edges, counts)

    def _curve(self, tag: str, step: int, time: int, numbers: NDArray[Any]) -> None:
        curve = numbers.astype(float).reshape(len(_CURVE), -1)
        rows = np.vstack([np.linspace(0, 1, curve.shape[1]), curve]).T
        self._requests.item(
            "table",
            tag,
            step,
            time,
            chart={"kind": "pr_curve", "x": "recall", "y": "precision", "title": tag},
            columns=["threshold", *_CURVE],
            rows=rows.tolist(),
        )

    def _hparams(self, content: bytes, time: int) -> None:
        """Add hyperparameters to the configuration of the run."""
        message = parse_message(HParams, content)
        values: dict[str, Any] = {}
        for entry in message.session_start_info.hparams:
            fields = entry.value.ListFields()  # Protobuf's well-known `Value`, of which at most one field is set
            if fields:
                value = fields[0][1]
                values[text_of(entry.key)] = text_of(value) if isinstance(value, bytes) else value
        if values:
            self._requests.config(values, time)


def numbers_of(tensor: Any) -> NDArray[Any]:
    """Return the elements of a tensor, as a flat array.

    Raises:
        ValueError: The tensor is too large, or does not contain numbers.
    """
    kind = _NUMBERS.get(tensor.dtype)
    count = 1
    for dimension in tensor.tensor_shape.dim:
        count *= max(dimension.size, 0)
    if count > _MOST_NUMBERS or len(tensor.tensor_content) > 8 * _MOST_NUMBERS:
        raise ValueError(f"its tensor is too large; the limit is {_MOST_NUMBERS:,} numbers")
    if kind is not None and tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, kind)
    if tensor.half_val and tensor.dtype in (_HALF, _BFLOAT16):
        bits = np.array(tensor.half_val).astype(np.uint16)
        return bits.view(np.float16) if tensor.dtype == _HALF else _from_bfloat16(bits)
    if tensor.dtype == _BFLOAT16 and tensor.tensor_content:
        return _from_bfloat16(np.frombuffer(tensor.tensor_content, "<u2"))
    for field in _FIELDS:
        if numbers := getattr(tensor, field):
            values = np.array(numbers)
            # A tensor whose elements are all equal may have only one of them.
            return np.repeat(values, count) if len(values) == 1 < count else values
    if kind is not None and not tensor.half_val:
        return np.zeros(count, kind)
    raise ValueError(f"its tensor has the data type {tensor.dtype}, which is not a number")


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)
