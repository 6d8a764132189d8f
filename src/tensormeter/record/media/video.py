"""Videos from arrays of frames, files and encoded bytes."""

from typing import Any, Final

from tensormeter.conventions.limits import PIXEL_BYTES, too_large
from tensormeter.conventions.media_types import VIDEO_TYPES
from tensormeter.conventions.semconv import VIDEO_EVENT
from tensormeter.record.media.array_copy import copy_array, is_array, is_tensor
from tensormeter.record.media.clip import Clip
from tensormeter.record.media.image import check_pillow, is_pil_image
from tensormeter.record.media.pixels import arrange, describe_pixels
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

__all__ = ["Video"]

_FASTEST: Final = 240
_SLOWEST: Final = 0.01


class Video(Clip):
    """A video: ``run.log({"episode": Video(frames, fps=30)})``.

    The data is an MP4, WebM or GIF file, its bytes, or an array of frames. The agent encodes arrays as MP4 (H.264) if PyAV is
    installed (`tensormeter[video]`), and otherwise as GIF with Pillow (`tensormeter[media]`).

    Arrays have the dimensions (frames, height, width), (frames, height, width, channels) or (frames, channels, height, width). If
    they have five, the first counts videos, which are shown next to each other. Pixels are scaled like those of an `Image`.

    The limits are 16 MiB for the encoded video and 60 MiB for frames. A longer video is dropped and counted.
    """

    _EVENT, _NOUN, _ADVICE = VIDEO_EVENT, "the video", "log a shorter or smaller one, or uint8 frames"

    def __init__(self, data: Any, fps: float = 4, caption: str | None = "", *, dataformats: str | None = None) -> None:
        """
        Args:
            data: Array, tensor, list of frames, path or encoded bytes. The constructor copies the data.
            fps: Frames per second of an array.
            caption: Text to show with the video, truncated to 65,536 characters.
            dataformats: Order of an array's dimensions: the letters N (videos), T (frames), C (channels), H and W, for example
                "TCHW". Default: a guess, as for an `Image`.
        """
        super().__init__(data, caption, lambda data: self._read_video(data, fps, dataformats))

    def _read_video(self, data: Any, fps: float, dataformats: str | None) -> None:
        kind = type(data)
        if self._read_file(data, (*VIDEO_TYPES, "image/gif"), "expected an MP4, WebM or GIF file"):
            return
        fps = float(fps)
        if not _SLOWEST <= fps <= _FASTEST:
            raise Refused(f"fps: expected {_SLOWEST} to {_FASTEST} frames per second, got {fps:g}")
        if issubclass(kind, list | tuple):
            data = _stack(data)
        elif not is_array(data):
            raise Refused(f"expected an array of frames, a path or bytes, got a {kind.__name__}")
        check_pillow()
        array = copy_array(data, "video", Drop.MEDIA_TOO_LARGE)
        if array.ndim == 2:
            raise Refused(f"its shape is {array.shape}; expected (frames, height, width, channels)")
        if dataformats is None and array.ndim == 3:
            dataformats = "THW"
        frames = arrange(array, dataformats, channels_first=is_tensor(data), leading="NT")
        if frames.ndim == 5:
            videos, number, height, width, channels = frames.shape
            frames = frames.transpose(1, 2, 0, 3, 4).reshape(number, height, videos * width, channels)
        if frames.ndim == 3:
            frames = frames[None]
        pixels = describe_pixels(frames)
        if pixels.remark:
            self._remarks.append(pixels.remark)
        self._body |= {**pixels.body, "fps": fps}
        self._data = pixels.data


def _stack(frames: Any) -> Any:
    """Return a list of frames as an array."""
    import numpy as np

    arrays = []
    size = 0
    for frame in frames:
        shown = frame.convert("RGB") if is_pil_image(frame) else frame
        arrays.append(copy_array(shown, "video", Drop.MEDIA_TOO_LARGE))
        size += arrays[-1].nbytes
        if size > PIXEL_BYTES:
            raise Refused(
                too_large(size, PIXEL_BYTES, "the uncompressed video", "log a shorter one, or an encoded file"),
                Drop.MEDIA_TOO_LARGE,
            )
    if not arrays:
        raise Refused("it has no frames")
    if len({array.shape for array in arrays}) > 1:
        raise Refused("its frames have different shapes")
    return np.stack(arrays)
