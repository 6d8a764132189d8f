"""JSON in the columns of an archive."""

import json
from typing import Any

__all__ = ["json_text"]


def json_text(document: Any) -> str:
    """Return a document of the API as compact JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
