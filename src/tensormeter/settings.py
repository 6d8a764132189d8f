"""The settings of a run, with their environment variables, defaults and help texts.

Each setting is resolved independently: first the argument, then the environment variables in the listed order, then the default.
`Settings()` reads the environment once, when it is constructed, and is immutable. An invalid argument or `TENSORMETER_*`
variable raises an error. An invalid variable of other software is ignored with a warning (see `environment`).
`setting_field` contains the parsers and checks.
"""

import dataclasses
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from tensormeter.conventions.attempt_number import MAX_ATTEMPT
from tensormeter.conventions.labels import LONGEST_LABEL, LONGEST_NAME
from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.disk.user_folders import user_state_folder
from tensormeter.environment import inherited
from tensormeter.environment.otlp import opentelemetry_endpoint, opentelemetry_timeout
from tensormeter.environment.signals import SIGNALS_OPTION, ExcludedSignal, Signal, excluded_signals
from tensormeter.errors import SettingsError
from tensormeter.setting_field import (
    IDENTIFIER,
    NOT_GIVEN,
    boolean,
    checked,
    choice,
    endpoint_url,
    identifier,
    integer,
    label,
    longest_text,
    number,
    option_texts,
    optional,
    parse_bool,
    parse_float,
    parse_int,
    parse_lower,
    parse_names,
    parse_options,
    path,
    setting,
    tag_list,
    token_text,
    unique_names,
)

__all__ = [
    "DEFAULT_PORT",
    "IDENTIFIER",
    "Durability",
    "Settings",
    "default_endpoint",
    "describe_settings",
    "is_loopback",
]

Mode = Literal["online", "offline", "disabled"]
AgentKind = Literal["process", "thread", "off"]
AfterFork = Literal["record", "ignore"]
DevicePath = Literal["auto", "two_launches"]
HistogramAggregation = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
TemporalityPreference = Literal["cumulative", "delta", "lowmemory"]
Ranks = Literal["all", "node", "first", "this"]
ConsoleChildren = Literal["files", "all", "off"]
Console = Literal["first", "all", "off"]
LogLevel = Literal["debug", "info", "warning", "error", "critical", "off"]
Durability = Literal["none", "flush", "fsync"]

DEFAULT_PORT: Final = 4320

_WITHOUT_ENDPOINT: Final = frozenset(
    {"console", "jsonl", "mlflow", "otel", "otlp", "prometheus", "tensorboard", "wandb"}
)
"""Destinations that do not use the `endpoint` setting."""


_RATE_OPTION: Final = "max_upload_bytes_per_second"
"""Option that every destination has. It is not passed to the exporter."""

_OPTIONS_OF_THE_RUN: Final = ("max_export_batch_size", "schedule_delay")
"""Settings that apply to the whole run and cannot be set per destination."""

_LONGEST_NOTES: Final = 65_536
_DAY: Final = 86_400


def default_endpoint() -> str:
    """Return the URL of an experiment server on this machine, on its default port."""
    return f"http://127.0.0.1:{DEFAULT_PORT}"


_endpoint: Final = endpoint_url(default_endpoint())


def _read_later(variable: str) -> None:
    """Return None, because `Settings._default_endpoint` reads the variable after `exporters` is known."""


def _default_buffer_directory() -> Path | None:
    shared_memory = Path("/dev/shm")  # noqa: S108 - rings are in private folders (mode 0700)
    return shared_memory if os.access(shared_memory, os.W_OK) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. A test compares the README's settings table with this class.

    Raises:
        SettingsError: An argument or a `TENSORMETER_*` variable is invalid. The message names it.
    """

    project: str = setting(
        "default",
        "TENSORMETER_PROJECT",
        ("OTEL_SERVICE_NAME", inherited.read_service_name),
        ("OTEL_RESOURCE_ATTRIBUTES", inherited.read_service_attribute),
        check=label("project", LONGEST_LABEL, "default"),
        help="Project of the run, recorded as the resource attribute `service.name`.",
    )
    run_id: str | None = setting(
        None,
        "TENSORMETER_RUN_ID",
        shown="random",
        check=optional(identifier),
        help="Run ID, which must be the same on every rank.",
    )
    attempt: int | None = setting(
        None,
        "TENSORMETER_ATTEMPT",
        ("SLURM_RESTART_COUNT", inherited.read_restarts),
        ("TORCHELASTIC_RESTART_COUNT", inherited.read_restarts),
        parse=parse_int,
        shown="counted on this machine",
        check=optional(integer(1, MAX_ATTEMPT)),
        help="Attempt number, starting at 1. A later attempt shadows the steps that it repeats.",
    )
    name: str | None = setting(
        None,
        "TENSORMETER_NAME",
        shown="the run ID",
        check=optional(label("name", LONGEST_NAME)),
        help="Display name of the run.",
    )
    group: str = setting(
        "",
        "TENSORMETER_GROUP",
        shown="none",
        check=label("group", LONGEST_LABEL, ""),
        help="Group of the run, such as a sweep. The runs table has a column for it.",
    )
    job_type: str = setting(
        "",
        "TENSORMETER_JOB_TYPE",
        shown="none",
        check=label("job_type", LONGEST_LABEL, ""),
        help="Kind of work that the run does, such as `train` or `eval`.",
    )
    tags: tuple[str, ...] = setting(
        (),
        "TENSORMETER_TAGS",
        parse=parse_names,
        shown="none",
        check=tag_list,
        help="Comma-separated tags for finding the run.",
    )
    notes: str = setting(
        "",
        "TENSORMETER_NOTES",
        shown="none",
        check=longest_text("notes", _LONGEST_NOTES),
        help="Free-form notes about the run.",
    )
    mode: Mode = setting(
        "online",
        "TENSORMETER_MODE",
        ("OTEL_SDK_DISABLED", inherited.read_disabled),
        check=choice(Mode),
        help="`online` delivers data; `offline` only writes it to the spool, which `tensormeter sync` can deliver later; "
        "`disabled` records nothing.",
    )
    quiet: bool = setting(
        False,
        "TENSORMETER_QUIET",
        parse=parse_bool,
        check=boolean,
        help="Whether to suppress the lines that `init` and `finish` print on standard error: the run's address, and what "
        "was delivered. Warnings are not affected.",
    )
    ranks: Ranks = setting(
        "all",
        "TENSORMETER_RANKS",
        check=choice(Ranks),
        help="Ranks that record data: `all`, the first rank of each `node`, or only the `first` rank. On the other "
        "ranks, the run is disabled. A script that starts the run on one rank only passes `this` there: the rank then "
        "also records the console and the code.",
    )
    endpoint: str = setting(
        lambda: NOT_GIVEN,
        "TENSORMETER_ENDPOINT",
        ("OTEL_EXPORTER_OTLP_ENDPOINT", _read_later),
        shown=f"`{default_endpoint()}`",
        check=_endpoint,
        help="Base URL of the experiment server or OTLP/HTTP Collector that receives the data.",
    )
    token: str | None = setting(
        None,
        "TENSORMETER_TOKEN",
        parse=str.strip,
        check=optional(token_text),
        help="Bearer token for the endpoint.",
        secret=True,
    )
    token_file: Path | None = setting(
        None,
        "TENSORMETER_TOKEN_FILE",
        check=optional(path),
        help="File that contains the bearer token, used if `token` is not set. The file is read again if the endpoint "
        "rejects the token.",
    )
    exporters: tuple[str, ...] = setting(
        ("experiment",),
        "TENSORMETER_EXPORTERS",
        parse=parse_names,
        check=unique_names,
        help="Comma-separated destinations. Use `NAME:LABEL` for several destinations of the same kind.",
    )
    exporter_options: Mapping[str, str] = setting(
        dict,
        "TENSORMETER_EXPORTER_OPTIONS",
        parse=parse_options,
        shown="none",
        check=option_texts,
        help="Comma-separated destination options, as `DESTINATION.OPTION=VALUE`. Write `%2C` for a comma in a "
        "value. Options are stored with the run, so do not set secrets here.",
    )
    agent: AgentKind = setting(
        "process",
        "TENSORMETER_AGENT",
        check=choice(AgentKind),
        help="`process` delivers from a separate process, `thread` from a thread of the training process "
        "(from Python 3.12 on, `init` waits up to 2 s until it is running). `off` only records data, which "
        "`tensormeter sync` can deliver later.",
    )
    directory: Path = setting(
        user_state_folder,
        "TENSORMETER_DIR",
        shown="`tensormeter` in the user's state directory",
        check=path,
        help="Directory for run spools. Data stays there until it is delivered.",
    )
    buffer_directory: Path | None = setting(
        _default_buffer_directory,
        "TENSORMETER_BUFFER_DIR",
        shown="`/dev/shm`",
        check=optional(path),
        help="Directory for ring buffers. If the default is not writable, they are stored next to the spool.",
    )
    buffer_bytes: int = setting(
        16 << 20,
        "TENSORMETER_BUFFER_BYTES",
        parse=parse_int,
        check=integer(1 << 16, 1 << 40),
        help="Size of each process's ring buffer in bytes, reserved when the run starts. The buffer of a child process "
        "has at most 1 MiB. While the buffer is full, new rows are dropped and counted.",
    )
    media_buffer_bytes: int = setting(
        64 << 20,
        "TENSORMETER_MEDIA_BUFFER_BYTES",
        parse=parse_int,
        check=integer(0, 1 << 40),
        help="Maximum total size in bytes of a process's tables, images and text that are waiting for the agent. They "
        "are stored next to the ring buffer. Items beyond the limit are dropped and counted.",
    )
    max_metric_names: int = setting(
        METRIC_NAMES,
        "TENSORMETER_MAX_METRIC_NAMES",
        parse=parse_int,
        check=integer(1, 1 << 30),
        help="Maximum number of metric names that a process can log, including streams of instruments. Values under "
        "further names are dropped and counted. The server has its own limit of 500,000 names per run, and refuses and "
        "counts values under further names.",
    )
    device_path: DevicePath = setting(
        "auto",
        "TENSORMETER_DEVICE_PATH",
        check=choice(DevicePath),
        help="How CUDA values reach the ring buffer. `auto` stores them with one kernel launch if a trial launch "
        "succeeds, and otherwise copies them. `two_launches` skips the trial and always copies them.",
    )
    after_fork: AfterFork = setting(
        "record",
        "TENSORMETER_AFTER_FORK",
        check=choice(AfterFork),
        help="Behavior of `log` in a forked child: `record` the values as a separate process, or `ignore` them with one "
        "warning.",
    )
    sample_interval: float = setting(
        10.0,
        "TENSORMETER_SAMPLE_INTERVAL",
        parse=parse_float,
        check=number(0.1, 3600, zero="none"),
        help="Interval in seconds between samples of GPU, host and process metrics. The minimum is 0.1; 0 turns "
        "sampling off.",
    )
    record_command: bool = setting(
        True,
        "TENSORMETER_RECORD_COMMAND",
        parse=parse_bool,
        check=boolean,
        help="Whether to record the command line in the resource, with secrets masked.",
    )
    record_code: bool = setting(
        True,
        "TENSORMETER_RECORD_CODE",
        parse=parse_bool,
        check=boolean,
        help="Whether rank 0 records the git commit and uncommitted changes, the script's source, and the installed "
        "packages, with secrets masked.",
    )
    mask_config: bool = setting(
        True,
        "TENSORMETER_MASK_CONFIG",
        parse=parse_bool,
        check=boolean,
        help="Whether to replace likely secrets in the config with `***`, as in the command line. `False` records the "
        "config unchanged.",
    )
    console: Console = setting(
        "first",
        "TENSORMETER_CONSOLE",
        parse=parse_lower,
        check=choice(Console),
        help="Ranks whose console output and log records are recorded: only the `first` rank, `all` ranks, or `off`. "
        "Output still reaches its terminal or file, unchanged. It is sent to all destinations that receive log records, "
        "with secrets masked.",
    )
    console_children: ConsoleChildren = setting(
        "all",
        "TENSORMETER_CONSOLE_CHILDREN",
        parse=parse_lower,
        check=choice(ConsoleChildren),
        help="Whether to record the output of child processes and native code, too: `all` if standard output or standard "
        "error leads to a file or a pipe, whose contents two small processes then pass on, `files` only if it leads to a "
        "file, or `off`.",
    )
    log_level: LogLevel = setting(
        "info",
        "TENSORMETER_LOG_LEVEL",
        parse=parse_lower,
        check=choice(LogLevel),
        help="Lowest level of the records of Python's `logging` that are recorded as log records: `debug`, `info`, "
        "`warning`, `error`, `critical`, or `off`. The levels of loggers apply first.",
    )
    console_max_bytes: int = setting(
        64 << 20,
        "TENSORMETER_CONSOLE_MAX_BYTES",
        parse=parse_int,
        check=integer(0, 1 << 40),
        help="Maximum size in bytes of the output that is recorded of each process. Later lines are dropped and counted.",
    )
    schedule_delay: float = setting(
        2.0,
        "TENSORMETER_SCHEDULE_DELAY",
        ("OTEL_METRIC_EXPORT_INTERVAL", inherited.read_export_interval),
        parse=parse_float,
        check=number(0.01, 3600),
        help="Interval in seconds between batches. It is shorter while the run has viewers on an experiment server.",
    )
    max_export_batch_size: int = setting(
        50_000,
        "TENSORMETER_MAX_EXPORT_BATCH_SIZE",
        parse=parse_int,
        check=integer(1, 2_000_000),
        help="Maximum number of data points in a request. A row is never split.",
    )
    self_metrics_interval: float = setting(
        10.0,
        "TENSORMETER_SELF_METRICS_INTERVAL",
        parse=parse_float,
        check=number(0, _DAY),
        help="Interval in seconds at which the run reports its logging cost, drop counts and agent backlog as metrics. "
        "0 turns these metrics off.",
    )
    temporality: TemporalityPreference = setting(
        "cumulative",
        "TENSORMETER_TEMPORALITY",
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", inherited.read_temporality),
        parse=parse_lower,
        check=choice(TemporalityPreference),
        help="Temporality of sums and histograms from OpenTelemetry instruments: `cumulative`, `delta` or `lowmemory`.",
    )
    histogram_aggregation: HistogramAggregation = setting(
        "explicit_bucket_histogram",
        "TENSORMETER_HISTOGRAM_AGGREGATION",
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", inherited.read_histogram_aggregation),
        parse=parse_lower,
        check=choice(HistogramAggregation),
        help="Aggregation of histogram instruments: `explicit_bucket_histogram` or "
        "`base2_exponential_bucket_histogram`.",
    )
    observe_interval: float = setting(
        10.0,
        "TENSORMETER_OBSERVE_INTERVAL",
        ("OTEL_METRIC_EXPORT_INTERVAL", inherited.read_export_interval),
        parse=parse_float,
        check=number(0.01, _DAY),
        help="Interval in seconds at which the callbacks of observable instruments are called.",
    )
    cardinality_limit: int = setting(
        2000,
        "TENSORMETER_CARDINALITY_LIMIT",
        parse=parse_int,
        check=integer(1, 60_000),
        help="Maximum number of attribute sets per instrument. Measurements with further attribute sets are combined "
        "under `otel.metric.overflow`.",
    )
    export_timeout: float = setting(
        10.0,
        "TENSORMETER_EXPORT_TIMEOUT",
        ("OTEL_EXPORTER_OTLP_TIMEOUT", opentelemetry_timeout),
        parse=parse_float,
        check=number(0.1, 3600),
        help="Timeout for one request, in seconds.",
    )
    finish_timeout: float = setting(
        60.0,
        "TENSORMETER_FINISH_TIMEOUT",
        parse=parse_float,
        check=number(0, _DAY),
        help="Maximum time in seconds that `finish` waits for delivery. The agent delivers any remaining data afterwards.",
    )
    linger_timeout: float = setting(
        300.0,
        "TENSORMETER_LINGER_TIMEOUT",
        parse=parse_float,
        check=number(0, 7 * _DAY),
        help="Maximum time in seconds that the agent keeps retrying after the last training process has ended. Data "
        "that is still undelivered stays in the spool.",
    )
    heartbeat_interval: float = setting(
        30.0,
        "TENSORMETER_HEARTBEAT_INTERVAL",
        parse=parse_float,
        check=number(0, _DAY),
        help="Interval in seconds at which an idle process sends a heartbeat with its drop counts. 0 turns heartbeats "
        "off; the server then shows a run that logs nothing for minutes as stalled.",
    )
    sigterm_timeout: float = setting(
        10.0,
        "TENSORMETER_SIGTERM_TIMEOUT",
        parse=parse_float,
        check=number(0, 3600),
        help="Maximum time in seconds to deliver pending data on SIGTERM before the process ends. If the script installed "
        "a handler before `init`, that handler runs immediately instead. With 0, tensormeter does not handle SIGTERM, and "
        "a run ended by SIGTERM counts as crashed.",
    )
    durability: Durability = setting(
        "flush",
        "TENSORMETER_DURABILITY",
        check=choice(Durability),
        help="Durability of the spool in a power failure: `fsync` each batch, `flush` it to the operating system, or "
        "`none`. With any of these values, killing a process loses no data.",
    )
    spool_max_bytes: int = setting(
        1 << 30,
        "TENSORMETER_SPOOL_MAX_BYTES",
        parse=parse_int,
        check=integer(1 << 16, 1 << 50),
        help="Maximum size of a run's spool in bytes. When the spool is full, data is lost in this order: system "
        "metrics, media, and then scalars, which are thinned out. The config and the last value of each series are kept.",
    )
    max_upload_bytes_per_second: int | None = setting(
        None,
        "TENSORMETER_MAX_UPLOAD_BYTES_PER_SECOND",
        parse=parse_int,
        check=optional(integer(1, 1 << 40)),
        help="Maximum average upload rate to each destination in bytes per second. To set another rate for one "
        "destination, use `DESTINATION.max_upload_bytes_per_second` in `exporter_options`.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._set(field.name, checked(field.name, field.metadata["check"], getattr(self, field.name)))
        if self.endpoint is NOT_GIVEN:
            self._set("endpoint", checked("endpoint", _endpoint, self._default_endpoint()))
        for destination in {name.rpartition(".")[0] for name in self.exporter_options}:
            self.upload_rate_of(destination)
            self.excluded_signals(destination)

    @classmethod
    def small(cls, **changes: Any) -> "Settings":
        """Return settings for machines with little memory: a 1 MiB ring buffer, batches of up to 10,000 points, and no sampling.

        Args:
            changes: Additional settings, which take precedence.

        Raises:
            SettingsError: A value is invalid.
        """
        small = {"buffer_bytes": 1 << 20, "max_export_batch_size": 10_000, "sample_interval": 0.0}
        return cls(**{**small, **changes})

    @classmethod
    def with_defaults(cls, defaults: Mapping[str, Any], **values: Any) -> "Settings":
        """Return settings in which `defaults` replace our own defaults.

        Args:
            defaults: Values of settings that neither `values` nor the environment gives.
            values: Values of settings.

        Raises:
            SettingsError: A value is invalid.
        """
        unset = {
            field.name: defaults[field.name]
            for field in dataclasses.fields(cls)
            if field.name in defaults and field.name not in values and field.metadata["inherit"]() is None
        }
        return cls(**{**unset, **values})

    @classmethod
    def names(cls) -> frozenset[str]:
        """Return the names of all settings."""
        return frozenset(field.name for field in dataclasses.fields(cls))

    def replace(self, **changes: Any) -> "Settings":
        """Return a copy with some settings changed.

        Raises:
            SettingsError: A value is invalid.
        """
        return dataclasses.replace(self, **changes)

    def options_of(self, destination: str) -> dict[str, str]:
        """Return the options that are passed to a destination's exporter."""
        own = (_RATE_OPTION, SIGNALS_OPTION)
        return {name: value for name, value in self._all_options_of(destination).items() if name not in own}

    def excluded_signals(self, destination: str) -> tuple[ExcludedSignal, ...]:
        """Return the signals that are not sent to a destination, with reasons (see `tensormeter.environment.signals`)."""
        return excluded_signals(destination, self._all_options_of(destination))

    def takers(self, signal: Signal, destinations: Sequence[str]) -> tuple[str, ...]:
        """Return the given destinations that receive a signal."""
        return tuple(
            destination
            for destination in destinations
            if all(left.signal != signal for left in self.excluded_signals(destination))
        )

    def upload_rate_of(self, destination: str) -> int | None:
        """Return the maximum average upload rate to a destination in bytes per second, or None if it is unlimited.

        Raises:
            SettingsError: An option of the destination is invalid.
        """
        options = self._all_options_of(destination)
        for name in _OPTIONS_OF_THE_RUN:
            if name in options:
                raise SettingsError(
                    f"{destination}.{name}: cannot be set for a single destination; set {name} (TENSORMETER_{name.upper()}) "
                    "for the whole run"
                )
        rate = options.get(_RATE_OPTION)
        if rate is None:
            return self.max_upload_bytes_per_second
        if not (rate.isascii() and rate.isdecimal() and 1 <= int(rate) <= 1 << 40):
            raise SettingsError(f"{destination}.{_RATE_OPTION}: expected a positive number of bytes, got {rate!r}")
        return int(rate)

    def current_token(self) -> str | None:
        """Return the token, or the current contents of the token file.

        Raises:
            SettingsError: The file cannot be read, or contains no token.
        """
        if self.token is not None or self.token_file is None:
            return self.token
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"token_file {self.token_file}: could not read the file ({error})") from None
        return str(checked(f"token_file {self.token_file}", token_text, token))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, without secrets. `from_json` restores them in another process."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def _default_endpoint(self) -> str:
        """Return the endpoint from the OpenTelemetry variables, or the default.

        Warn about invalid variables only if a destination uses the endpoint.
        """
        used = self.mode != "disabled" and any(
            name.partition(":")[0] not in _WITHOUT_ENDPOINT for name in self.exporters
        )
        return opentelemetry_endpoint(default_endpoint(), warn=used) or default_endpoint()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _all_options_of(self, destination: str) -> dict[str, str]:
        prefix = f"{destination}."
        return {
            name.removeprefix(prefix): value for name, value in self.exporter_options.items() if name.startswith(prefix)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Restore settings from the result of `to_json`. Secrets come from the environment of this process.

        Unknown names are ignored, and so are options that can no longer be set for a single destination.
        """
        known = {name: value for name, value in values.items() if name in cls.names()}
        options = known.get("exporter_options")
        if isinstance(options, Mapping):
            known["exporter_options"] = {
                name: value
                for name, value in options.items()
                if str(name).rpartition(".")[2] not in _OPTIONS_OF_THE_RUN
            }
        return cls(**known)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe_settings() -> list[tuple[str, tuple[str, ...], str, str]]:
    """Return (name, environment variables, displayed default, help text) for each setting, in order."""
    return [
        (field.name, field.metadata["variables"], field.metadata["default"], field.metadata["help"])
        for field in dataclasses.fields(Settings)
    ]
