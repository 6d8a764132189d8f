"""Environment variables of other software: OpenTelemetry, launchers and schedulers.

A variable may be meant for another program, so no value raises an exception. The rules are those of OpenTelemetry's
specification ("Environment Variable Specification", from "Parsing empty value" on). An empty variable counts as unset.
Unknown words and invalid numbers are ignored. A Boolean is true only if it is `true`. Numbers beyond the supported
range are clamped. Each process warns about each value of a variable only once. Invalid values of our own variables,
`TENSORMETER_*`, do raise exceptions; see `settings`.
"""

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tensormeter.errors import join_choices
from tensormeter.logger import get_logger

__all__ = [
    "ignore",
    "importing_sdk",
    "key_log_usable",
    "mask",
    "read",
    "read_attributes",
    "read_count",
    "read_flag",
    "read_headers",
    "read_seconds",
    "read_word",
    "sdk_enabled",
    "warn_once",
]

logger: Final = get_logger()

_LONGEST_SHOWN: Final = 100
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]*@|^[^/\s]*@")
_SECRET_ASSIGNMENT: Final = re.compile(
    r"((?:token|secret|passw|credential|api[-_.]?key|auth)[\w.-]{0,40}=)[^,&\s]*", re.IGNORECASE
)
_KEY_FILE: Final = "PRIVATE KEY"
"""Text at the beginning of a private key, which may be given by mistake instead of a file name."""
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[ -~]*")
_FRAMING: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "grpc-encoding",
        "grpc-timeout",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that describe a request's encoding. If they were changed, no receiver could decode the request."""

_KEY_LOG: Final = "SSLKEYLOGFILE"
_PROPAGATORS: Final = "OTEL_PROPAGATORS"
_LIMIT: Final = re.compile(r"OTEL_\w+_LIMIT")
_LONGEST_LIMIT: Final = 4000
"""Exclusive upper bound on a limit's number of digits. By default, Python refuses to parse over 4300 digits."""

_making: Final = threading.Lock()
"""Lock that is held while an OpenTelemetry provider is constructed with a changed environment.

Each sensor constructs a provider in its own thread.
"""

_warned: set[tuple[str, str]] = set()
"""Pairs (variable, value) that a warning has reported."""


def read(variable: str) -> str:
    """Return the stripped value of a variable; "" if it is unset or empty."""
    return os.environ.get(variable, "").strip()


def warn_once(variable: str, problem: str, *, secret: bool = False) -> None:
    """Warn once about the current value of a variable.

    Args:
        variable: Name of the variable.
        problem: Problem with the value, and its consequence.
        secret: Whether to mask the whole value. Credentials in URLs and apparent secrets are always masked.
    """
    value = read(variable)
    if (variable, value) not in _warned:
        _warned.add((variable, value))
        shown = "***" if secret or _KEY_FILE in value else _show(value)
        logger.warning("environment variable %s=%s: %s", variable, shown, problem)


def ignore(variable: str, expected: str, instead: str) -> None:
    """Warn once that the value of a variable is invalid.

    Args:
        variable: Name of the variable.
        expected: Description of valid values.
        instead: Value that is used instead of the invalid one.
    """
    warn_once(variable, f"expected {expected}; using {instead} instead")


def mask(value: str) -> str:
    """Mask credentials in a URL, and values assigned to names that indicate a secret."""
    return _SECRET_ASSIGNMENT.sub(r"\1***", _CREDENTIALS.sub("***@", value))


def read_flag(variable: str) -> bool:
    """Return whether a Boolean variable is `true`, ignoring case."""
    text = read(variable).lower()
    if text not in ("", "true", "false"):
        ignore(variable, "true or false", "false")
    return text == "true"


def read_word(variable: str, words: Sequence[str], instead: str) -> str | None:
    """Return the lower-case value of a variable; None if it is unset or not in `words`."""
    text = read(variable).lower()
    if not text or text in words:
        return text or None
    ignore(variable, join_choices(*words), instead)
    return None


def read_seconds(variable: str, low: float, high: float, instead: str, *, zero: float | None = None) -> float | None:
    """Read a duration that a variable gives in milliseconds.

    Args:
        variable: Name of the variable.
        low: Minimum seconds; shorter durations are raised to it.
        high: Maximum seconds; longer durations are reduced to it.
        instead: Value that replaces an invalid duration, as named in the warning.
        zero: Seconds that 0 stands for; None if 0 is invalid.

    Returns:
        Duration in seconds; None if the variable is unset or invalid.
    """
    text = read(variable)
    if not text:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if milliseconds == 0 and zero is not None:
        return zero
    if not (math.isfinite(milliseconds) and milliseconds > 0):
        least = "0 or more" if zero is not None else "above 0"
        ignore(variable, f"a number of milliseconds, {least}", instead)
        return None
    seconds = min(max(milliseconds / 1000, low), high)
    if seconds != milliseconds / 1000:
        ignore(variable, f"{low * 1000:.0f} to {high * 1000:.0f} milliseconds", f"{seconds * 1000:.0f}")
    return seconds


def read_count(variable: str, high: int, instead: str) -> int | None:
    """Return an integer from 0 to `high`; None if the variable is unset or invalid.

    -1 counts as unset, without a warning, because launchers use it when there is nothing to count.
    """
    text = read(variable)
    if text in ("", "-1"):
        return None
    if text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and int(text) <= high:
        return int(text)
    ignore(variable, f"an integer from 0 to {high}", instead)
    return None


def read_attributes(variable: str = "OTEL_RESOURCE_ATTRIBUTES") -> dict[str, str]:
    """Parse resource attributes: `name=value,name=value`, percent-encoded. Items without a name or `=` are left out."""
    attributes = {}
    for item in filter(None, (item.strip() for item in read(variable).split(","))):
        name, separator, value = item.partition("=")
        if not separator or not name.strip():
            warn_once(variable, "expected NAME=VALUE,NAME=VALUE; ignoring items without a name or '='")
            continue
        attributes[unquote(name.strip())] = unquote(value.strip())
    return attributes


def read_headers(variable: str) -> dict[str, str]:
    """Parse headers: `name=value,name=value`, with percent-encoded values (W3C Baggage). Names become lower case.

    Headers that cannot be sent are left out. Warnings never show the values of headers.
    """
    headers = {}
    for item in filter(None, (item.strip() for item in read(variable).split(","))):
        name, separator, value = item.partition("=")
        name, value = unquote(name).strip().lower(), unquote(value.strip())
        if not separator or not _HEADER_NAME.fullmatch(name):
            problem = "expected NAME=VALUE,NAME=VALUE; ignoring other items"
        elif not _HEADER_VALUE.fullmatch(value):
            problem = f"the value of {name!r} contains characters that are not allowed in headers; ignoring it"
        elif name in _FRAMING:
            problem = f"{name!r} is set by the protocol; ignoring it"
        else:
            headers[name] = value
            continue
        warn_once(variable, problem, secret=True)
    return headers


@contextlib.contextmanager
def importing_sdk() -> Iterator[None]:
    """Hide invalid limits (`OTEL_..._LIMIT`) and propagators during the block, with a warning for each.

    OpenTelemetry's modules for spans and propagators raise exceptions for such values on import. OpenTelemetry's
    encoder imports the spans module, and MLflow imports both.
    """
    unusable = [name for name, value in os.environ.items() if _LIMIT.fullmatch(name) and not _is_limit(value)]
    for name in unusable:
        ignore(name, "an integer of at least 0", "the default")
    if not _are_propagators(os.environ.get(_PROPAGATORS, "")):
        unusable.append(_PROPAGATORS)
        if read(_PROPAGATORS):
            ignore(_PROPAGATORS, "names of installed propagators", "the default")
    with _hidden(*unusable):
        yield


@contextlib.contextmanager
def sdk_enabled() -> Iterator[None]:
    """Enable SDK providers that are constructed in the block, even if `OTEL_SDK_DISABLED` is true.

    A run that is recorded despite this variable (`TENSORMETER_MODE=online`) needs some providers internally.
    """
    with _making, _hidden("OTEL_SDK_DISABLED"):
        yield


@contextlib.contextmanager
def key_log_usable() -> Iterator[None]:
    """Hide `SSLKEYLOGFILE` during the block, with a warning, if its file is not writable.

    With such a file, creating a TLS context raises an exception.
    """
    path = os.environ.get(_KEY_LOG, "")
    try:
        if path:
            Path(path).open("a").close()
    except OSError:
        ignore(_KEY_LOG, "a file that can be written to", "none")
    else:
        path = ""
    with _hidden(*([_KEY_LOG] if path else [])):
        yield


@contextlib.contextmanager
def _hidden(*variables: str) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _are_propagators(text: str) -> bool:
    names = {name.strip() for name in text.split(",") if name.strip().lower() != "none"} if text else set()
    return not names or names <= entry_points(group="opentelemetry_propagator").names


def _is_limit(value: str) -> bool:
    text = value.strip()
    return not text or (text.isascii() and text.isdecimal() and len(text) < _LONGEST_LIMIT)


def _show(value: str) -> str:
    text = mask(value)
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
