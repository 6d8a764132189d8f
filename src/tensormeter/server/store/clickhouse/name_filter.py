"""Conditions on the names of metrics."""

import hashlib
from collections.abc import Collection
from typing import Any, Final

from tensormeter.server.store.clickhouse.connection import numbers

__all__ = ["DIGEST", "digest_of", "is_named"]

DIGEST: Final = "reinterpretAsUInt64(substring(MD5(metric), 1, 8))"
"""Expression for the digest of the column `metric`; see `digest_of`."""

_FEW: Final = 100
"""Number of names up to which a statement contains them as a parameter, which is part of the request's URL."""


def is_named(metrics: Collection[str] | None) -> tuple[str, dict[str, Any]]:
    """Return a condition that selects rows by the column `metric`, and the statement's parameters.

    Many names are compared by 64 bits of their MD5 digests. The condition may then select a row of another name, with a
    probability of less than one in a trillion.

    Args:
        metrics: Names of the metrics; None for all.
    """
    if metrics is None:
        return "1", {}
    if len(metrics) <= _FEW:
        return "metric IN {metrics:Array(String)}", {"metrics": sorted(metrics)}
    return f"{DIGEST} IN ({numbers(set(map(digest_of, metrics)))})", {}


def digest_of(metric: str) -> int:
    """Return 64 bits of the MD5 digest of a metric's name."""
    digest = hashlib.md5(metric.encode(errors="surrogatepass"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "little")
