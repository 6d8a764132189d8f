"""Targets of OTLP destinations, from their options. OpenTelemetry's variables apply to options that are not set."""

from typing import Final

from tensormeter.environment import variables
from tensormeter.environment.otlp import OtlpTarget
from tensormeter.environment.otlp import read_targets as _read_targets
from tensormeter.errors import SettingsError, join_choices
from tensormeter.exporter import ExporterConfig, Signal

__all__ = ["OtlpTarget", "how_to_leave_out", "read_targets", "wants_cumulative"]

_TEMPORALITIES: Final = ("cumulative", "delta", "lowmemory")
_PREFERENCE: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


def read_targets(config: ExporterConfig) -> dict[Signal, OtlpTarget]:
    """Return the target of each of the exporter's signals.

    Raises:
        SettingsError: An option is invalid. An invalid variable is ignored with a warning.
    """
    targets = _read_targets(config.destination, _options(config), config.timeout)
    return {signal: target for signal, target in targets.items() if signal in config.signals}


def wants_cumulative(config: ExporterConfig) -> bool:
    """Return whether distributions must be sent as cumulative sums, according to the option or OpenTelemetry's variable.

    If neither is set, distributions are sent as they were recorded.

    Raises:
        SettingsError: The option is invalid.
    """
    option = _options(config)["temporality"].lower()
    if option and option not in _TEMPORALITIES:
        raise SettingsError(
            f"{config.destination}.temporality: expected {join_choices(*_TEMPORALITIES)}; got {option!r}"
        )
    return (option or variables.read(_PREFERENCE).lower()) == "cumulative"


def how_to_leave_out(signal: Signal) -> str:
    """Return a hint on how to stop sending a signal that the receiver does not accept."""
    return f"If this receiver does not accept {signal}, set OTEL_{signal.upper()}_EXPORTER=none"


def _options(config: ExporterConfig) -> dict[str, str]:
    return config.options_or(
        protocol="",
        endpoint="",
        compression="",
        certificate="",
        client_certificate="",
        client_key="",
        insecure="",
        headers_variable="",
        temporality="",
    )
