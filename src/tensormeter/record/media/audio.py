"""Audio clips from arrays, files and encoded bytes."""

from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.media_types import AUDIO_TYPES
from tensormeter.conventions.semconv import AUDIO_EVENT
from tensormeter.record.media.array_copy import copy_array, is_array
from tensormeter.record.media.clip import Clip
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Audio"]

_MAX_CHANNELS: Final = 16
_MAX_RATE: Final = 1 << 20


class Audio(Clip):
    """An audio clip: ``run.log({"speech": Audio(samples, sample_rate=16_000)})``.

    The data is a WAV, MP3, OGG or FLAC file, its bytes, or an array of samples, which the agent converts to a WAV with 16 bits per
    sample. An array has the shape (samples,), (samples, channels) or (channels, samples). Its elements are floats from -1 to 1,
    or integers in the range of their type. If signed integers of 32 or 64 bits all fit into 16 (or 32) bits, they are in that range.

    The limits are 16 MiB for the encoded clip and 60 MiB for samples. A longer clip is dropped and counted.
    """

    _EVENT, _NOUN, _ADVICE = AUDIO_EVENT, "the audio clip", "log a shorter one, or an MP3"

    def __init__(self, data: Any, sample_rate: int | None = None, caption: str | None = "") -> None:
        """
        Args:
            data: Array, tensor, path or encoded bytes. The constructor copies the data.
            sample_rate: Samples per second; required for arrays.
            caption: Text to show with the clip, truncated to 65,536 characters.
        """
        super().__init__(data, caption, lambda data: self._read_audio(data, sample_rate))

    def _read_audio(self, data: Any, sample_rate: Any) -> None:
        kind = type(data)
        if self._read_file(data, AUDIO_TYPES, "expected a WAV, MP3, OGG or FLAC file"):
            self._body["sample_rate"] = _rate(sample_rate) if sample_rate else 0
            return
        if not is_array(data) and not issubclass(kind, list | tuple):
            raise Refused(f"expected an array of samples, a path or bytes, got a {kind.__name__}")
        if sample_rate is None:
            raise Refused("the sample rate is missing; pass sample_rate=, for example 16_000")
        rate = _rate(sample_rate)
        samples = copy_array(data, "audio", Drop.MEDIA_TOO_LARGE)
        if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
            samples = samples.T
        if samples.ndim == 1:
            samples = samples[:, None]
        if samples.ndim != 2 or not samples.size or samples.shape[1] > _MAX_CHANNELS:
            raise Refused(f"expected samples of shape (n,), (n, channels) or (channels, n), got {samples.shape}")
        if samples.dtype.kind == "f" and abs(samples).max() > 1:
            self._remarks.append("samples beyond -1 and 1 were clipped; scale the clip, or pass integers")
        samples = _narrow(samples)
        self._data = samples.tobytes()
        self._body |= {"shape": list(samples.shape), "dtype": str(samples.dtype), "sample_rate": rate}


def _narrow(samples: "NDArray[Any]") -> "NDArray[Any]":
    """Return signed integers in the narrowest type that holds all of them and has at least 16 bits.

    Samples of 16 bits are often held in wider integers. In the range of such a type, they would be silent.
    """
    import numpy as np

    if samples.dtype.kind == "i" and samples.dtype.itemsize > np.dtype(np.int16).itemsize:
        lowest, highest = samples.min(), samples.max()
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return samples.astype(dtype)
    return samples


def _rate(sample_rate: Any) -> int:
    rate = int(sample_rate)
    if not 0 < rate <= _MAX_RATE:
        raise Refused(f"sample_rate: expected 1 to {_MAX_RATE:,} samples per second, got {rate}")
    return rate
