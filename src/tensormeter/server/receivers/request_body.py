"""Request bodies: read and decompressed within limits of size, time and memory."""

import io
import zlib
from typing import Final

import anyio
import zstandard
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tensormeter.otlp.check import Check, no_check

__all__ = ["BodyReader", "decompress"]

_ZSTD_WINDOW: Final = 8 << 20

_MAX_MEMBERS: Final = 10_000
"""Members or frames of a body: each costs some time, and nothing but an attack has as many."""

_SLICE: Final = 1 << 16

READ_TIMEOUT: Final = 60.0
"""Seconds that sending one body may take, in all: a client that trickles bytes holds a connection no longer."""


class BodyReader:
    """Reads bodies; all that are being read at one time share a bound. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """Create a reader.

        Args:
            max_bytes: Limit for one body as sent. All bodies being read or stored share four times as much.
        """
        self._max_bytes = max_bytes
        self._budget = 4 * max_bytes
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The body as sent. It counts as held until `release`.

        Raises:
            HTTPException: 413 too large, 408 too slow, 503 too much at once. Nothing is held then.
            ClientDisconnect: The client went away. Nothing is held then.
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
                    self._held += len(part)
                    parts.append(part)
                    if size > self._max_bytes:
                        raise too_large(self._max_bytes)
                    if self._held > self._budget:
                        raise HTTPException(503, "too many large requests at once; send it again", {"Retry-After": "1"})
            complete = True
            return b"".join(parts)
        except TimeoutError:
            message = f"the body took longer than {READ_TIMEOUT:g} s; send smaller requests"
            raise HTTPException(408, message) from None
        finally:
            if not complete:
                self._held -= size

    def release(self, size: int) -> None:
        """Let others use the memory of a body of this size, which `read` returned and which is not needed any more."""
        self._held -= size


def too_large(max_bytes: int) -> HTTPException:
    """413, with what to do."""
    return HTTPException(413, f"the body is larger than {max_bytes} bytes after decompression; send smaller batches")


def decompress(body: bytes, encoding: str, max_bytes: int, check: Check = no_check) -> bytes:
    """Undo a content encoding, never producing more than `max_bytes`.

    Args:
        body: As sent.
        encoding: "gzip" or "zstd", one to 10,000 members or frames; "": nothing is undone.
        max_bytes: Limit.
        check: Called for each piece; whatever it raises ends the work. A body can be made so that it takes long and yields little.

    Raises:
        HTTPException: 413 more than `max_bytes`; 400 not what it says it is, or cut off.
    """
    match encoding:
        case "gzip":
            return _gunzip(body, max_bytes, check)
        case "zstd":
            return _unzstd(body, max_bytes, check)
        case _:
            return body


def _gunzip(body: bytes, max_bytes: int, check: Check) -> bytes:
    parts: list[bytes] = []
    size = at = 0
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            check()
            # Slice by slice, because what follows a member is copied: with many of them all of it would be, each time.
            piece = body[at : at + _SLICE]
            if not piece:
                raise HTTPException(400, "the gzip body is cut off")
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
    """A file over bytes that calls a check before each piece is read."""

    def __init__(self, body: bytes, check: Check) -> None:
        super().__init__(body)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


def _unzstd(body: bytes, max_bytes: int, check: Check) -> bytes:
    # 8 MiB of window is what RFC 9659 lets a sender of HTTP content use.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        # First only to see how much comes out, in bounded memory: a frame need not say it, and can lie.
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
                    raise HTTPException(400, "the zstd body is cut off")
                parts.append(frame.decompress(piece))
                at += len(piece) - len(frame.unused_data)
            if at == len(body):
                return b"".join(parts)
    except zstandard.ZstdError as error:
        raise HTTPException(400, f"the body is not zstd: {error}") from None
    raise HTTPException(400, f"the body has more than {_MAX_MEMBERS} zstd frames")
