"""Parsers and checks for settings, and the dataclass field that uses them."""

import dataclasses
import os
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import unquote, urlsplit

from tensormeter.conventions.labels import LONGEST_LABEL, fit_label
from tensormeter.environment.variables import mask
from tensormeter.errors import SettingsError, join_choices
from tensormeter.logger import get_logger

__all__ = [
    "IDENTIFIER",
    "NOT_GIVEN",
    "Check",
    "boolean",
    "checked",
    "choice",
    "endpoint_url",
    "identifier",
    "integer",
    "label",
    "longest_text",
    "number",
    "option_texts",
    "optional",
    "parse_bool",
    "parse_float",
    "parse_int",
    "parse_lower",
    "parse_names",
    "parse_options",
    "path",
    "setting",
    "tag_list",
    "token_text",
    "unique_names",
]

Check = Callable[[Any], Any]
"""Function that returns a value in the form that `Settings` stores, or raises ValueError if the value is invalid."""

logger: Final = get_logger()

_Parse = Callable[[str], Any]
_Read = Callable[[str], Any]

IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NOT_GIVEN: Final[Any] = object()
"""Placeholder for the value of a setting whose default depends on other settings, until these are known."""

_OPTION: Final = re.compile(r"[^.=,]+\.[a-z_]+")
_TOKEN: Final = re.compile(r"[!-~]+")
_MOST_TAGS: Final = 100
_MOST_WARNINGS: Final = 100


def setting(
    default: Any,
    variable: str,
    *others: tuple[str, _Read],
    parse: _Parse = str,
    check: Check | None = None,
    help: str,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """Return a dataclass field whose default comes from the environment, or else from `default`.

    Args:
        default: Default value, or a function that returns it.
        variable: The setting's `TENSORMETER_*` environment variable.
        others: Environment variables of other software, with the functions that read them. A function returns None if its
            variable is unset or invalid, and never raises.
        parse: Function that converts the string in `variable` to a value, or raises ValueError. It may return a string that is
            not a number unchanged, so that `check` rejects it.
        check: Function that validates and normalizes the value.
        help: Description of the setting in the documentation.
        shown: Description of the default in the documentation, if the documentation cannot show `default` itself.
        secret: Whether the value is a secret, and is therefore neither shown nor stored.
    """

    def inherit() -> Any:
        if (text := os.environ.get(variable, "")).strip():
            try:
                value = parse(text)
                return value if check is None else check(value)
            except ValueError as error:
                raise SettingsError(f"environment variable {variable}: {error}") from None
        for other, read in others:
            if (value := read(other)) is not None:
                return value
        return None

    def resolve() -> Any:
        if (inherited := inherit()) is not None:
            return inherited
        return default() if callable(default) else default

    words = shown or (
        "none" if default is None else f"`{','.join(default) if isinstance(default, tuple) else default}`"
    )
    metadata = {
        "variables": (variable, *(name for name, _ in others)),
        "default": words,
        "help": help,
        "check": check,
        "inherit": inherit,
    }
    return dataclasses.field(default_factory=resolve, repr=not secret, metadata=metadata)


def checked(name: str, check: Check | None, value: Any) -> Any:
    """Validate the value of a setting, and return it in the form that `Settings` stores.

    Raises:
        SettingsError: The value is invalid. The message names the setting.
    """
    try:
        return value if check is None else check(value)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"expected true or false, got {text!r}")


def parse_int(text: str) -> int | str:
    """Convert a string to an integer, or return it unchanged if it is not an integer."""
    try:
        return int(text)
    except ValueError:
        return text


def parse_float(text: str) -> float | str:
    """Convert a string to a float, or return it unchanged if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_lower(text: str) -> str:
    return text.strip().lower()


def parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_options(text: str) -> dict[str, str]:
    options = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"expected DESTINATION.OPTION=VALUE, got {item!r}")
        options[key.strip()] = unquote(value.strip())
    return options


def integer(low: int, high: int) -> Check:
    """Return a check that accepts integers in a range."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, got {value!r}")
        return value

    return check


def number(low: float, high: float, *, zero: str = "") -> Check:
    """Return a check that accepts numbers in a range.

    Args:
        low: Smallest valid number.
        high: Largest valid number.
        zero: Meaning of 0 in the error message, if 0 is valid although it is below `low`.
    """
    alternative = f", or 0 for {zero}" if zero else ""

    def check(value: Any) -> Any:
        if zero and value == 0:  # also accepts False, which equals 0
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"expected a number from {low} to {high}{alternative}, got {value!r}")
        return value

    return check


def choice(literal: Any) -> Check:
    """Return a check that accepts the values of a `Literal`."""
    choices = get_args(literal)

    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"expected {join_choices(*choices)}; got {value!r}")
        return value

    return check


def optional(check: Check) -> Check:
    """Return a check that accepts None and all values that `check` accepts."""
    return lambda value: None if value is None else check(value)


def longest_text(noun: str, longest: int) -> Check:
    """Return a check that accepts strings. A longer string is cut to `longest` characters with a warning."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, got {reprlib.repr(value)}")  # noqa: TRY004 - as for any other value
        if len(value) > longest:
            _warn(f"{noun}: only the first {longest:,} of {len(value):,} characters are recorded")
        return value[:longest]

    return check


def boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {value!r}")  # noqa: TRY004 - as for any other value
    return value


def label(noun: str, longest: int, default: str | None = None) -> Check:
    """Return a check that accepts any text as a name. A text that cannot be a name is changed with a warning.

    Args:
        noun: Noun for the name in the warning, such as "project".
        longest: Maximum length in characters.
        default: Name to use instead of an empty one.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, got {reprlib.repr(value)}")  # noqa: TRY004 - as for any other value
        name = fit_label(value, longest) or default
        if name != value:
            used = "none" if name is None else repr(name)
            _warn(f"{noun}: {reprlib.repr(value)} cannot be a name; using {used}. {_rule(longest)}")
        return name

    return check


def _rule(longest: int) -> str:
    return f"Use 1 to {longest:,} characters without control characters or spaces at the ends"


def _warn(message: str) -> None:
    if message not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add(message)
        logger.warning("%s", message)


_warned: Final[set[str]] = set()
"""Warnings about changed names that have been logged."""


def identifier(value: Any) -> Any:
    if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
        raise ValueError(
            f"expected 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit, got {value!r}"
        )
    return value


def path(value: Any) -> Path:
    """Check a path, and make it absolute."""
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, TypeError, OSError) as error:
        raise ValueError(f"expected a path, got {str(value)!r} ({error})") from None


def unique_names(value: Any) -> tuple[str, ...]:
    """Check a list of distinct names, which may also be given as a comma-separated string."""
    names = parse_names(value) if isinstance(value, str) else tuple(value) if isinstance(value, Collection) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"expected a list of distinct names, got {value!r}")
    return tuple(names)


def tag_list(value: Any) -> tuple[str, ...]:
    """Check a collection of short strings, which may also be given as a comma-separated string. Remove duplicates.

    Tags that are too long are cut, and tags beyond the limit are left out, with a warning.
    """
    if isinstance(value, str):
        value = parse_names(value)
    if not isinstance(value, Collection):
        raise ValueError(f"expected a list of strings, got {reprlib.repr(value)}")  # noqa: TRY004 - as for any other value
    if not all(isinstance(tag, str | int | float) for tag in value):
        raise ValueError(f"expected strings, got {reprlib.repr(list(value))}")
    tags = [*dict.fromkeys(filter(None, (fit_label(str(tag)) for tag in value)))]
    if any(str(tag) != fit_label(str(tag)) for tag in value):
        _warn(f"tags: {reprlib.repr(list(value))} contains tags that were changed. {_rule(LONGEST_LABEL)}")
    if len(tags) > _MOST_TAGS:
        _warn(f"tags: only the first {_MOST_TAGS} of {len(tags)} are recorded; use fewer")
    return tuple(tags[:_MOST_TAGS])


def option_texts(value: Any) -> dict[str, str]:
    """Check a mapping from `DESTINATION.OPTION` to strings, which may also be given as a comma-separated string."""
    if isinstance(value, str):
        value = parse_options(value)
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(text, str) and _OPTION.fullmatch(key) for key, text in value.items()
    ):
        raise ValueError(f"expected a mapping from DESTINATION.OPTION to strings, got {value!r}")
    return dict(value)


def token_text(value: Any) -> str:
    """Check a token. Error messages never contain it."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError("expected printable ASCII characters without spaces or line breaks")
    return value


def endpoint_url(example: str) -> Check:
    """Return a check that accepts HTTP and HTTPS URLs without credentials.

    Args:
        example: Valid URL to show in the error message.
    """

    def check(value: Any) -> Any:
        if value is NOT_GIVEN:
            return value
        parts = None
        try:
            parts = urlsplit(value) if isinstance(value, str) else None
            valid = parts and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port is not a number, or a bracket is unclosed
            valid = False
        if not parts or not valid:
            shown = repr(mask(value) if isinstance(value, str) else value)
            raise ValueError(f"expected a URL such as {example}, got {shown}")
        if parts.username or parts.password:
            raise ValueError("credentials in the URL are not accepted; set TENSORMETER_TOKEN")
        return value

    return check
