"""The `Client` of an experiment server, for scripts and notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from tensormeter.client.connection import Connection
from tensormeter.client.run import StoredRun
from tensormeter.client.selector import find_run
from tensormeter.client.series import SeriesList, query_series
from tensormeter.errors import UsageError

__all__ = ["Client"]

_PAGE: Final = 500
"""Number of runs per request."""


class Client:
    """Client that reads runs from an experiment server.

    Each method blocks until the server responds. Requests are not retried: if the server is unreachable or returns an
    error, the method raises a `TensormeterError` whose message suggests a remedy. The client is thread-safe. After a
    fork, create a new client in the child.

    ```python
    client = tensormeter.Client()
    for run in client.runs("demo", filter='state = "finished"', sort="summary.eval/loss.min", limit=10):
        print(run.name, run.config["lr"], run.summary["eval/loss"].min)
    frame = client.run("852wwcq9").series("train/loss", "eval/loss").to_pandas()
    ```
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 60.0) -> None:
        """Create a client. The first request opens the connection.

        Args:
            url: URL of the server. Default: `TENSORMETER_ENDPOINT`, or the server on this machine.
            token: Access token. Default: `TENSORMETER_TOKEN`, or the contents of the file named by
                `TENSORMETER_TOKEN_FILE`.
            timeout: Maximum time to wait for the next byte of a response, in seconds.

        Raises:
            SettingsError: The URL or the token is invalid.
        """
        self._connection = Connection(url, token, timeout)

    def __repr__(self) -> str:
        return f"Client({self._connection.endpoint!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections. Existing run and image objects open new connections when needed."""
        self._connection.close()

    def projects(self) -> list[str]:
        """Return the names of all projects."""
        return [project["name"] for project in self._connection.get("projects")["projects"]]

    def runs(
        self,
        project: str | None = None,
        *,
        filter: str = "",
        sort: str = "",
        limit: int | None = None,
        fields: Sequence[str] | None = None,
    ) -> Iterator[StoredRun]:
        """Iterate over runs, reading them page by page.

        Args:
            project: Project of the runs. Default: all projects.
            filter: Condition on runs, such as `state = "running" and config.lr > 1e-4`; see docs/api.md. Default: all runs.
                Archived runs are omitted unless the condition contains `archived`.
            sort: Comma-separated fields to sort by; the prefix `-` means descending order. Default: newest first.
            limit: Maximum number of runs. Default: no limit.
            fields: Fields of the configuration and summary to read, such as `config.lr`, or all with `config` or
                `summary`. Default: the configuration; each run then reads its summary from the server when
                `StoredRun.summary` is first used.

        Raises:
            TensormeterError: The filter or sort order is invalid, or the server does not respond. The error is raised
                during iteration.
        """
        names = "config" if fields is None else ",".join(map(_quote, fields))
        offset: int | None = 0
        while offset is not None and (limit is None or offset < limit):
            size = _PAGE if limit is None else min(_PAGE, limit - offset)
            page = self._connection.get(
                "runs", project=project, filter=filter, sort=sort, limit=size, offset=offset, fields=names
            )
            for document in page["runs"]:
                yield StoredRun(self._connection, document, has_summary=fields is not None)
            offset = page["next"]  # a page may contain fewer runs than requested

    def run(self, selector: str, project: str | None = None) -> StoredRun:
        """Return one run.

        Args:
            selector: ID of the run, its name, or the beginning of its ID, in this order of precedence.
            project: Project of the run. Default: all projects.

        Raises:
            UsageError: No run matches, or several runs match; the message names up to five of them.
            TensormeterError: The server does not respond or returns an error.
        """
        return StoredRun(self._connection, find_run(self._connection, selector, project, fields="config"))

    def series(
        self,
        runs: Sequence[StoredRun],
        metrics: Sequence[str],
        *,
        x: str = "step",
        start: float | None = None,
        stop: float | None = None,
        max_points: int = 1000,
        process: str | None = None,
        attempt: int | Literal["all"] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scope: str | None = None,
        unit: str | None = None,
    ) -> SeriesList:
        """Read series of several runs at once.

        Args:
            runs: Runs to read.
            metrics: Names of gauges and sums.
            x: X axis; see `StoredRun.series` for this and the following arguments.
            start: Start of the x range.
            stop: Exclusive end of the x range.
            max_points: Maximum number of points per series: at least 4, or 0 for all points.
            process: ID of a process.
            attempt: Number of an attempt, or "all".
            attributes: Attributes that the series must have.
            scope: Name of the instrumentation scope.
            unit: Unit of the series.

        Raises:
            UsageError: `metrics` is empty or not a list of names.
            TensormeterError: The server does not respond or returns an error.
        """
        if isinstance(metrics, str) or not metrics:
            raise UsageError(f"metrics: expected a list of names, got {metrics!r}")
        return query_series(
            self._connection, [(run.project, run.id) for run in runs], list(dict.fromkeys(metrics)),
            x=x, start=start, stop=stop, max_points=max_points, process=process, attempt=attempt,
            attributes=attributes, scope=scope, unit=unit,
        )  # fmt: skip


def _quote(name: str) -> str:
    """Enclose a field name in backquotes if it contains commas or backquotes and is not enclosed already."""
    if name.startswith("`") and name.endswith("`") and len(name) > 1:
        return name
    return "`" + name.replace("`", "``") + "`" if "," in name or "`" in name else name
