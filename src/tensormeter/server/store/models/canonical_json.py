"""JSON of OTLP values: valid for every value, and equal for equal values."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["canonical_json", "json_value"]

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


def json_value(value: Any) -> Any:
    """Convert an OTLP value to JSON values: bytes to base64, and NaN and infinities to the names that protobuf's JSON uses."""
    if type(value) in _PLAIN:  # nearly all values; matching classes one after another would take longer
        return value
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(key): json_value(item) for key, item in value.items()}
        case list() | tuple():
            return [json_value(item) for item in value]
        case _:
            return value


def canonical_json(value: Any) -> str:
    """Encode a value with sorted keys and no spaces, so that equal values have equal texts."""
    return _ENCODER.encode(json_value(value))
