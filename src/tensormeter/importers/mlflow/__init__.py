"""Import of MLflow's runs: from an SQLite database, from a folder `mlruns`, or from a tracking server."""

from tensormeter.importers.mlflow.source import find

__all__ = ["find"]
