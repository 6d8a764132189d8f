"""The exporter interface: all that a destination has to know about tensormeter.

An exporter is a class named by an entry point of the group `tensormeter_exporter`.
The delivery thread of the agent constructs it, calls `export` for one request at a time, in order, and `shutdown` once
at the end, all on that one thread.
An exporter therefore needs no locks.
It may block for as long as the timeout that it was given, and not longer.
It neither retries nor sleeps: it reports an outcome, and delivery (backoff, `Retry-After`, order, the spool) acts on it.

Outcomes are values, not exceptions.
An exception that escapes from `export` is treated as `Retry`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final, Literal, Protocol

from tensormeter.errors import SettingsError

__all__ = [
    "Accepted",
    "Exporter",
    "ExporterConfig",
    "Outcome",
    "Rejected",
    "Request",
    "Retry",
    "TooLarge",
    "Unauthorized",
    "check_exporters",
    "load_exporter",
]

_GROUP: Final = "tensormeter_exporter"

Signal = Literal["metrics", "logs"]


@dataclass(frozen=True, kw_only=True)
class ExporterConfig:
    """What an exporter is constructed with.

    Attributes:
        endpoint: Base URL of the destination, without the signal's path.
        token: Bearer token, or None. Never shown in a `repr`.
        timeout: Seconds that one `export` may take, in all.
    """

    endpoint: str
    token: str | None
    timeout: float

    def __repr__(self) -> str:
        token = "'***'" if self.token else None
        return f"ExporterConfig(endpoint={self.endpoint!r}, token={token}, timeout={self.timeout!r})"


@dataclass(frozen=True)
class Request:
    """One OTLP export request, as it lies in the spool.

    Attributes:
        id: Stable over retries and restarts, and unique in the world. A receiver that has seen it may answer at once.
        signal: Which OTLP request `body` is.
        body: The protobuf message `ExportMetricsServiceRequest` or `ExportLogsServiceRequest`, gzip-compressed.
        items: Data points or log records inside.
    """

    id: str
    signal: Signal
    body: bytes
    items: int

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, signal={self.signal!r}, items={self.items}, bytes={len(self.body)})"


@dataclass(frozen=True)
class Accepted:
    """The receiver has it.

    Attributes:
        rejected: Items that the receiver refused while it took the rest (OTLP's partial success). Never sent again.
        message: The receiver's words on that.
    """

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True)
class Retry:
    """Not now: send the same request again.

    Attributes:
        reason: For people.
        after: Seconds that the receiver asked to wait, or None.
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True)
class Rejected:
    """Never: sending the same request again cannot succeed.

    Attributes:
        reason: For people.
    """

    reason: str


@dataclass(frozen=True)
class TooLarge:
    """Not in one piece: the receiver may take it in two.

    Delivery sends the halves, under ids of their own that are the same at every attempt. A single point that is too large
    is treated as `Rejected`.

    Attributes:
        reason: For people.
    """

    reason: str


@dataclass(frozen=True)
class Unauthorized:
    """Not with this token. Delivery is parked until there is another one.

    Attributes:
        reason: For people.
    """

    reason: str


Outcome = Accepted | Retry | Rejected | TooLarge | Unauthorized


class Exporter(Protocol):
    """A destination. See the module's text for who calls it and on which thread."""

    def __init__(self, config: ExporterConfig) -> None: ...

    def export(self, request: Request) -> Outcome:
        """Send one request within the configured timeout and say how it went."""
        ...

    def shutdown(self) -> None:
        """Release connections. Called once; must not block."""
        ...


def load_exporter(name: str) -> type[Exporter]:
    """Find an exporter by its entry-point name, and import it.

    Raises:
        SettingsError: There is none; the message lists those there are.
    """
    check_exporters([name])
    (entry,) = entry_points(group=_GROUP, name=name)
    return entry.load()  # type: ignore[no-any-return]


def check_exporters(names: Iterable[str]) -> None:
    """See that there are exporters of these names, without importing them.

    Raises:
        SettingsError: There is one without; the message lists those there are.
    """
    known = entry_points(group=_GROUP).names
    for name in names:
        if name not in known:
            raise SettingsError(f"exporters: expected some of {', '.join(sorted(known))}, got {name!r}")
