"""The kinds of sources that can be imported, and the interface of their modules.

A module of a kind has a function ``find(address: str, options: Options) -> Iterable[RunSource]``, which returns the runs at
a path or URI, and nothing if it is of another kind. It reads as little as possible, and never changes files. It raises
`SourceError` if the address is of its kind but cannot be read.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

from tensormeter.errors import EncodingError, TensormeterError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.sender import Sender
from tensormeter.importers.tally import Tally

__all__ = [
    "KINDS",
    "FileSource",
    "ImportContext",
    "Options",
    "RunSource",
    "ServerApi",
    "SourceError",
    "find_sources",
    "skipping_damage",
]

KINDS: Final = {
    "archive": "tensormeter.importers.archive",
    "mlflow": "tensormeter.importers.mlflow",
    "trackio": "tensormeter.importers.trackio",
    "neptune": "tensormeter.importers.neptune",
    "wandb": "tensormeter.importers.wandb",
    "tensorboard": "tensormeter.importers.tensorboard",
    "otlp-jsonl": "tensormeter.importers.otlp_lines",
    "table": "tensormeter.importers.table",
}
"""Modules by kind, in the order in which they are asked about an address of unknown kind."""


class SourceError(TensormeterError):
    """A source cannot be read, or only in part. The message names the file, the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an import.

    Attributes:
        project: Project for all runs, or "" for the one that the source names.
        name: Name for the run, or "" for the one that the source names. Only one run can have it.
        step_column: Column of a table that contains the step, or "" to guess.
        time_column: Column of a table that contains the time, or "" to guess.
        run_column: Column of a table that contains the run, or "" for one run per table.
        default_project: Project of runs whose source names none.
    """

    project: str = ""
    name: str = ""
    step_column: str = ""
    time_column: str = ""
    run_column: str = ""
    default_project: str = "imported"


class ServerApi(Protocol):
    """The HTTP API of the server that receives an import."""

    def get(self, *path: str, **query: str | float | None) -> dict[str, Any]:
        """Request a path under /api/v1/, and return the JSON document. Raises TensormeterError."""
        ...

    def send(self, method: str, *path: str, document: Mapping[str, Any] | None = None, **query: str | None) -> Any:
        """Send a request with a method other than GET, and return the JSON document. Raises TensormeterError."""
        ...


@dataclass
class ImportContext:
    """The import that a source is read for.

    Attributes:
        sender: Destination of the requests.
        tally: Counts of the import.
        options: Options of the import.
        advance: Function that is called with the number of bytes read since the last call, for the progress bar.
        note: Function that shows a message, such as which column was taken for the step.
        api: The server's API; None if nothing is sent.
    """

    sender: Sender
    tally: Tally
    options: Options = field(default_factory=Options)
    advance: Callable[[int], None] = lambda size: None
    note: Callable[[str], None] = lambda text: None
    api: ServerApi | None = None

    def run(self) -> RunRequests:
        """Return an object that sends one run."""
        return RunRequests(self.sender, self.tally)

    def project(self, named: str = "") -> str:
        """Return the project for a run whose source names the given one, or none."""
        return self.options.project or named or self.options.default_project

    def name(self, named: str) -> str:
        """Return the name for a run that has the given name in its source."""
        return self.options.name or named


class RunSource(Protocol):
    """One run, or several runs that can only be read together, such as those in a table.

    Attributes:
        label: Path or other name, for messages.
        size: Number of bytes to read, for the progress bar; 0 if unknown.
    """

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int: ...

    def send(self, context: ImportContext) -> None:
        """Read the source and send its runs.

        Raises:
            SourceError: The source cannot be read, or only in part. The readable part has been sent.
            OSError: A file cannot be read.
            TensormeterError: The requests could not be sent.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Label and size of a source that is read from one file.

    Attributes:
        path: Path of the file.
    """

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@contextmanager
def skipping_damage(tally: Tally, label: str) -> Iterator[None]:
    """Report an error that a source's contents cause, so that the import continues with what follows the block.

    Modules of a kind count and skip damaged items. This is the last resort, because libraries raise many types.

    Args:
        tally: Counts of the import.
        label: Name of the run or source that the block reads.

    Raises:
        TensormeterError: The requests could not be sent. Other errors are reported.
    """
    try:
        yield
    except SourceError as error:
        tally.report(str(error))
    except OSError as error:
        tally.report(f"{label}: cannot read it ({error.strerror or error})")
    except Exception as error:
        if isinstance(error, TensormeterError) and not isinstance(error, EncodingError):
            raise
        tally.leave_out("rest of runs that are damaged")
        tally.report(
            f"{label}: damaged ({type(error).__name__}: {str(error)[:200]}); imported what had been read before"
        )


_Find = Callable[[str, Options], Iterable[RunSource]]


def find_sources(address: str, kind: str, options: Options) -> tuple[str, list[RunSource]]:
    """Return the kind of an address and the runs that it contains.

    Args:
        address: Path or URI.
        kind: Key of `KINDS`, or "auto" to ask each kind in order.
        options: Options of the import.

    Raises:
        SourceError: The address does not exist, is of no known kind, or has no runs.
    """
    if not address:
        raise SourceError("the path is empty; to import the current folder, pass .")
    is_uri = "://" in address
    if not is_uri and not Path(address).exists():
        raise SourceError(f"{address}: no such file or folder; check the path")
    for name in KINDS if kind == "auto" else (kind,):
        find = cast("_Find", importlib.import_module(KINDS[name]).find)
        sources = list(find(address, options))
        if sources:
            return name, sources
    if kind == "auto":
        raise SourceError(f"{address}: found no runs of a known kind; choose one of {', '.join(KINDS)} with --format")
    raise SourceError(f"{address}: found no runs of the kind {kind}; choose another --format, or leave it out")
