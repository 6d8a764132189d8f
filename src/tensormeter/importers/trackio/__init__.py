"""Import of trackio's runs: from its SQLite databases, or from the Parquet files that it makes of them."""

from tensormeter.importers.trackio.source import find

__all__ = ["find"]
