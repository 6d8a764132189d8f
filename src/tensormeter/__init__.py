"""Training telemetry on OpenTelemetry that never stalls the GPU and loses nothing."""

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
from tensormeter.record.histogram import Histogram
from tensormeter.record.media import Image, Table, Text
from tensormeter.run import Run, deferred_log, finish, init, log
from tensormeter.settings import Settings

__all__ = [
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
