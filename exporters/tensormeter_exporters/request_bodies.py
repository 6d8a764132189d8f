"""Decompresses the bodies of requests. Any damage raises an `EncodingError`."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import EncodingError
from tensormeter.exporter import Request

__all__ = ["decoding", "decompress"]

_LARGEST: Final = 1 << 30
"""Maximum bytes of a decompressed body: far more than the agent puts into a request, and a bound for hostile ones."""


def decompress(request: Request) -> bytes:
    """Return the OTLP message of a request.

    Raises:
        EncodingError: The body is not gzip, is truncated or damaged, or has more than 1 GiB when decompressed.
    """
    with decoding(request):
        if not request.body:
            raise EncodingError("the body is empty")
        with gzip.GzipFile(fileobj=io.BytesIO(request.body)) as file:
            body = file.read(_LARGEST + 1)
        if len(body) > _LARGEST:
            raise EncodingError(f"it has more than {_LARGEST} bytes when decompressed")
    return body


@contextmanager
def decoding(request: Request) -> Iterator[None]:
    """Convert exceptions of a decoder into an `EncodingError`.

    Decompressors, protobuf and the readers of their results raise many exceptions at a damaged body: BadGzipFile, EOFError,
    zlib.error, DecodeError, UnicodeDecodeError, OverflowError and others. All mean that the body can never be decoded.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, EncodingError) else f"{type(error).__name__}: {error}"
        raise EncodingError(f"request {request.id} cannot be read ({reason[:300]})") from error
