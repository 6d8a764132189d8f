"""Training telemetry built on OpenTelemetry. It never stalls your GPU, loses no data, and sends OTLP to any backend."""

import typing

from tensormeter import api
from tensormeter.api import alert, deferred_log, define_metric, finish, init, log, log_artifact, watch
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
from tensormeter.record.media.audio import Audio
from tensormeter.record.media.html import Html
from tensormeter.record.media.image import Image
from tensormeter.record.media.table import Table
from tensormeter.record.media.text import Text
from tensormeter.record.media.video import Video
from tensormeter.session import open_runs
from tensormeter.session.run import Run
from tensormeter.settings import Settings

if typing.TYPE_CHECKING:
    from tensormeter.client import Client
    from tensormeter.session.config.view import View

    __version__: str
    config: View
    run: Run | None
    summary: View

__all__ = [
    "Audio",
    "Client",
    "EncodingError",
    "Histogram",
    "Html",
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
    "Video",
    "alert",
    "configure",
    "deferred_log",
    "define_metric",
    "finish",
    "init",
    "log",
    "log_artifact",
    "watch",
]


def __getattr__(name: str) -> typing.Any:
    """Resolve the names that depend on the current run, and those whose modules are imported on first use.

    - `run`: the current run of this thread or task, or None (see `tensormeter.session.open_runs`).
    - `config`, `summary`: those of the current run. Without a run, they are empty, and changes cause a warning.
    - `Client`, `__version__`.
    """
    match name:
        case "run":
            return open_runs.current_run()
        case "config":
            return api.current_config()
        case "summary":
            return api.current_summary()
        case "Client":
            from tensormeter.client import Client

            return Client
        case "__version__":
            from importlib.metadata import version

            return version("tensormeter")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "config", "run", "summary"]
