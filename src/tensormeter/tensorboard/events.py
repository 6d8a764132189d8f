"""Values of TensorBoard's events as tensormeter records them.

The messages are those of the package `tensorboard`, or of `tensorboardX`, whose classes differ but have the same fields. Nothing
here imports either package.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from tensormeter.record.media.audio import Audio
from tensormeter.record.media.image import Image
from tensormeter.record.media.text import Text
from tensormeter.record.media.video import Video
from tensormeter.record.warn_once import WarnOnce, describe, shown
from tensormeter.session.run import Run
from tensormeter.tensorboard.values import attempt, raw_curve, raw_histogram

__all__ = ["Logged", "record_event", "record_summary"]

_notices: Final = WarnOnce()

_TEXT_SUFFIX: Final = "/text_summary"
_HPARAMS_TAG: Final = "_hparams_/session_start_info"

_NUMBERS: Final = {1: "f", 2: "d", 3: "i", 4: "B", 5: "h", 6: "b", 9: "q"}
"""`struct` codes of TensorFlow's data types, for tensors that are stored as bytes."""

_FIELDS: Final = ("float_val", "double_val", "int_val", "int64_val", "bool_val", "uint32_val", "uint64_val")

_MOST_NUMBERS: Final = 1 << 20
"""Maximum number of elements of a tensor that is read."""

_LEFT_OUT: Final = {
    "graph_def": "the graph of a model",
    "meta_graph_def": "the graph of a model",
    "tagged_run_metadata": "the profile of a graph",
}

_PLUGINS_LEFT_OUT: Final = {"mesh": "3D meshes", "custom_scalars": "the layout of custom scalar charts"}


class Logged(NamedTuple):
    """One value for `Run.log`.

    Attributes:
        tag: Name.
        value: Number or media item.
    """

    tag: str
    value: Any


def record_event(run: Run, event: Any, prefix: str = "") -> None:
    """Record the values of an event. Never raises; a value that cannot be read causes one warning per tag.

    Args:
        run: Run to record the values in.
        event: Message `Event`. Its step is the step of the values.
        prefix: Prefix of the tags.
    """
    kind = event.WhichOneof("what")
    if kind == "summary":
        record_summary(run, event.summary, event.step, prefix)
    elif kind in _LEFT_OUT:
        _notices.once(kind, "an event of TensorBoard is not recorded: %s has no place in tensormeter", _LEFT_OUT[kind])


def record_summary(run: Run, summary: Any, step: int | Callable[[str], int], prefix: str = "") -> None:
    """Record the values of a message `Summary`. Never raises; a value that cannot be read causes one warning per tag.

    Args:
        run: Run to record the values in.
        summary: The message.
        step: Step of the values, or a function that returns the step of a tag.
        prefix: Prefix of the tags.
    """
    for value in summary.value:
        try:
            if value.tag == _HPARAMS_TAG:
                run.config.update(_hyperparameters(value.metadata.plugin_data.content))
                continue
            for logged in _read(value):
                at = step if isinstance(step, int) else step(logged.tag)
                run.log({prefix + logged.tag: logged.value}, at)
        except Exception as error:  # a message of another version may have any contents
            _notices.once(
                (run.id, value.tag),
                "the value of %s in an event of TensorBoard is not recorded: %s",
                shown(value.tag),
                describe(error),
            )


def _read(value: Any) -> Iterator[Logged]:
    match value.WhichOneof("value"):
        case "simple_value":
            yield Logged(value.tag, value.simple_value)
        case "image":
            yield Logged(value.tag, _picture(value.image.encoded_image_string))
        case "histo":
            histogram = value.histo
            limits, counts = list(histogram.bucket_limit), list(histogram.bucket)
            yield Logged(value.tag, attempt(raw_histogram, limits, counts, histogram.min))
        case "audio":
            yield Logged(value.tag, Audio(value.audio.encoded_audio_string))
        case "tensor":
            yield from _read_tensor(value)


def _read_tensor(value: Any) -> Iterator[Logged]:
    tensor = value.tensor
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    plugin = value.metadata.plugin_data.plugin_name
    if plugin in _PLUGINS_LEFT_OUT:
        _notices.once(
            plugin, "%s is not recorded: %s have no place in tensormeter", shown(value.tag), _PLUGINS_LEFT_OUT[plugin]
        )
    elif plugin == "text" or (not plugin and tensor.string_val):
        texts = [bytes(text).decode(errors="replace") for text in tensor.string_val]
        if texts:
            yield Logged(value.tag.removesuffix(_TEXT_SUFFIX), Text("\n\n".join(texts), markdown=True))
    elif plugin == "images":  # width, height, and the images
        for number, data in enumerate(tensor.string_val[2:]):
            yield Logged(value.tag if len(tensor.string_val) == 3 else f"{value.tag}/{number}", _picture(data))
    elif plugin == "pr_curves" and len(shape) == 2 and shape[0] == 6:
        numbers = _numbers_of(tensor)
        rows = [numbers[start : start + shape[1]] for start in range(0, 6 * shape[1], shape[1])]
        yield Logged(value.tag, attempt(raw_curve, value.tag, *map(_array, rows)))
    elif plugin == "histograms" and len(shape) == 2 and shape[1] == 3:  # left edge, right edge and count of each bucket
        numbers = _numbers_of(tensor)
        yield Logged(value.tag, attempt(raw_histogram, numbers[1::3], numbers[2::3], numbers[0] if numbers else 0.0))
    else:
        numbers = _numbers_of(tensor)
        yield Logged(value.tag, numbers[0] if len(numbers) == 1 else numbers)


def _picture(data: Any) -> Image | Video:
    data = bytes(data)
    return Video(data) if data.startswith(b"GIF") else Image(data)


def _array(numbers: list[float]) -> Any:
    import numpy as np

    return np.array(numbers, np.float64)


def _numbers_of(tensor: Any) -> list[float]:
    """Return the elements of a message `TensorProto`.

    Raises:
        ValueError: The tensor is too large, or does not contain numbers.
    """
    code = _NUMBERS.get(tensor.dtype)
    if tensor.tensor_content and code is not None:
        size = struct.calcsize(code)
        number = len(tensor.tensor_content) // size
        if number > _MOST_NUMBERS:
            raise ValueError(f"the tensor has {number} elements, but the limit is {_MOST_NUMBERS}")
        return list(struct.unpack(f"<{number}{code}", tensor.tensor_content[: number * size]))
    for field in _FIELDS:
        if numbers := getattr(tensor, field):
            if len(numbers) > _MOST_NUMBERS:
                raise ValueError(f"the tensor has {len(numbers)} elements, but the limit is {_MOST_NUMBERS}")
            return list(numbers)
    raise ValueError(f"it is a tensor of data type {tensor.dtype}, which is not a number")


def _hyperparameters(content: bytes) -> dict[str, Any]:
    try:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    except ImportError:
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    values = HParamsPluginData.FromString(content).session_start_info.hparams
    hyperparameters = {}
    for name, value in values.items():
        kind = value.WhichOneof("kind")
        if kind in ("number_value", "string_value", "bool_value"):
            stated = getattr(value, kind)
            is_whole = isinstance(stated, float) and stated.is_integer() and abs(stated) < 1 << 53
            hyperparameters[name] = int(stated) if is_whole else stated  # the message has no integers
    return hyperparameters
