"""One table of settings.

Precedence, for each setting by itself: argument, then environment (variables in the order listed), then default.
`Settings()` reads the environment when it is constructed and is immutable from then on. Arguments and our own variables
(`TENSORMETER_*`) that cannot be used raise; variables of other software are warned about and ignored (see `environment`).
"""

import contextlib
import dataclasses
import ipaddress
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import unquote, urlsplit

from tensormeter.disk.user_folders import user_state_folder
from tensormeter.environment import inherited, variables
from tensormeter.environment.otlp import opentelemetry_endpoint, opentelemetry_timeout
from tensormeter.environment.signals import SIGNALS_OPTION, LeftOut, Signal, signals_left_out
from tensormeter.errors import SettingsError
from tensormeter.pace import PACE_OPTIONS, Pace

__all__ = ["Settings", "describe_settings"]

Mode = Literal["online", "offline", "disabled"]
AgentKind = Literal["process", "thread", "off"]
AfterFork = Literal["record", "ignore"]
DevicePath = Literal["auto", "two_launches"]
HistogramAggregation = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
TemporalityPreference = Literal["cumulative", "delta", "lowmemory"]
Ranks = Literal["all", "node", "first"]
Durability = Literal["none", "flush", "fsync"]

DEFAULT_PORT: Final = 4320
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_WITHOUT_ENDPOINT: Final = frozenset(
    {"console", "jsonl", "mlflow", "otel", "otlp", "prometheus", "tensorboard", "wandb"}
)
"""Destinations that do not send to the setting `endpoint`."""

_MOST_ATTEMPTS: Final = 1 << 31
_MOST_TAGS: Final = 100
_LONGEST_TAG: Final = 128
_LONGEST_NOTES: Final = 65_536

_NOT_GIVEN: Final[Any] = object()
_OPTION: Final = re.compile(r"[^.=,]+\.[a-z_]+")
_TOKEN: Final = re.compile(r"[!-~]+")

_Parse = Callable[[str], Any]
_Read = Callable[[str], Any]


def default_endpoint() -> str:
    """Where the experiment server listens unless told otherwise."""
    return f"http://127.0.0.1:{DEFAULT_PORT}"


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"expected true or false, got {text!r}")


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _listed(value: Any) -> Any:
    """A list as it is; a text as the environment variable's."""
    return _parse_names(value) if isinstance(value, str) else value


def _parse_options(text: str) -> dict[str, str]:
    options = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, found, value = item.partition("=")
        if not found:
            raise ValueError(f"expected DESTINATION.OPTION=VALUE, got {item!r}")
        options[key.strip()] = unquote(value.strip())
    return options


def _parse_lower(text: str) -> str:
    return text.strip().lower()


def _read_later(variable: str) -> None:
    """Which destinations there are decides whether the variable counts: see `Settings._default_endpoint`."""


def _default_buffer_directory() -> Path | None:
    shared_memory = Path("/dev/shm")  # noqa: S108 - the ring belongs in shared memory; its folder is private (0700)
    return shared_memory if os.access(shared_memory, os.W_OK) else None


def _setting(
    default: Any,
    variable: str,
    *others: tuple[str, _Read],
    parse: _Parse = str,
    help: str,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """One row of the table: a dataclass field whose default is the environment's value, or else `default`.

    Args:
        default: The default, or what returns it.
        variable: Our own variable.
        others: Variables of other software, and the functions that read them: they return None if the variable is unset,
            or cannot be used, and never raise.
        parse: Turns the text of our own variable into a value. Raises ValueError.
        help: What the setting is for.
        shown: The default in words, where it depends on the machine.
        secret: Whether the value is never shown.
    """

    def resolve() -> Any:
        if (text := os.environ.get(variable, "")).strip():
            try:
                return parse(text)
            except ValueError as error:
                shown = "***" if secret else repr(text)
                raise SettingsError(f"environment variable {variable}={shown}: {error}") from None
        for other, read in others:
            if (value := read(other)) is not None:
                return value
        return default() if callable(default) else default

    words = shown or (
        "none" if default is None else f"`{','.join(default) if isinstance(default, tuple) else default}`"
    )
    metadata = {"variables": (variable, *(name for name, _ in others)), "default": words, "help": help}
    return dataclasses.field(default_factory=resolve, repr=not secret, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. Each row says what it is for; the README's table is tested against this one.

    Raises:
        SettingsError: An argument or a variable of ours is out of range; the message names it.
    """

    project: str = _setting(
        "default",
        "TENSORMETER_PROJECT",
        ("OTEL_SERVICE_NAME", inherited.read_service_name),
        ("OTEL_RESOURCE_ATTRIBUTES", inherited.read_service_attribute),
        help="Project that the run belongs to; `service.name` of the resource.",
    )
    run_id: str | None = _setting(
        None,
        "TENSORMETER_RUN_ID",
        shown="random",
        help="Id of the run; the same on every rank.",
    )
    attempt: int | None = _setting(
        None,
        "TENSORMETER_ATTEMPT",
        ("SLURM_RESTART_COUNT", inherited.read_restarts),
        ("TORCHELASTIC_RESTART_COUNT", inherited.read_restarts),
        parse=int,
        shown="counted on this machine",
        help="Which attempt at the run this is, from 1: a later one shadows the steps that it repeats.",
    )
    name: str | None = _setting(None, "TENSORMETER_NAME", shown="the id", help="Name of the run, for people.")
    group: str = _setting(
        "", "TENSORMETER_GROUP", shown="none", help="What runs belong together in: a sweep, say. For the table of runs."
    )
    tags: tuple[str, ...] = _setting(
        (), "TENSORMETER_TAGS", parse=_parse_names, shown="none", help="Words to find the run by, separated by commas."
    )
    notes: str = _setting("", "TENSORMETER_NOTES", shown="none", help="What people should know about the run.")
    mode: Mode = _setting(
        "online",
        "TENSORMETER_MODE",
        ("OTEL_SDK_DISABLED", inherited.read_disabled),
        help="`online` delivers; `offline` only spools, for `tensormeter sync`; `disabled` does nothing at all.",
    )
    ranks: Ranks = _setting(
        "all",
        "TENSORMETER_RANKS",
        help="Which ranks record: `all`, the first of each `node`, or the `first` alone. For the others the run is disabled.",
    )
    endpoint: str = _setting(
        lambda: _NOT_GIVEN,
        "TENSORMETER_ENDPOINT",
        ("OTEL_EXPORTER_OTLP_ENDPOINT", _read_later),
        shown=f"`{default_endpoint()}`",
        help="Base URL that OTLP goes to: the experiment server, or an OTLP/HTTP Collector.",
    )
    token: str | None = _setting(
        None, "TENSORMETER_TOKEN", parse=str.strip, help="Bearer token for the endpoint.", secret=True
    )
    token_file: Path | None = _setting(
        None,
        "TENSORMETER_TOKEN_FILE",
        parse=Path,
        help="File with the bearer token, if `token` is not set; read again when the endpoint refuses the token.",
    )
    exporters: tuple[str, ...] = _setting(
        ("experiment",),
        "TENSORMETER_EXPORTERS",
        parse=_parse_names,
        help="Destinations, by entry-point name, separated by commas; `NAME:LABEL` where there are several of a kind.",
    )
    exporter_options: Mapping[str, str] = _setting(
        dict,
        "TENSORMETER_EXPORTER_OPTIONS",
        parse=_parse_options,
        shown="none",
        help="Options of destinations, as `DESTINATION.OPTION=VALUE`, separated by commas (`%2C` for a comma in a value). "
        "Kept with the run, so no secrets.",
    )
    agent: AgentKind = _setting(
        "process",
        "TENSORMETER_AGENT",
        help="`process` delivers from a process of its own; `thread` from a thread of this one; "
        "`off` records only, until `tensormeter sync`.",
    )
    directory: Path = _setting(
        user_state_folder,
        "TENSORMETER_DIR",
        parse=Path,
        shown="`tensormeter` in the user's state directory",
        help="Where runs keep their spools until everything is delivered.",
    )
    buffer_directory: Path | None = _setting(
        _default_buffer_directory,
        "TENSORMETER_BUFFER_DIR",
        parse=Path,
        shown="`/dev/shm`",
        help="Where rings are mapped: shared memory where there is one, else beside the spool.",
    )
    buffer_bytes: int = _setting(
        16 << 20,
        "TENSORMETER_BUFFER_BYTES",
        parse=int,
        help="Size of a process's ring in bytes, reserved at start. When it is full, the newest rows are dropped "
        "and counted.",
    )
    media_buffer_bytes: int = _setting(
        64 << 20,
        "TENSORMETER_MEDIA_BUFFER_BYTES",
        parse=int,
        help="Bytes of tables, images and texts of a process that may wait for the agent, beside the ring. What is more "
        "is dropped and counted.",
    )
    device_path: DevicePath = _setting(
        "auto",
        "TENSORMETER_DEVICE_PATH",
        help="How values of CUDA devices reach the ring: `auto` stores them there in one launch where a trial shows that this "
        "works; `two_launches` makes no trial and copies them.",
    )
    after_fork: AfterFork = _setting(
        "record",
        "TENSORMETER_AFTER_FORK",
        help="What a forked child's `log` does: `record` as a process of its own, or `ignore`, with one warning.",
    )
    sample_interval: float = _setting(
        10.0,
        "TENSORMETER_SAMPLE_INTERVAL",
        parse=float,
        help="Seconds between two samples of the statistics of GPUs, host and processes; from 0.1, or 0 for none.",
    )
    record_command: bool = _setting(
        True,
        "TENSORMETER_RECORD_COMMAND",
        parse=_parse_bool,
        help="Whether the command line becomes part of the resource; what looks like a secret is masked.",
    )
    mask_config: bool = _setting(
        True,
        "TENSORMETER_MASK_CONFIG",
        parse=_parse_bool,
        help="Whether `***` replaces what looks like a secret in the configuration, as it does in the command line. `False` records "
        "the configuration as it is.",
    )
    schedule_delay: float = _setting(
        1.0,
        "TENSORMETER_SCHEDULE_DELAY",
        ("OTEL_METRIC_EXPORT_INTERVAL", inherited.read_export_interval),
        parse=float,
        help="Seconds between two batches.",
    )
    max_export_batch_size: int = _setting(
        50_000,
        "TENSORMETER_MAX_EXPORT_BATCH_SIZE",
        parse=int,
        help="Data points in one request, at most (one row is never split).",
    )
    self_metrics_interval: float = _setting(
        10.0,
        "TENSORMETER_SELF_METRICS_INTERVAL",
        parse=float,
        help="Seconds between two reports of what logging costs, what was dropped and how far the agent is behind, "
        "as metrics of the run; 0 for none.",
    )
    temporality: TemporalityPreference = _setting(
        "cumulative",
        "TENSORMETER_TEMPORALITY",
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", inherited.read_temporality),
        parse=_parse_lower,
        help="Of sums and histograms of OpenTelemetry instruments: `cumulative`, `delta` or `lowmemory`.",
    )
    histogram_aggregation: HistogramAggregation = _setting(
        "explicit_bucket_histogram",
        "TENSORMETER_HISTOGRAM_AGGREGATION",
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", inherited.read_histogram_aggregation),
        parse=_parse_lower,
        help="Of histogram instruments: `explicit_bucket_histogram` or `base2_exponential_bucket_histogram`.",
    )
    observe_interval: float = _setting(
        10.0,
        "TENSORMETER_OBSERVE_INTERVAL",
        ("OTEL_METRIC_EXPORT_INTERVAL", inherited.read_export_interval),
        parse=float,
        help="Seconds between two calls of the callbacks of observable instruments.",
    )
    cardinality_limit: int = _setting(
        2000,
        "TENSORMETER_CARDINALITY_LIMIT",
        parse=int,
        help="Attribute sets of one instrument, at most; what is beyond is recorded as `otel.metric.overflow`.",
    )
    export_timeout: float = _setting(
        10.0,
        "TENSORMETER_EXPORT_TIMEOUT",
        ("OTEL_EXPORTER_OTLP_TIMEOUT", opentelemetry_timeout),
        parse=float,
        help="Seconds that sending one request may take, in all.",
    )
    finish_timeout: float = _setting(
        60.0,
        "TENSORMETER_FINISH_TIMEOUT",
        parse=float,
        help="Seconds that `finish` waits for delivery, at most. What is left goes on in the agent.",
    )
    linger_timeout: float = _setting(
        300.0,
        "TENSORMETER_LINGER_TIMEOUT",
        parse=float,
        help="Seconds that the agent goes on trying after the last trainer is gone. What is left stays in the spool.",
    )

    heartbeat_interval: float = _setting(
        30.0,
        "TENSORMETER_HEARTBEAT_INTERVAL",
        parse=float,
        help="Seconds without anything new after which a process that lives says so, and between two counts of what it had to "
        "drop. 0: never; the server then counts a run that logs nothing for minutes as stalled.",
    )
    sigterm_timeout: float = _setting(
        10.0,
        "TENSORMETER_SIGTERM_TIMEOUT",
        parse=float,
        help="Seconds that a SIGTERM waits for delivery, at most, before it goes to whom it was for. 0: it is not handled, "
        "and a run that it ends counts as crashed.",
    )
    durability: Durability = _setting(
        "flush",
        "TENSORMETER_DURABILITY",
        help="Of the spool, should the power fail: `fsync` each batch, `flush` it to the operating system, or `none`. "
        "A killed process loses nothing in any case.",
    )
    spool_max_bytes: int = _setting(
        1 << 30,
        "TENSORMETER_SPOOL_MAX_BYTES",
        parse=int,
        help="Size of a run's spool in bytes, at most. When it is full, system metrics go first, then media, then scalars "
        "are thinned; configuration and last values stay.",
    )
    max_upload_bytes_per_second: int | None = _setting(
        None,
        "TENSORMETER_MAX_UPLOAD_BYTES_PER_SECOND",
        parse=int,
        help="Bytes a second sent to each destination, on average. Destinations may have their own: `DESTINATION."
        "max_upload_bytes_per_second` in `exporter_options`; so `max_export_batch_size` and `schedule_delay`.",
    )

    def __post_init__(self) -> None:
        _check_identifier("project", self.project)
        if self.run_id is not None:
            _check_identifier("run_id", self.run_id)
        _check_text("group", self.group, _LONGEST_NOTES)
        _check_text("notes", self.notes, _LONGEST_NOTES)
        _check_tags("tags", self.tags)
        object.__setattr__(self, "tags", tuple(dict.fromkeys(self.tags)))
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("ranks", self.ranks, get_args(Ranks))
        _check_choice("agent", self.agent, get_args(AgentKind))
        _check_choice("device_path", self.device_path, get_args(DevicePath))
        _check_choice("after_fork", self.after_fork, get_args(AfterFork))
        if self.sample_interval != 0:
            _check_range("sample_interval", self.sample_interval, 0.1, 3600)
        _check_bool("record_command", self.record_command)
        _check_bool("mask_config", self.mask_config)
        object.__setattr__(self, "exporters", _listed(self.exporters))
        _check_names("exporters", self.exporters)
        object.__setattr__(self, "exporters", tuple(self.exporters))
        if self.endpoint is _NOT_GIVEN:
            object.__setattr__(self, "endpoint", self._default_endpoint())
        _check_endpoint(self.endpoint)
        _check_options("exporter_options", self.exporter_options)
        object.__setattr__(self, "exporter_options", dict(self.exporter_options))
        if self.token is not None:
            _check_token("token", self.token)
        object.__setattr__(self, "directory", _absolute("directory", self.directory))
        if self.buffer_directory is not None:
            object.__setattr__(self, "buffer_directory", _absolute("buffer_directory", self.buffer_directory))
        _check_integer("buffer_bytes", self.buffer_bytes, 1 << 16, 1 << 40)
        _check_integer("media_buffer_bytes", self.media_buffer_bytes, 0, 1 << 40)
        _check_range("schedule_delay", self.schedule_delay, 0.01, 3600)
        _check_integer("max_export_batch_size", self.max_export_batch_size, 1, 2_000_000)
        _check_range("self_metrics_interval", self.self_metrics_interval, 0, 86400)
        _check_choice("temporality", self.temporality, get_args(TemporalityPreference))
        _check_choice("histogram_aggregation", self.histogram_aggregation, get_args(HistogramAggregation))
        _check_range("observe_interval", self.observe_interval, 0.01, 86400)
        _check_integer("cardinality_limit", self.cardinality_limit, 1, 60_000)
        _check_range("export_timeout", self.export_timeout, 0.1, 3600)
        _check_range("finish_timeout", self.finish_timeout, 0, 86400)
        _check_range("linger_timeout", self.linger_timeout, 0, 7 * 86400)
        _check_range("heartbeat_interval", self.heartbeat_interval, 0, 86400)
        _check_range("sigterm_timeout", self.sigterm_timeout, 0, 3600)
        _check_choice("durability", self.durability, get_args(Durability))
        _check_integer("spool_max_bytes", self.spool_max_bytes, 1 << 16, 1 << 50)
        if self.max_upload_bytes_per_second is not None:
            _check_integer("max_upload_bytes_per_second", self.max_upload_bytes_per_second, 1, 1 << 40)
        self._prefer_delays_of_destinations()
        for destination in {name.rpartition(".")[0] for name in self.exporter_options}:
            self.pace_of(destination)
            self.signals_left_out(destination)
        if self.attempt is not None:
            _check_integer("attempt", self.attempt, 1, _MOST_ATTEMPTS)
        if self.token_file is not None:
            object.__setattr__(self, "token_file", _absolute("token_file", self.token_file))

    @classmethod
    def small(cls, **changes: Any) -> "Settings":
        """For machines with little memory: a ring of 1 MiB, batches of at most 10,000 points, and no statistics.

        Args:
            changes: Further settings; they take precedence.

        Raises:
            SettingsError: A value cannot be used.
        """
        small = {"buffer_bytes": 1 << 20, "max_export_batch_size": 10_000, "sample_interval": 0.0}
        return cls(**{**small, **changes})

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all settings."""
        return frozenset(field.name for field in dataclasses.fields(cls))

    def replace(self, **changes: Any) -> "Settings":
        """A copy with some settings changed.

        Raises:
            SettingsError: A value cannot be used.
        """
        return dataclasses.replace(self, **changes)

    def options_of(self, destination: str) -> dict[str, str]:
        """The options of one destination's exporter."""
        own = (*PACE_OPTIONS, SIGNALS_OPTION)
        return {name: value for name, value in self._all_options_of(destination).items() if name not in own}

    def signals_left_out(self, destination: str) -> tuple[LeftOut, ...]:
        """The signals that a destination is not sent, and why: see `tensormeter.environment.signals`."""
        return signals_left_out(destination, self._all_options_of(destination))

    def takers(self, signal: Signal, destinations: Sequence[str]) -> tuple[str, ...]:
        """Those of some destinations that are sent a signal."""
        return tuple(
            destination
            for destination in destinations
            if all(left.signal != signal for left in self.signals_left_out(destination))
        )

    def pace_of(self, destination: str) -> Pace:
        """How fast and in what pieces one destination is sent requests.

        Raises:
            SettingsError: An option of it cannot be used.
        """
        return Pace.of(
            destination,
            self._all_options_of(destination),
            max_upload_bytes_per_second=self.max_upload_bytes_per_second,
            max_export_batch_size=self.max_export_batch_size,
            schedule_delay=self.schedule_delay,
        )

    def current_token(self) -> str | None:
        """The token, or what the token file says now.

        Raises:
            SettingsError: The file cannot be read, or holds no token.
        """
        if self.token is not None or self.token_file is None:
            return self.token
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"token_file {self.token_file}: cannot be read ({error})") from None
        _check_token(f"token_file {self.token_file}", token)
        return token

    def to_json(self) -> dict[str, Any]:
        """Everything but secrets, as JSON values: what a ring file carries, so that anyone can deliver it later."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def _default_endpoint(self) -> str:
        """OpenTelemetry's endpoint, or the experiment server's. Without a destination that sends there, nothing is warned."""
        used = self.mode != "disabled" and any(
            name.partition(":")[0] not in _WITHOUT_ENDPOINT for name in self.exporters
        )
        return opentelemetry_endpoint(default_endpoint(), warn=used) or default_endpoint()

    def _prefer_delays_of_destinations(self) -> None:
        """Shorten a delay that is OpenTelemetry's to the shortest of the destinations' own, which cannot be shorter."""
        variable = "OTEL_METRIC_EXPORT_INTERVAL"
        delays = [value for name, value in self.exporter_options.items() if name.endswith(".schedule_delay")]
        if not delays or self.schedule_delay != inherited.read_export_interval(variable):
            return
        with contextlib.suppress(ValueError):  # which checking the destinations' options reports
            shortest = min(map(float, delays))
            if 0.01 <= shortest < self.schedule_delay:
                variables.warn_once(
                    variable, f"longer than a destination's schedule_delay; {shortest:g} s is used instead"
                )
                object.__setattr__(self, "schedule_delay", shortest)

    def _all_options_of(self, destination: str) -> dict[str, str]:
        prefix = f"{destination}."
        return {
            name.removeprefix(prefix): value for name, value in self.exporter_options.items() if name.startswith(prefix)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """The inverse of `to_json`; secrets come from this process's environment. Unknown names are ignored."""
        return cls(**{name: value for name, value in values.items() if name in cls.names()})


def _absolute(name: str, value: str | Path) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, TypeError, OSError) as error:
        raise SettingsError(f"{name}: expected a path, got {str(value)!r} ({error})") from None


def _check_token(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(value):
        raise SettingsError(f"{name}: expected printable ASCII characters without spaces or line ends")


def _check_identifier(name: str, value: object) -> None:
    if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
        raise SettingsError(
            f"{name}: expected 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit, "
            f"got {value!r}",
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name}: expected True or False, got {value!r}")


def _check_names(name: str, value: object) -> None:
    names = value if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(item, str) for item in names) or len(set(names)) < len(names):
        raise SettingsError(f"{name}: expected a list of different names, got {value!r}")


def _check_text(name: str, value: object, longest: int) -> None:
    if not isinstance(value, str) or len(value) > longest:
        raise SettingsError(f"{name}: expected a text of at most {longest} characters, got {reprlib.repr(value)}")


def _check_tags(name: str, value: object) -> None:
    tags = value if isinstance(value, list | tuple) else None
    if tags is None or len(tags) > _MOST_TAGS:
        raise SettingsError(f"{name}: expected a list of at most {_MOST_TAGS} texts, got {reprlib.repr(value)}")
    for tag in tags:
        if not isinstance(tag, str) or not 0 < len(tag) <= _LONGEST_TAG:
            raise SettingsError(f"{name}: expected texts of 1 to {_LONGEST_TAG} characters, got {reprlib.repr(tag)}")


def _check_options(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(text, str) and _OPTION.fullmatch(key) for key, text in value.items()
    ):
        raise SettingsError(f"{name}: expected texts by DESTINATION.OPTION, got {value!r}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name}: expected an integer from {low} to {high}, got {value!r}")


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SettingsError(f"{name}: expected a number from {low} to {high}, got {value!r}")


def _check_endpoint(value: object) -> None:
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
            port = parts.port  # raises if it is not a number
            if parts.scheme in ("http", "https") and parts.hostname and port != 0:
                if parts.username or parts.password:
                    raise SettingsError("endpoint: credentials in the URL are not accepted; set TENSORMETER_TOKEN")
                return
        except SettingsError:
            raise
        except ValueError:
            pass
    raise SettingsError(f"endpoint: expected a URL such as {default_endpoint()}, got {value!r}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe_settings() -> list[tuple[str, tuple[str, ...], str, str]]:
    """The table: (name, environment variables, default in words, help) for each setting, in order."""
    return [
        (field.name, field.metadata["variables"], field.metadata["default"], field.metadata["help"])
        for field in dataclasses.fields(Settings)
    ]
