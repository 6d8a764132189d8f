"""The order of an image's dimensions, and the range of values that its pixels stand for.

The agent converts pixels to bytes. Here, log calls only copy them and find their range.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.record.values.outcomes import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHANNELS", "Pixels", "arrange", "describe_pixels"]

CHANNELS: Final = (1, 2, 3, 4)
"""Valid numbers of channels: gray, gray with alpha, RGB, and RGB with alpha."""

_GUESSED_CHANNELS: Final = (1, 3, 4)
_TOLERANCE: Final = 1e-3
"""Distance from 0 and 1 up to which a float still belongs to the range from 0 to 1, for example after interpolation."""
_BRIGHT: Final = 2
"""Maximum above which floats are assumed to be in the range from 0 to 255, rather than slightly above 1."""


class Pixels(NamedTuple):
    """The elements of one or more images.

    Attributes:
        body: The `shape` and `dtype` of the elements and, if they have to be scaled, their `span`: the values of black and
            white. With an alpha channel, `alpha_span` has the values of transparent and opaque.
        data: The elements, in the order of their dimensions.
        remark: Sentence about a scaling that may surprise, or "".
    """

    body: dict[str, Any]
    data: bytes
    remark: str


def arrange(
    array: "NDArray[Any]", dataformats: str | None, *, channels_first: bool, leading: str = "N"
) -> "NDArray[Any]":
    """Return a view of an array with the dimensions height, width and channels, preceded by `leading` if it has more.

    Args:
        array: Array with 2 to 4 dimensions or, with two `leading` letters, up to 5.
        dataformats: Letters for the dimensions, such as "CHW" or "NHWC". None guesses.
        channels_first: Whether to prefer channels before height and width if the shape permits both.
        leading: Letters for the dimensions before height and width, outermost first.

    Raises:
        Refused: The array is empty, or its shape does not fit.
    """
    import numpy as np

    shape = array.shape
    if dataformats is None:
        dataformats = _guess(shape, leading, channels_first=channels_first)
    letters = str(dataformats).upper()
    if len(letters) != array.ndim or len(set(letters)) != len(letters) or not {"H", "W"} <= set(letters):
        raise Refused(
            f"dataformats={dataformats!r} does not fit the shape {shape}; use one letter for each dimension, such as HWC"
        )
    if not set(letters) <= {*leading, "C", "H", "W"}:
        raise Refused(f"dataformats={dataformats!r}: expected the letters {', '.join([*leading, 'C', 'H', 'W'])}")
    if 0 in shape:
        raise Refused(f"it is empty: its shape is {shape}")
    order = [letter for letter in f"{leading}HWC" if letter in letters]
    array = array.transpose([letters.index(letter) for letter in order])
    if "C" not in letters:
        array = array[..., np.newaxis]
    if array.shape[-1] not in CHANNELS:
        raise Refused(
            f"its shape is {shape}, so it has {array.shape[-1]} channels; expected 1 (gray), 2 (gray, alpha), 3 (RGB) or "
            "4 (RGB, alpha), or pass dataformats= with the order of its dimensions"
        )
    return array


def _guess(shape: tuple[int, ...], leading: str, *, channels_first: bool) -> str:
    fewest, most = 2, len(leading) + 3
    if not fewest <= len(shape) <= most:
        raise Refused(f"its shape is {shape}; expected 2 to {most} dimensions, such as (height, width, 3)")
    if len(shape) == fewest:
        return "HW"
    before = leading[len(leading) - (len(shape) - 3) :]
    first, last = shape[-3] in _GUESSED_CHANNELS, shape[-1] in _GUESSED_CHANNELS
    is_only_choice = shape[-3] in CHANNELS and shape[-1] not in CHANNELS
    if is_only_choice or (first and (channels_first or not last)):
        return f"{before}CHW"
    return f"{before}HWC"


def describe_pixels(array: "NDArray[Any]", *, sixteen_bits: bool = False) -> Pixels:
    """Describe the pixels of an array with the dimensions (..., height, width, channels).

    Args:
        array: Result of `arrange`.
        sixteen_bits: Whether the values are in the range from 0 to 65,535 by definition.
    """
    import numpy as np

    if array.dtype.kind in "iu" and array.shape[-1] % 2 and not sixteen_bits and _extremes(array) == (0, 1):
        array = array.astype(np.bool_)  # a mask
    body: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    remark = ""
    if array.dtype not in (np.uint8, np.bool_):
        colors, alpha = array, None
        if array.shape[-1] % 2 == 0:
            colors, alpha = array[..., :-1], array[..., -1]
        body["span"], remark = ([0, 65535], "") if sixteen_bits else _span(colors)
        if alpha is not None:
            highest = _extremes(alpha)[1]
            body["alpha_span"] = [0, 65535 if body["span"][1] == 65535 else 1 if highest <= 1 else 255]
    return Pixels(body, array.tobytes(), remark)


def _span(values: "NDArray[Any]") -> tuple[list[float], str]:
    import numpy as np

    low, high = _extremes(values)
    if values.dtype.kind == "f":
        if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
            return [0, 1], ""
        if low >= 0 and _BRIGHT < high <= 255:
            return [0, 255], ""
    elif low >= 0 and high <= 255:
        return [0, 255], ""
    elif values.dtype == np.uint16:
        return [0, 65535], ""
    if low == high:
        high = low + 1
    kind = "0 to 1 or 0 to 255" if values.dtype.kind == "f" else "0 to 255"
    return [low, high], (
        f"the values from {low:g} to {high:g} were scaled to black and white, because they are not within {kind}; scale them "
        "before logging if you want the same scale in all steps"
    )


def _extremes(values: "NDArray[Any]") -> tuple[float, float]:
    """Return the smallest and the largest finite value, or 0 and 1 if there is none."""
    import numpy as np

    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = values[np.isfinite(values)]
        if not finite.size:
            return 0.0, 1.0
        low, high = finite.min(), finite.max()
    return float(low), float(high)
