"""pandas, where somebody wants it."""

import importlib
from typing import Any

from tensormeter.errors import UsageError

__all__ = ["import_pandas"]


def import_pandas() -> Any:
    """The module.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise UsageError("this needs pandas; pip install 'tensormeter[pandas]', or use the NumPy arrays") from None
