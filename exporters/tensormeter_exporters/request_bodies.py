"""Bodies of requests: decompressed and decoded, or an `EncodingError`, whatever is wrong with them."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import EncodingError
from tensormeter.exporter import Request

__all__ = ["decoding", "decompress"]

_LARGEST: Final = 1 << 30
"""Bytes of a body, decompressed: far more than a request of the agent has, and less than a hostile one could ask for."""


def decompress(request: Request) -> bytes:
    """The OTLP message of a request.

    Raises:
        EncodingError: The body is no gzip, is cut off or damaged, or is larger than 1 GiB when it is decompressed.
    """
    with decoding(request):
        if not request.body:
            raise EncodingError("the body is empty")
        with gzip.GzipFile(fileobj=io.BytesIO(request.body)) as file:
            body = file.read(_LARGEST + 1)
        if len(body) > _LARGEST:
            raise EncodingError(f"it has more than {_LARGEST} bytes when it is decompressed")
    return body


@contextmanager
def decoding(request: Request) -> Iterator[None]:
    """Turn what a decoder raises at a damaged body into an `EncodingError`.

    Decompressors, protobuf and what reads their results raise many exceptions: BadGzipFile, EOFError, zlib.error, DecodeError,
    UnicodeDecodeError, OverflowError and others. All of them mean that this body can never be read.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, EncodingError) else f"{type(error).__name__}: {error}"
        raise EncodingError(f"request {request.id} cannot be read ({reason[:300]})") from error
