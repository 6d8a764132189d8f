"""Events and log lines of a run."""

from typing import Any, Literal, TypeVar

from tensormeter.client.code_records import RecordedArtifact, RecordedCode
from tensormeter.client.connection import Connection
from tensormeter.client.logs import LogLines, severity_number
from tensormeter.client.records import (
    Record,
    RecordedImage,
    RecordedMedia,
    RecordedTable,
    RecordedText,
    image_bodies,
    merge_repeats,
)
from tensormeter.conventions.semconv import (
    ALERT_EVENT,
    ARTIFACT_EVENT,
    AUDIO_EVENT,
    FIGURE_EVENT,
    HTML_EVENT,
    IMAGE_EVENT,
    IMAGES_EVENT,
    RUN_CODE,
    TABLE_EVENT,
    TEXT_EVENT,
    VIDEO_EVENT,
)

__all__ = ["RunEvents"]

_M = TypeVar("_M", bound=RecordedMedia)


class RunEvents:
    """The methods of `StoredRun` that read events, media, code, artifacts and log lines."""

    id: str
    project: str
    _connection: Connection

    def logs(
        self,
        search: str = "",
        *,
        pattern: str | None = None,
        severity: str | int = 0,
        rank: int | None = None,
        process: str | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
        start: int | None = None,
        stop: int | None = None,
        tail: int | None = None,
    ) -> LogLines:
        """Return the lines of the run's log: console output and records of logging libraries, of all attempts.

        Iterate over the result, call its `to_pandas`, or `follow` the lines of a run that is in progress.

        Args:
            search: Text that the lines contain. The case of ASCII letters is ignored. Default: all lines.
            pattern: Regular expression that the lines contain, as of Python's `re` with `re.ASCII`. The client applies it to
                all lines that it reads; some patterns need the package `google-re2` to be fast. Default: all lines.
            severity: Lowest severity: "TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL" or an OTLP number. Lines
                without a severity have the lowest one.
            rank: Rank of the process. Default: all processes.
            process: ID of a process. Default: all processes.
            stream: Console stream. Default: all lines, including those that were not printed.
            start: Start of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            stop: Exclusive end of the time range, in nanoseconds since the Unix epoch. Default: no limit.
            tail: Number of lines, the newest ones. Default: all lines.
        """
        query: dict[str, str | float | None] = {
            "search": search, "severity": severity_number(severity), "rank": rank, "process": process, "stream": stream,
            "start": start, "stop": stop,
        }  # fmt: skip
        return LogLines(self._connection, (self.project, self.id), query, pattern=pattern, tail=tail)

    def events(self, name: str | None = None, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read events (log records), newest first.

        Args:
            name: Name of the events. A trailing `*` matches any ending. Default: all names.
            key: Key under which the events were logged. Default: all keys.
            limit: Maximum number of events, up to 10,000.
        """
        return [Record.of(event) for event in self._events(name, key, limit)]

    def alerts(self, limit: int = 1000) -> list[Record]:
        """Read the alerts that the training script and the server raised, newest first. The maximum `limit` is 10,000."""
        return self.events(ALERT_EVENT, limit=limit)

    def texts(self, key: str | None = None, limit: int = 1000) -> list[RecordedText]:
        """Read texts, newest first. A repeated short text is returned once. See `events` for the arguments."""
        return merge_repeats(RecordedText.of(event) for event in self._events(TEXT_EVENT, key, limit))

    def tables(self, key: str | None = None, limit: int = 1000) -> list[RecordedTable]:
        """Read tables, newest first. See `events` for the arguments."""
        return [RecordedTable.of(event) for event in self._events(TABLE_EVENT, key, limit)]

    def images(self, key: str | None = None, limit: int = 1000) -> list[RecordedImage]:
        """Read images, newest first; `RecordedImage.read` downloads one. See `events` for the arguments.

        Images that were logged as a list or a batch follow each other in their order.
        """
        images = []
        for event in self._events(f"{IMAGE_EVENT}*", key, limit):
            bodies = image_bodies(event["body"]) if event["name"] == IMAGES_EVENT else [event["body"]]
            images += [self._media(RecordedImage, event | {"body": body}) for body in bodies]
        return images

    def videos(self, key: str | None = None, limit: int = 1000) -> list[RecordedMedia]:
        """Read videos, newest first; `RecordedMedia.read` downloads one. See `events` for the arguments."""
        return [self._media(RecordedMedia, event) for event in self._events(VIDEO_EVENT, key, limit)]

    def audio(self, key: str | None = None, limit: int = 1000) -> list[RecordedMedia]:
        """Read audio clips, newest first; `RecordedMedia.read` downloads one. See `events` for the arguments."""
        return [self._media(RecordedMedia, event) for event in self._events(AUDIO_EVENT, key, limit)]

    def html(self, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read HTML documents, newest first. Each document is in `body["html"]`. See `events` for the arguments."""
        return self.events(HTML_EVENT, key, limit)

    def figures(self, key: str | None = None, limit: int = 1000) -> list[Record]:
        """Read Plotly figures, newest first. See `events` for the arguments.

        The JSON of a figure is in `body["figure"]`, for `plotly.io.from_json`.
        """
        return self.events(FIGURE_EVENT, key, limit)

    def read_media(self, digest: str) -> bytes:
        """Download an image, a video or an audio clip, such as one in a table's cell."""
        return self._connection.content("runs", self.id, "media", digest, project=self.project)[1]

    def _media(self, kind: type[_M], event: dict[str, Any]) -> _M:
        run = self.project, self.id
        return kind.of(event, connection=self._connection, run=run)

    def artifacts(self, name: str | None = None, limit: int = 1000) -> list[RecordedArtifact]:
        """Read where files and folders of the run are, such as checkpoints, newest first.

        Args:
            name: Name of the artifacts. Default: all names.
            limit: Maximum number of events, up to 10,000. A large artifact has two events.
        """
        events = RecordedArtifact.latest(self._events(ARTIFACT_EVENT, name, limit))
        return [RecordedArtifact.of(event) for event in events]

    @property
    def code(self) -> RecordedCode | None:
        """Code of the latest attempt: commit, uncommitted changes, source of the script, and packages; None if not recorded.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        events = self._events(RUN_CODE, None, 1)
        return RecordedCode.of(events[0]) if events else None

    def _events(self, name: str | None, key: str | None, limit: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        before = None
        while len(events) < limit:
            document = self._connection.get(
                "runs", self.id, "events",
                project=self.project, name=name, key=key, limit=limit - len(events), before=before,
            )  # fmt: skip
            events += document["events"]
            before = document.get("next")
            if not before:
                break
        return events
