"""Client for reading runs from an experiment server: points as NumPy arrays or DataFrames, log lines, tables and media.

This package is imported on first use of `tensormeter.Client`, so training processes do not load it.
"""

from tensormeter.client.client import Client
from tensormeter.client.code_records import RecordedArtifact, RecordedCode
from tensormeter.client.connection import ApiError, Connection
from tensormeter.client.distributions import DistributionBlock
from tensormeter.client.histograms import Histograms
from tensormeter.client.logs import LogLine, LogLines
from tensormeter.client.points import PointBlock
from tensormeter.client.records import Record, RecordedImage, RecordedMedia, RecordedTable, RecordedText
from tensormeter.client.run import StoredRun
from tensormeter.client.run_parts import Metric, Process, Summary
from tensormeter.client.selector import find_run
from tensormeter.client.series import Series, SeriesList

__all__ = [
    "ApiError",
    "Client",
    "Connection",
    "DistributionBlock",
    "Histograms",
    "LogLine",
    "LogLines",
    "Metric",
    "PointBlock",
    "Process",
    "Record",
    "RecordedArtifact",
    "RecordedCode",
    "RecordedImage",
    "RecordedMedia",
    "RecordedTable",
    "RecordedText",
    "Series",
    "SeriesList",
    "StoredRun",
    "Summary",
    "find_run",
]
