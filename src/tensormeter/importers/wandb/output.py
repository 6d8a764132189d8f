"""Console output of a W&B run, from pieces of text to lines."""

from tensormeter.importers.run_requests import RunRequests

__all__ = ["ConsoleOutput"]

_STDERR: int = 0
_INFO, _WARN = 9, 13
_LONGEST_LINE = 1 << 20


class ConsoleOutput:
    """Lines of both streams. A line that was redrawn with carriage returns keeps its last state. Not thread-safe."""

    def __init__(self, requests: RunRequests) -> None:
        self._requests = requests
        self._pending: dict[int, str] = {}

    def add(self, stream: int, time: int, text: str) -> None:
        """Add a piece of output.

        Args:
            stream: 0 for standard error and 1 for standard output, as in W&B's records.
            time: Time in nanoseconds since the Unix epoch.
            text: Text, which may contain any number of line breaks.
        """
        for start in range(0, len(text), _LONGEST_LINE):
            *lines, rest = (self._pending.get(stream, "") + text[start : start + _LONGEST_LINE]).split("\n")
            for line in lines:
                self._line(stream, time, line)
            redrawn = rest.rstrip("\r").rfind("\r")  # the states before are not needed
            self._pending[stream] = rest[max(redrawn, 0) :][-_LONGEST_LINE:]

    def flush(self, time: int) -> None:
        """Send the lines without a line break at the end."""
        for stream, rest in self._pending.items():
            if rest:
                self._line(stream, time, rest)
        self._pending.clear()

    def _line(self, stream: int, time: int, line: str) -> None:
        redrawn = "\r" in line.rstrip("\r")
        text = line.rstrip("\r").rpartition("\r")[2]
        if text:
            severity = _WARN if stream == _STDERR and not redrawn else _INFO
            self._requests.log(time, severity, text, stream="stderr" if stream == _STDERR else "stdout")
