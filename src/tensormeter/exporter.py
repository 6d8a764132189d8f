"""The exporter interface: all that a destination has to know about tensormeter.

An exporter is a class named by an entry point of the group `tensormeter_exporter`.
A delivery thread of the agent constructs it, calls `export` for one request at a time, in order, and `shutdown` once
at the end, all on that one thread.
An exporter therefore needs no locks.

Metrics and logs come to one instance, in the order in which they were recorded.
An exporter that has no use for that order sets `independent_signals`: delivery then makes one instance for each signal, with
a thread, retries and a place in the queue of its own, so a receiver that refuses one signal still gets the other.
It may block for as long as the timeout that it was given, and not longer.
It neither retries nor sleeps: it reports an outcome, and delivery (backoff, `Retry-After`, order, the spool) acts on it.

A receiver may accept a request before its disk has it, and say later what is durable: what survives a loss of power there. Then
`Accepted` has a `durability`, and the exporter a method `durability()`, which asks. Delivery keeps such a request in the spool until it is
durable, and sends it again, under the same id, when the receiver's epoch changes. Where an exporter says nothing about it, a
request leaves the spool when it is accepted.

Outcomes are values, not exceptions.
An exporter that cannot write some of the items writes the others and returns `Accepted` with their number in `rejected`.
An exception that escapes from `export` should leave nothing of the request behind. An outage (`outages.is_outage`: network, disk,
a package that is missing) is treated as `Retry`. After any other exception delivery tries the request three times, the last time with
a new exporter, and then treats the exception as `Rejected` with `divide`: the item that causes it is set aside.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from tensormeter.conventions.attempt_number import Member
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.environment.variables import importing_sdk
from tensormeter.errors import SettingsError

__all__ = [
    "Accepted",
    "AttemptNumber",
    "AttemptQuestion",
    "Durability",
    "Exporter",
    "ExporterConfig",
    "Outcome",
    "Rejected",
    "Request",
    "Retry",
    "Signal",
    "TooLarge",
    "Unauthorized",
    "check_exporters",
    "load_exporter",
]

_GROUP: Final = "tensormeter_exporter"
_DESTINATION: Final = re.compile(r"[\w-]+(:[\w-]+)?")


@dataclass(frozen=True, kw_only=True)
class ExporterConfig:
    """What an exporter is constructed with.

    Attributes:
        endpoint: Base URL of the destination, without the signal's path.
        token: Bearer token, or None. Never shown in a `repr`.
        timeout: Seconds that one `export` may take, in all.
        destination: As the settings name it: the entry point, and behind a colon what tells it from others of its kind.
        options: The options that the settings give for this destination.
        state: A folder for what the exporter must remember as long as requests may come again, or None. It goes when the
            run is delivered. It need not exist yet.
        signals: Signals that this instance will be given: both, or one if the exporter has `independent_signals`.
    """

    endpoint: str
    token: str | None
    timeout: float
    destination: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    state: Path | None = None
    signals: tuple[Signal, ...] = SIGNALS

    def __repr__(self) -> str:
        token = "'***'" if self.token else None
        return (
            f"ExporterConfig(endpoint={self.endpoint!r}, token={token}, timeout={self.timeout!r}, "
            f"destination={self.destination!r}, options={dict(self.options)!r}, state={self.state!r})"
        )

    @property
    def label(self) -> str:
        """What stands behind the colon in the destination's name, or ""."""
        return self.destination.partition(":")[2]

    def options_or(self, **defaults: str) -> dict[str, str]:
        """Every option of an exporter, with the given value or its default.

        Raises:
            SettingsError: An option is given that the exporter does not have.
        """
        unknown = sorted(self.options.keys() - defaults.keys())
        if unknown:
            known = ", ".join(defaults) or "none"
            raise SettingsError(f"{self.destination}: expected options {known}, got {', '.join(unknown)}")
        return defaults | dict(self.options)


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
class Durability:
    """How far a receiver's disk has what it has accepted.

    Attributes:
        epoch: Names the time since the receiver started, not empty. Numbers of different epochs cannot be compared: what was not
            durable in an earlier one may be lost.
        number: Number of the accepted request in the epoch; those of later requests are greater.
        durable: Requests with numbers up to this one survive a loss of power at the receiver.
    """

    epoch: str
    number: int
    durable: int


@dataclass(frozen=True)
class Accepted:
    """The receiver has it.

    Attributes:
        rejected: Items that the receiver refused while it took the rest (OTLP's partial success). Never sent again.
        message: The receiver's words on that.
        durability: How far the receiver's disk has it; None if the receiver says nothing about that.
    """

    rejected: int = 0
    message: str = ""
    durability: Durability | None = None


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
        divide: Whether a part of the request may be accepted. Delivery then divides the request, under ids of their own that
            are the same at every attempt, until what is refused stands alone, and sets that aside. At last a single row is divided;
            its step is then in each part, unless the exporter has `independent_signals`.
    """

    reason: str
    divide: bool = False


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


@dataclass(frozen=True)
class AttemptQuestion:
    """Which attempt at a run a process belongs to.

    Attributes:
        project: The run's project.
        run_id: The run's id.
        member: The process.
        number: The number, if it is known and only the last step is asked for.
        least: The lowest number that the answer may have.
        resume: Whether there was an attempt before.
    """

    project: str
    run_id: str
    member: Member
    number: int | None
    least: int
    resume: bool


@dataclass(frozen=True)
class AttemptNumber:
    """The answer.

    Attributes:
        number: The number, from 1.
        last_step: The highest step that earlier attempts have logged; None if they logged none.
    """

    number: int
    last_step: int | None


Outcome = Accepted | Retry | Rejected | TooLarge | Unauthorized


class Exporter(Protocol):
    """A destination. See the module's text for who calls it and on which thread.

    A class may have the attribute `independent_signals = True`; see the module's text.

    It may have a method ``durability(self) -> Durability | Retry | None``, which asks the receiver how far its disk is, within the
    configured timeout; the receiver should sync at once. None if the receiver says nothing about that any more. Delivery calls it
    when nothing else is to be sent, and something accepted is not known to be durable.

    If its receiver knows the attempts at runs, it may have a method
    ``ask_attempt(self, question: AttemptQuestion) -> AttemptNumber | Retry | Unauthorized | None``, which is called before anything of
    the attempt is exported, with the same timeout. None: this receiver gives no numbers. `Retry` holds up the destination.
    After `Unauthorized`, `export` decides: if it is accepted, this receiver gives no numbers.
    """

    def __init__(self, config: ExporterConfig) -> None: ...

    def export(self, request: Request) -> Outcome:
        """Send one request within the configured timeout and say how it went."""
        ...

    def shutdown(self) -> None:
        """Release connections. Called once; must not block."""
        ...


def load_exporter(destination: str) -> type[Exporter]:
    """Find the exporter of a destination by its entry-point name (what stands before a colon), and import it.

    If a package that it needs is not installed, its constructor says so.

    Raises:
        SettingsError: There is none; the message lists those there are.
    """
    check_exporters([destination])
    kind = destination.partition(":")[0]
    (entry,) = entry_points(group=_GROUP, name=kind)
    try:
        with importing_sdk():
            return entry.load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        return _unavailable(f"{kind} needs the package {error.name!r}; pip install 'tensormeter[{kind}]'")
    except (Exception, SystemExit) as error:  # of another package, at what it finds in the environment
        return _unavailable(f"{kind} cannot be imported ({type(error).__name__}: {error}); see {entry.value}")


def _unavailable(reason: str) -> type[Exporter]:
    """Fails when it is constructed, which holds up this destination and no other."""

    class Unavailable:
        def __init__(self, config: ExporterConfig) -> None:
            raise SettingsError(reason)

        def export(self, request: Request) -> Outcome:
            raise NotImplementedError

        def shutdown(self) -> None:
            raise NotImplementedError

    return Unavailable


def check_exporters(destinations: Iterable[str]) -> None:
    """See that there are exporters for these destinations, without importing them.

    Raises:
        SettingsError: There is one without; the message lists those there are.
    """
    known = entry_points(group=_GROUP).names
    for destination in destinations:
        if not _DESTINATION.fullmatch(destination) or destination.partition(":")[0] not in known:
            raise SettingsError(f"exporters: expected some of {', '.join(sorted(known))}, got {destination!r}")
