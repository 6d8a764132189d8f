"""Digests of requests, for comparing two requests with the same batch ID."""

import hashlib

__all__ = ["digest"]


def digest(signal: str, payload: bytes) -> bytes:
    """Return the digest of a request's signal (metrics or logs) and uncompressed payload."""
    hashed = hashlib.sha256(signal.encode() + b"\0")
    hashed.update(payload)
    return hashed.digest()
