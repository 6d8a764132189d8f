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
from tensormeter.record.histogram import Histogram
from tensormeter.run import Run, deferred_log, finish, init, log
from tensormeter.settings import Settings

__all__ = [
    "EncodingError",
    "Histogram",
    "RingError",
    "Run",
    "Settings",
    "SettingsError",
    "SpoolError",
    "StoreError",
    "TensormeterError",
    "UsageError",
    "deferred_log",
    "finish",
    "init",
    "log",
]
