"""The content coding of request bodies, which the receiver's responses determine.

A response header `Accept-Encoding` lists the codings that the receiver accepts in further requests (RFC 9110, 12.5.3). Until
a response has this header, and for all other receivers, bodies are gzip.
"""

import threading
from typing import Final
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import zstandard

from tensormeter.exporter import Request
from tensormeter.otlp.content_codings import GZIP, PLANES, ZSTD
from tensormeter.otlp.point_planes import split_planes
from tensormeter_exporters.request_bodies import decompress

__all__ = ["BodyCoding"]

_LEVEL: Final = 1
"""Compression level. Level 3 takes twice the CPU time for 1 % fewer bytes."""


class BodyCoding:
    """The coding for one receiver. Any thread may use it."""

    @classmethod
    def of(cls, url: str) -> "BodyCoding":
        """Return the coding for the receiver at a URL. Exporters of the same receiver share it."""
        origin = urlsplit(url)[:2]
        with _lock:
            return _codings.setdefault(origin, cls())

    def __init__(self) -> None:
        self._accepted: frozenset[str] = frozenset()
        self._is_refused = False
        self._lock = threading.Lock()

    def encode(self, request: Request) -> tuple[bytes, str]:
        """Return the body to send, and its content coding.

        Raises:
            EncodingError: The request's body is damaged.
        """
        accepted = self._accepted
        if not accepted & {PLANES, ZSTD}:
            return request.body, GZIP
        body = decompress(request)
        planes = split_planes(body) if PLANES in accepted and request.signal == "metrics" else None
        if planes is not None:
            return _compress(planes), PLANES
        compressed = _compress(body) if ZSTD in accepted else request.body
        return (compressed, ZSTD) if len(compressed) < len(request.body) else (request.body, GZIP)

    def note_accepted(self, header: str) -> None:
        """Process the `Accept-Encoding` header of a successful response; "" if it has none."""
        with self._lock:
            if not self._is_refused:
                codings = (coding.partition(";") for coding in header.lower().split(","))
                self._accepted = frozenset(
                    name.strip() for name, _, weight in codings if weight.replace(" ", "") not in ("q=0", "q=0.0")
                )

    def refuse(self) -> None:
        """Use gzip from now on, because a proxy or an older server behind the same address refused another coding."""
        with self._lock:
            self._is_refused = True
            self._accepted = frozenset()


_lock = threading.Lock()
_codings: WeakValueDictionary[tuple[str, str], BodyCoding] = WeakValueDictionary()
"""Codings that exporters use, by scheme and authority."""


def _compress(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(body)
