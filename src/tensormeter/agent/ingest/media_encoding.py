"""Encoding of pixels, frames and samples, which training processes log as arrays."""

import io
import wave
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode_audio", "encode_image", "encode_video", "image_size"]

_NAN_COLOR: Final = (255, 0, 255)
"""Color of pixels with NaN: magenta."""

_VIDEO_CODEC: Final = "libx264"
_COLORS: Final = 256
_MAX_GIF_FPS: Final = 50
_ROWS_AT_ONCE: Final = 1 << 20
"""Number of elements that are scaled at once, so that the copy as float64 stays small."""


def image_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of an encoded image; 0 if they are unknown."""
    try:
        import PIL.Image

        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # Pillow is missing, or cannot read the image
        return 0, 0


def encode_image(body: Mapping[str, Any], data: bytes) -> bytes:
    """Encode pixels as PNG. Gray images with 16 bits keep them."""
    import PIL.Image

    array = np.frombuffer(data, body["dtype"]).reshape(body["shape"])
    if array.dtype == np.uint16 and array.shape[-1] == 1 and body["span"] == [0, 65535]:
        pixels: NDArray[Any] = array
    else:
        pixels = _to_bytes(array, body)
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=3)
    return encoded.getvalue()


def encode_video(body: Mapping[str, Any], data: bytes) -> tuple[str, bytes]:
    """Encode frames as MP4 with PyAV if it is installed and has an encoder, and otherwise as GIF.

    Returns:
        Content type and bytes.
    """
    frames = np.frombuffer(data, body["dtype"]).reshape(body["shape"])
    try:
        import av
    except ImportError:
        return "image/gif", _encode_gif(frames, body)
    if _VIDEO_CODEC not in av.codecs_available:
        return "image/gif", _encode_gif(frames, body)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(_VIDEO_CODEC, rate=_rate(body["fps"]))
        height, width = frames.shape[1:3]
        # The color format needs even sizes. The last row or column is repeated.
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for frame in frames:
            rgb = _rgb(_to_bytes(frame, body))
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
        container.mux(stream.encode())
    return "video/mp4", file.getvalue()


def encode_audio(body: Mapping[str, Any], data: bytes) -> bytes:
    """Encode samples as WAV with 16 bits per sample."""
    samples = np.frombuffer(data, body["dtype"]).reshape(body["shape"])
    if samples.dtype.kind == "f":
        values = np.nan_to_num(samples.astype(np.float64), nan=0, posinf=1, neginf=-1)
        samples = np.round(np.clip(values, -1, 1) * 32767)
    elif samples.dtype == np.uint8:
        samples = (samples.astype(np.int16) - 128) << 8
    elif samples.dtype.itemsize > 2:
        info = np.iinfo(samples.dtype)
        samples = np.round(samples.astype(np.float64) / max(-float(info.min), info.max) * 32767)
    elif samples.dtype.kind in "ub":
        samples = samples.astype(np.int32) * (65535 if samples.dtype.kind == "b" else 1) - 32768
    elif samples.dtype == np.int8:
        samples = samples.astype(np.int16) << 8
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(samples.shape[1])
        clip.setsampwidth(2)
        clip.setframerate(body["sample_rate"])
        clip.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def _rate(fps: float) -> Any:
    from fractions import Fraction

    return Fraction(fps).limit_denominator(1000)


def _encode_gif(frames: NDArray[Any], body: Mapping[str, Any]) -> bytes:
    import PIL.Image

    images = [PIL.Image.fromarray(_rgb(_to_bytes(frame, body))).quantize(_COLORS) for frame in frames]
    file = io.BytesIO()
    duration = 1000 / min(body["fps"], _MAX_GIF_FPS)
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return file.getvalue()


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels with three channels. Transparent pixels are blended with black."""
    colors, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[-1] % 2 == 0 else (pixels, None)
    if alpha is not None:
        colors = (colors.astype(np.uint16) * alpha // 255).astype(np.uint8)
    return np.broadcast_to(colors, (*colors.shape[:-1], 3))


def _to_bytes(array: NDArray[Any], body: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Scale pixels to the range from 0 to 255. Pixels with NaN become magenta; a gray image then becomes an RGB image."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    colors = array.shape[-1] - (array.shape[-1] % 2 == 0)
    pixels = np.empty(array.shape, np.uint8)
    rows = max(1, _ROWS_AT_ONCE // max(1, array[0].size))
    for start in range(0, len(array), rows):
        part = slice(start, start + rows)
        pixels[part, ..., :colors] = _scale(array[part, ..., :colors], *body["span"])
        if colors < array.shape[-1]:
            pixels[part, ..., colors:] = _scale(array[part, ..., colors:], *body["alpha_span"])
    if array.dtype.kind == "f":
        missing = np.isnan(array[..., :colors]).any(axis=-1)
        if missing.any():
            if colors == 1:
                pixels = np.concatenate([pixels[..., :1], pixels[..., :1], pixels], axis=-1)
            pixels[missing, :3] = _NAN_COLOR
            pixels[missing, 3:] = 255
    return pixels


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.round(np.clip(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0), 0, 255)).astype(np.uint8)
