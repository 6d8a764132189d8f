"""JSON encoding of OTLP values that supports every value and encodes equal values equally."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["canonical_json", "json_value"]

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


def json_value(value: Any) -> Any:
    """Convert an OTLP value to JSON values, with bytes as base64 and with NaN and infinities as in protobuf's JSON."""
    if type(value) in _PLAIN:  # nearly all values; the class patterns below are slower
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
    """Encode a value as JSON with sorted keys and without spaces, so that equal values have equal encodings."""
    return _ENCODER.encode(json_value(value))
