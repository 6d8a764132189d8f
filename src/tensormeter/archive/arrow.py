"""pyarrow, which reads and writes the Parquet files of archives. It is imported on first use, because it is optional."""

import importlib
from typing import Any

from tensormeter.errors import UsageError

__all__ = ["load_arrow", "load_parquet"]


def load_arrow() -> Any:
    """Return the module `pyarrow`. Raises UsageError if it is not installed."""
    return _load("pyarrow")


def load_parquet() -> Any:
    """Return the module `pyarrow.parquet`. Raises UsageError if pyarrow is not installed."""
    return _load("pyarrow.parquet")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise UsageError("an archive needs pyarrow; run pip install 'tensormeter[parquet]'") from None
