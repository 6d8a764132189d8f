"""Values of parameters and tags, which MLflow stores as text."""

import ast
import json
from typing import Any, Final

__all__ = ["parse_text"]

_WORDS: Final = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_OPENING: Final = ("[", "(", "{")
_LONGEST: Final = 6000
"""Length of a text up to which it may be a list or a mapping, in characters. MLflow's parameters are no longer."""
_INTEGER: Final = 1 << 63


def parse_text(text: str) -> Any:
    """Return the value that a text was made from, or the text.

    A text becomes a number only if the number's own text is the same, so a version such as "1.10" stays a text. Lists and
    mappings are read as JSON, or as Python prints them. Python's parser limits their depth.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith(_OPENING):
        return _parse_collection(text)
    try:
        number = int(text)
        if str(number) == text and -_INTEGER <= number < _INTEGER:
            return number
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text
    return value if text in (repr(value), json.dumps(value)) else text


def _parse_collection(text: str) -> Any:
    if len(text) > _LONGEST:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return _plain(value, text)


def _plain(value: Any, text: str) -> Any:
    """Return a value with lists instead of tuples, or the text if the value contains another type."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return text
