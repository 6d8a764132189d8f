"""The command `tensormeter import`, which sends files in the OTLP file format to a server."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import click
from rich.console import Console
from rich.markup import escape

from tensormeter.cli.options import endpoint_option
from tensormeter.errors import EncodingError, TensormeterError
from tensormeter.exporter import Accepted, Exporter, ExporterConfig, Request, Retry, load_exporter
from tensormeter.otlp.json_lines import decode_line
from tensormeter.retrying import exponential_delays, retry_delay
from tensormeter.settings import Settings

__all__ = ["import_"]

_LONGEST_LINE: Final = 256 << 20
_ATTEMPTS: Final = 6
_LONGEST_RETRY_AFTER: Final = 60.0


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@endpoint_option
def import_(files: tuple[Path, ...], endpoint: str | None) -> None:
    """Send JSON lines files from the `jsonl` destination or the Collector's `file` exporter to a server.

    Re-importing a file is safe: the server recognizes each line by its contents, and skips duplicates. Lines that are not OTLP are
    reported and skipped; the exit status is then 1.
    """
    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    exporter = load_exporter("experiment")(
        ExporterConfig(
            endpoint=settings.endpoint,
            token=settings.token,
            timeout=settings.export_timeout,
            destination="experiment",
        ),
    )
    console = Console(highlight=False)
    skipped = 0
    try:
        for path in files:
            items = 0
            with path.open("rb") as file, console.status(escape(str(path))) as status:
                for number, line in _lines(file):
                    try:
                        items += _send(exporter, line)
                    except EncodingError as error:
                        skipped += 1
                        console.print(f"{escape(str(path))}:{number}: skipped, {escape(str(error))}")
                    status.update(f"{escape(str(path))}: {items:,} items")
            console.print(f"{escape(str(path))}: {items:,} items")
    finally:
        exporter.shutdown()
    if skipped:
        raise SystemExit(1)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if line.strip():
            yield number, line


def _send(exporter: Exporter, line: bytes) -> int:
    """Send one line, with retries. Return the number of accepted items.

    Raises:
        EncodingError: The line is not OTLP, or the server refused some of its items.
        TensormeterError: The server refused the request or did not respond.
    """
    signal, body, items = decode_line(line)
    digest = hashlib.sha256(signal.encode() + body).hexdigest()[:32]
    request = Request(f"import-{digest}", signal, gzip.compress(body, 1), items)
    delays = exponential_delays(0.5, _LONGEST_RETRY_AFTER)
    for attempt in range(_ATTEMPTS):
        match exporter.export(request):
            case Accepted(rejected, message):
                if rejected:
                    raise EncodingError(f"the server refused {rejected} of {items} items: {message}")
                return items
            case Retry(after=after) if attempt + 1 < _ATTEMPTS:
                wait = retry_delay(next(delays), after, at_most=_LONGEST_RETRY_AFTER)
                threading.Event().wait(wait)
            case outcome:
                raise TensormeterError(outcome.reason)
    raise AssertionError("unreachable")
