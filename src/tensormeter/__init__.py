"""Training telemetry built on OpenTelemetry. It never stalls your GPU, loses no data, and sends OTLP to any backend."""

import typing

from tensormeter.api import deferred_log, finish, init, log
from tensormeter.errors import (
    EncodingError,
    RingError,
    SettingsError,
    SpoolError,
    StoreError,
    TensormeterError,
    UsageError,
)
from tensormeter.instruments import MeterProvider, configure
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.record.media.image import Image
from tensormeter.record.media.table import Table
from tensormeter.record.media.text import Text
from tensormeter.session.run import Run
from tensormeter.settings import Settings

if typing.TYPE_CHECKING:
    from tensormeter.client import Client

__all__ = [
    "Client",
    "EncodingError",
    "Histogram",
    "Image",
    "MeterProvider",
    "RingError",
    "Run",
    "Settings",
    "SettingsError",
    "SpoolError",
    "StoreError",
    "Table",
    "TensormeterError",
    "Text",
    "UsageError",
    "configure",
    "deferred_log",
    "finish",
    "init",
    "log",
]


def __getattr__(name: str) -> typing.Any:
    """Resolve `Client`, which is imported on first use, and `run`, the most recently started unfinished run or None."""
    if name == "Client":
        from tensormeter.client import Client

        return Client
    if name == "run":
        from tensormeter.session.run import latest_run

        return latest_run()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
