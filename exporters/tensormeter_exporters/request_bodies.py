"""Decompression of request bodies. Damaged bodies raise an `EncodingError`."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import EncodingError
from tensormeter.exporter import Request

__all__ = ["decoding", "decompress"]

_LARGEST: Final = 1 << 30
"""Maximum size of a decompressed body in bytes, far above that of the agent's requests, to stop malicious bodies."""

_PIECE: Final = 1 << 20


def decompress(request: Request) -> bytes:
    """Return the OTLP message of a request.

    Raises:
        EncodingError: The body is not gzip, is truncated or damaged, or exceeds 1 GiB when decompressed.
    """
    with decoding(request):
        if not request.body:
            raise EncodingError("the body is empty")
        pieces, size = [], 0
        with gzip.GzipFile(fileobj=io.BytesIO(request.body)) as file:
            while piece := file.read(_PIECE):  # which reserves memory for a whole piece
                pieces.append(piece)
                size += len(piece)
                if size > _LARGEST:
                    raise EncodingError(f"it has more than {_LARGEST} bytes when decompressed")
    return b"".join(pieces)


@contextmanager
def decoding(request: Request) -> Iterator[None]:
    """Convert exceptions raised by a decoder to an `EncodingError`.

    For a damaged body, decompressors, Protobuf and the code that reads their results raise many types of exceptions:
    BadGzipFile, EOFError, zlib.error, DecodeError, UnicodeDecodeError, OverflowError and others.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, EncodingError) else f"{type(error).__name__}: {error}"
        raise EncodingError(f"cannot read request {request.id} ({reason[:300]})") from error
