"""Encoding of batches and events as requests for the spool."""

import gzip
from collections.abc import Mapping, Sequence
from typing import Final

from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.encode import encode_events, encode_metrics

__all__ = ["encode_log_request", "encode_metric_request"]

_GZIP_LEVEL: Final = 1
"""Compression level. Times and doubles compress poorly: level 6 takes four times the CPU time for 3 % fewer bytes."""


def encode_metric_request(batch: Batch, priority: Priority = Priority.SCALARS, *, level: int = _GZIP_LEVEL) -> Encoded:
    """Encode a batch as a request.

    Args:
        batch: The batch.
        priority: Priority of the request.
        level: Compression level of gzip.

    Raises:
        EncodingError: A value cannot be encoded.
    """
    return Encoded("metrics", gzip.compress(encode_metrics([batch]), level, mtime=0), batch.points, priority)


def encode_log_request(resource: Mapping[str, Attribute], events: Sequence[Event], priority: Priority) -> Encoded:
    """Encode events of one process as a request.

    Raises:
        EncodingError: A value cannot be encoded.
    """
    return Encoded("logs", gzip.compress(encode_events(resource, events), _GZIP_LEVEL, mtime=0), len(events), priority)
