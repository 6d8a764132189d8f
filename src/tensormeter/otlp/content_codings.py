"""The content codings of request bodies that the experiment server accepts."""

from typing import Final

__all__ = ["ACCEPT_ENCODING", "CODINGS", "GZIP", "PLANES", "ZSTD"]

GZIP: Final = "gzip"
ZSTD: Final = "zstd"
PLANES: Final = "x-tensormeter-planes"
"""The coding of `tensormeter.otlp.point_planes`, compressed with zstd."""

CODINGS: Final = (PLANES, ZSTD, GZIP)
"""All codings, beginning with the one that makes the smallest bodies."""

ACCEPT_ENCODING: Final = ", ".join(CODINGS)
"""Response header with the codings that a server accepts in further requests (RFC 9110, 12.5.3)."""
