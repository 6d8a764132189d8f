"""Import of Neptune's runs from the Parquet files and files that neptune-exporter has written."""

from tensormeter.importers.neptune.source import find

__all__ = ["find"]
