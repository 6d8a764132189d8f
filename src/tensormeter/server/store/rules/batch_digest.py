"""Digests of requests, to compare two batches with the same ID."""

import hashlib

__all__ = ["digest"]


def digest(signal: str, payload: bytes) -> bytes:
    """Return the digest of a request's signal and payload, regardless of compression in transit."""
    hashed = hashlib.sha256(signal.encode() + b"\0")
    hashed.update(payload)
    return hashed.digest()
