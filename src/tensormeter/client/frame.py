"""Import of the optional package pandas."""

import importlib
from typing import Any

from tensormeter.errors import UsageError

__all__ = ["import_pandas"]


def import_pandas() -> Any:
    """Return the module `pandas`.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise UsageError(
            "to_pandas needs pandas; run pip install 'tensormeter[pandas]', or use the NumPy arrays"
        ) from None
