"""OTLP JSON lines: files of the `jsonl` destination or of the Collector's `file` exporter."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tensormeter.errors import EncodingError
from tensormeter.importers.bounded_parsing import has_too_many_values
from tensormeter.importers.registry import FileSource, ImportContext, Options
from tensormeter.otlp.json_lines import decode_line

__all__ = ["OtlpLines", "find"]

_LONGEST_LINE: Final = 256 << 20
_MOST_VALUES: Final = 5_000_000
_LONGEST_START: Final = 4096
_ROOTS: Final = (b'"resourceMetrics"', b'"resourceLogs"')


def find(address: str, options: Options) -> Iterator["OtlpLines"]:
    """Yield the file at a path if its first line begins like an OTLP request."""
    path = Path(address)
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_LONGEST_START).lstrip()
        if start.startswith(b"{") and start[1:].lstrip().startswith(_ROOTS):
            yield OtlpLines(path)


@dataclass(frozen=True)
class OtlpLines(FileSource):
    """One file. Its requests may belong to any number of runs, which are not counted."""

    def send(self, context: ImportContext) -> None:
        """Send each line as one request. Lines that are not OTLP are reported and skipped."""
        with self.path.open("rb") as file:
            for number, line in _lines(file):
                context.advance(len(line))
                try:
                    if has_too_many_values(line, _MOST_VALUES):
                        raise EncodingError(f"more than {_MOST_VALUES:,} values")
                    signal, body, items = decode_line(line)
                except EncodingError as error:
                    context.tally.report(f"{self.path}:{number}: skipped, {error}")
                    continue
                context.sender.send(signal, body, items)
                if signal == "metrics":
                    context.tally.points += items
                else:
                    context.tally.logs += items


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if line.strip():
            yield number, line
