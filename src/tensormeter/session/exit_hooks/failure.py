"""Descriptions of the exceptions that end runs: type and message, and the traceback, with secrets masked."""

import os
import re
import traceback
from typing import Final, NamedTuple

from tensormeter.redaction import OutputMask, environment_secrets

__all__ = ["TRACEBACK_BYTES", "Failure", "describe_failure", "describe_status"]

TRACEBACK_BYTES: Final = 64 << 10
"""Maximum size of a traceback in UTF-8. The outermost calls of a longer one are omitted."""

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_LONGEST_MESSAGE: Final = 1_000
_LONGEST_ENTRY: Final = 16_000
"""Maximum length of a traceback's entry, such as the exception's message, in characters."""


class Failure(NamedTuple):
    """Description of how a run failed.

    Attributes:
        message: Exception type and the first line of its message, or the exit status; "" if the run did not fail.
        traceback: Traceback of the exception and of those that led to it; "" if there is none.
    """

    message: str = ""
    traceback: str = ""


def describe_failure(kind: type[BaseException], error: BaseException | None) -> Failure:
    """Describe an exception. The message is empty if it is not a failure, as for `sys.exit(0)`.

    Only an `Exception` has its message and its traceback recorded: Ctrl-C and exits are described by type or status. This
    reads source files, and never raises.
    """
    if issubclass(kind, SystemExit):
        return Failure(describe_status(getattr(error, "code", None)))
    name = kind.__qualname__
    if not issubclass(kind, Exception) or error is None:
        return Failure(name)
    try:
        mask = OutputMask(environment_secrets(os.environ))
        entries = list(traceback.TracebackException.from_exception(error, compact=True).format())
        lines = _message(error).splitlines()
        message = mask.text(lines[0] if lines else "")
        return Failure(f"{name}: {_shortened(message, _LONGEST_MESSAGE)}" if message else name, _bounded(entries, mask))
    except Exception:  # the exception's own code may raise anything
        return Failure(name)


def describe_status(status: object) -> str:
    """Describe an exit status; "" if it indicates success."""
    if status is None or status == 0:
        return ""
    if isinstance(status, int):
        return f"exit status {int(status)}"
    text = OutputMask(environment_secrets(os.environ)).text(_message(status).partition("\n")[0])
    return f"exit status 1: {_shortened(text, _LONGEST_MESSAGE)}" if text else "exit status 1"


def _message(error: object) -> str:
    try:
        return _escaped(str.__str__(str(error)))
    except Exception:  # the exception's own code may raise anything
        return ""


def _bounded(entries: list[str], mask: OutputMask) -> str:
    """Join entries of a traceback, without the first ones if all of them are too large."""
    text = mask.text(_escaped("".join(_shortened(entry, _LONGEST_ENTRY) for entry in entries)))
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > TRACEBACK_BYTES:
        note = b"  [outer calls omitted]\n"
        kept = encoded[len(note) - TRACEBACK_BYTES :]
        encoded = note + kept[kept.find(b"\n") + 1 :]
    return encoded.decode("utf-8", "replace")


def _escaped(text: str) -> str:
    r"""Escape control characters except line breaks and tabs, as in ``\x1b``."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _shortened(text: str, limit: int) -> str:
    """Return a text whose middle is omitted if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"
