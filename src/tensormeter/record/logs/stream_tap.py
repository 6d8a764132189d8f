"""Taps on `sys.stdout` and `sys.stderr`, which copy what is written and leave the streams as they are.

A tap replaces only the method `write` of the stream object. The object itself, its file descriptor, buffering, encoding and
`isatty()` stay the same, and each text is written by its own call, at once. References to the stream that handlers or
progress bars hold are tapped too, and code that replaces `sys.stdout` for a while is not disturbed.
"""

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any, Final

from tensormeter.ring.format import ConsoleKind

__all__ = ["StreamTap", "console_streams"]

_LOGGED: Final = {
    ConsoleKind.STDOUT: ConsoleKind.LOGGED_STDOUT,
    ConsoleKind.STDERR: ConsoleKind.LOGGED_STDERR,
}


def console_streams() -> list[tuple[ConsoleKind, Any]]:
    """Return the streams of this process's console, without closed streams and streams that only collect text."""
    streams: list[tuple[ConsoleKind, Any]] = []
    for kind, name in ((ConsoleKind.STDOUT, "stdout"), (ConsoleKind.STDERR, "stderr")):
        stream: Any = getattr(sys, name, None)
        if isinstance(stream, io.StringIO):  # `contextlib.redirect_stdout`
            stream = getattr(sys, f"__{name}__", None)
        if stream is not None and all(stream is not other for _, other in streams):
            streams.append((kind, stream))
    return streams


class StreamTap:
    """A tap on one stream."""

    def __init__(self, stream: Any, kind: ConsoleKind, put: Callable[[int, str], None], logging_in: set[int]) -> None:
        """
        Args:
            stream: Text stream.
            kind: `STDOUT` or `STDERR`.
            put: Function that receives the kind and each text. Its exceptions are ignored.
            logging_in: Threads in which handlers of `logging` are writing a record that has been captured.

        Raises:
            AttributeError, TypeError: The stream's `write` cannot be replaced.
        """
        self._stream = stream
        self._was_own = "write" in getattr(stream, "__dict__", ())
        self._original = original = stream.write
        plain, logged = int(kind), int(_LOGGED[kind])
        state = self._state = [True]

        def write(text: Any, *others: Any) -> Any:
            if state[0]:
                try:  # noqa: SIM105 - `suppress` is slower
                    # Copy first, so that the copy precedes the bytes in the file.
                    put(logged if logging_in and get_ident() in logging_in else plain, text)
                except Exception:  # noqa: S110 - the program's output matters more
                    pass
            return original(text, *others)

        self._write = stream.write = write

    def remove(self) -> None:
        """Restore the stream's `write`. If other code has replaced it meanwhile, only stop copying."""
        self._state[0] = False
        with suppress(AttributeError, TypeError):
            if self._stream.write is self._write:
                if self._was_own:
                    self._stream.write = self._original
                else:
                    del self._stream.write
