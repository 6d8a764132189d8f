"""The way into the experiment server for scripts and notebooks."""

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


class Client:
    """Reads runs from an experiment server.

    Every method blocks until the server has answered. None retries: a server that is away, or that answers with an error,
    is a `TensormeterError` that says what to do. Threads: any number may use one client at once. After a fork each
    process needs one of its own.

    ```python
    client = tensormeter.Client()
    for run in client.runs("demo", filter='state = "finished"', sort="summary.eval/loss.min", limit=10):
        print(run.name, run.config["lr"], run.summary["eval/loss"].min)
    frame = client.run("852wwcq9").series("train/loss", "eval/loss").to_pandas()
    ```
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 60.0) -> None:
        """Create a client; it connects to nothing yet.

        Args:
            url: Of the server; by default `TENSORMETER_ENDPOINT`, or this machine's.
            token: By default `TENSORMETER_TOKEN`, or what is in `TENSORMETER_TOKEN_FILE`.
            timeout: Seconds without a byte of the answer after which a call fails.

        Raises:
            SettingsError: The URL or the token cannot be used.
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
        """Close idle connections. Runs and images that were read open others if they must."""
        self._connection.close()

    def projects(self) -> list[str]:
        """The names of all projects."""
        return [one["name"] for one in self._connection.get("projects")["projects"]]

    def runs(
        self,
        project: str | None = None,
        *,
        filter: str = "",
        sort: str = "",
        limit: int | None = None,
        fields: Sequence[str] | None = None,
    ) -> Iterator[StoredRun]:
        """Runs, read a page at a time while they are iterated over.

        Args:
            project: Only of this one.
            filter: Such as `state = "running" and config.lr > 1e-4`; docs/api.md has the language. Archived runs are left
                out unless it speaks of `archived`.
            sort: Fields between commas, `-` for descending; the newest first by default.
            limit: How many at most; None: all.
            fields: Which parts of configuration and summary to read, such as `config.lr`; None: all. Few are faster.

        Raises:
            TensormeterError: When iteration begins: filter or order cannot be understood; the server gives no answer.
        """
        named = None if fields is None else ",".join(fields)
        offset = 0
        while limit is None or offset < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - offset)
            page = self._connection.get(
                "runs", project=project, filter=filter, sort=sort, limit=size, offset=offset, fields=named
            )
            for document in page["runs"]:
                yield StoredRun(self._connection, document)
            offset += size
            if offset >= page["total"]:
                return

    def run(self, selector: str, project: str | None = None) -> StoredRun:
        """The run whose id is `selector`, or else whose name it is, or whose id begins with it.

        Raises:
            UsageError: No run is meant by it, or several are; the message names some.
        """
        return StoredRun(self._connection, find_run(self._connection, selector, project))

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
        """Series of many runs at once; arguments as for `StoredRun.series`, but sampled unless `max_points` is 0."""
        if isinstance(metrics, str) or not metrics:
            raise UsageError(f"metrics: expected a list of names, got {metrics!r}")
        return query_series(
            self._connection, [(run.project, run.id) for run in runs], list(dict.fromkeys(metrics)),
            x=x, start=start, stop=stop, max_points=max_points, process=process, attempt=attempt,
            attributes=attributes, scope=scope, unit=unit,
        )  # fmt: skip
