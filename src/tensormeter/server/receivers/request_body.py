"""Functions that read and decompress request bodies within limits on size, time and memory."""

import io
import zlib
from typing import Final

import anyio
import zstandard
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tensormeter.errors import EncodingError
from tensormeter.otlp import content_codings
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.point_planes import DecodedTooLargeError, join_planes

__all__ = ["BodyReader", "decompress"]

_ZSTD_WINDOW: Final = 8 << 20

_MAX_MEMBERS: Final = 10_000
"""Maximum number of gzip members or zstd frames in a body. Each of them takes time, and ordinary senders use far fewer."""

_SLICE: Final = 1 << 16

READ_TIMEOUT: Final = 60.0
"""Maximum seconds to receive a body. It limits how long a client that sends single bytes can occupy a connection."""


class BodyReader:
    """Reader of bodies. All bodies in memory share one limit. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """Create a reader.

        Args:
            max_bytes: Maximum size of one body as sent, in bytes. All bodies that are being read or stored share a
                limit of four times this size.
        """
        self._max_bytes = max_bytes
        self._budget = 4 * max_bytes
        self._buffered_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Read the body as sent. It counts towards the shared limit until `release` is called.

        Raises:
            HTTPException: 413 if the body is too large, 408 if it arrives too slowly, 503 if the shared limit is
                reached.
            ClientDisconnect: The client disconnected.

        After an error, the body no longer counts towards the limit.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise too_large(self._max_bytes)
        parts: list[bytes] = []
        size = 0
        complete = False
        try:
            with anyio.fail_after(READ_TIMEOUT):
                async for part in request.stream():
                    size += len(part)
                    self._buffered_bytes += len(part)
                    parts.append(part)
                    if size > self._max_bytes:
                        raise too_large(self._max_bytes)
                    if self._buffered_bytes > self._budget:
                        raise HTTPException(503, "too many large requests at once; retry later", {"Retry-After": "1"})
            complete = True
            return b"".join(parts)
        except TimeoutError:
            message = f"the body took longer than {READ_TIMEOUT:g} s; send smaller requests"
            raise HTTPException(408, message) from None
        finally:
            if not complete:
                self._buffered_bytes -= size

    def release(self, size: int) -> None:
        """Stop counting a body that `read` returned and that is no longer needed."""
        self._buffered_bytes -= size


def too_large(max_bytes: int) -> HTTPException:
    """Create a 413 error whose message contains the limit and a remedy."""
    return HTTPException(413, f"the body is larger than {max_bytes} bytes after decompression; send smaller batches")


def decompress(body: bytes, encoding: str, max_bytes: int, check: Check = no_check) -> bytes:
    """Decompress a body to at most `max_bytes`.

    Args:
        body: Body as sent.
        encoding: "gzip" or "zstd", with 1 to 10,000 members or frames; "" for no compression; or the coding of
            `tensormeter.otlp.point_planes`.
        max_bytes: Maximum size of the result in bytes.
        check: Function that is called for each piece and can end the work by raising an error. Even a body with a small
            result can take long to decompress.

    Raises:
        HTTPException: 413 if the result exceeds `max_bytes`; 400 if the body is truncated or in another format.
    """
    match encoding:
        case content_codings.GZIP:
            return _gunzip(body, max_bytes, check)
        case content_codings.ZSTD:
            return _unzstd(body, max_bytes, check)
        case content_codings.PLANES:
            return _join_planes(_unzstd(body, max_bytes, check), max_bytes, check)
        case _:
            return body


def _join_planes(data: bytes, max_bytes: int, check: Check) -> bytes:
    try:
        return join_planes(data, max_bytes, check)
    except DecodedTooLargeError:
        raise too_large(max_bytes) from None
    except EncodingError as error:
        raise HTTPException(400, f"the body is not {content_codings.PLANES}: {error}") from None


def _gunzip(body: bytes, max_bytes: int, check: Check) -> bytes:
    parts: list[bytes] = []
    size = at = 0
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            check()
            # Decompress in slices. zlib copies the data that follows a member, so each of many members would copy the
            # whole rest of the body.
            piece = body[at : at + _SLICE]
            if not piece:
                raise HTTPException(400, "the gzip body is truncated")
            try:
                part = member.decompress(piece, max_bytes - size + 1)
            except zlib.error as error:
                raise HTTPException(400, f"the body is not gzip: {error}") from None
            at += len(piece) - len(member.unused_data) - len(member.unconsumed_tail)
            size += len(part)
            if size > max_bytes:
                raise too_large(max_bytes)
            parts.append(part)
        if at == len(body):
            return b"".join(parts)
    raise HTTPException(400, f"the body has more than {_MAX_MEMBERS} gzip members")


class _Pieces(io.BytesIO):
    """File-like object over bytes that calls a check before each read."""

    def __init__(self, body: bytes, check: Check) -> None:
        super().__init__(body)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


def _unzstd(body: bytes, max_bytes: int, check: Check) -> bytes:
    # RFC 9659 allows senders of HTTP content to use a window of 8 MiB.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        # First measure the result in bounded memory, because a frame's declared size is optional and can be wrong.
        with decompressor.stream_reader(_Pieces(body, check), read_size=_SLICE, read_across_frames=True) as reader:
            size = 0
            while part := reader.read(1 << 20):
                size += len(part)
                if size > max_bytes:
                    raise too_large(max_bytes)
        parts: list[bytes] = []
        at = 0
        for _ in range(_MAX_MEMBERS):
            frame = decompressor.decompressobj()
            while not frame.eof:
                check()
                piece = body[at : at + _SLICE]
                if not piece:
                    raise HTTPException(400, "the zstd body is truncated")
                parts.append(frame.decompress(piece))
                at += len(piece) - len(frame.unused_data)
            if at == len(body):
                return b"".join(parts)
    except zstandard.ZstdError as error:
        raise HTTPException(400, f"the body is not zstd: {error}") from None
    raise HTTPException(400, f"the body has more than {_MAX_MEMBERS} zstd frames")
