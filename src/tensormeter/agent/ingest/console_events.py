"""Log records from the lines that a process prints and from the records of its `logging`, with secrets masked."""

import json
import os
from typing import Any, Final

from tensormeter.agent.ingest.console_lines import Line
from tensormeter.conventions.semconv import LOG_STREAM
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Event, Scope
from tensormeter.redaction import OutputMask, environment_secrets
from tensormeter.ring.format import ConsoleKind

__all__ = ["ConsoleEvents"]

_STDOUT: Final = (9, "INFO")
_STDERR: Final = (13, "WARN")
"""Severities. A progress bar on standard error is INFO."""

_STREAMS: Final = {ConsoleKind.STDOUT: "stdout", ConsoleKind.STDERR: "stderr"}


class ConsoleEvents:
    """Converter for the output of one process. Lines of a stream must come in their order."""

    def __init__(self, pid: int | None = None) -> None:
        """
        Args:
            pid: ID to add to the records, if they come from another process than the run's, such as a forked child.
        """
        secrets = environment_secrets(os.environ)
        self._masks = {kind: OutputMask(secrets) for kind in ConsoleKind}
        self._origin: dict[str, Any] = {} if pid is None else {"process.pid": pid}

    def notice(self, at: int, text: str) -> Event:
        """Return a log record with a message of tensormeter's own."""
        return Event("", at, text, severity_number=_STDERR[0], severity_text=_STDERR[1])

    def line(self, kind: ConsoleKind, line: Line) -> Event:
        """Return the log record for a line."""
        number, text = _STDERR if kind == ConsoleKind.STDERR and not line.redrawn else _STDOUT
        return Event(
            "",
            line.time,
            self._masks[kind].line(line.text),
            {LOG_STREAM: _STREAMS[kind], **self._origin},
            severity_number=number,
            severity_text=text,
        )

    def record(self, at: int, data: bytes) -> Event:
        """Return the log record for a record of `logging`.

        Raises:
            EncodingError: The data is damaged.
        """
        mask = self._masks[ConsoleKind.LOG_RECORD].text
        try:
            fields = json.loads(data)
            attributes = {
                "code.file.path": str(fields["path"]),
                "code.function.name": str(fields["function"]),
                "code.line.number": int(fields["line"]),
                **self._origin,
            }
            for name, text in fields.get("exception", {}).items():
                attributes[f"exception.{name}"] = mask(str(text))
            return Event(
                "",
                at,
                mask(fields["message"]),
                attributes,
                severity_number=int(fields["severity"]),
                severity_text=str(fields["level"]),
                scope=Scope(str(fields["name"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncodingError(f"a log record is damaged: {type(error).__name__}: {error}") from None
