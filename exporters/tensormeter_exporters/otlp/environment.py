"""Where destinations of OTLP send: their options, and the standard variables for what the options leave open."""

from typing import Final

from tensormeter.environment import variables
from tensormeter.environment.otlp import OtlpTarget
from tensormeter.environment.otlp import read_targets as _read_targets
from tensormeter.errors import SettingsError
from tensormeter.exporter import ExporterConfig, Signal

__all__ = ["OtlpTarget", "how_to_leave_out", "read_targets", "wants_cumulative"]

_TEMPORALITIES: Final = ("cumulative", "delta", "lowmemory")
_PREFERENCE: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


def read_targets(config: ExporterConfig) -> dict[Signal, OtlpTarget]:
    """The target of each signal that the exporter is given.

    Raises:
        SettingsError: An option cannot be used. A variable that cannot be used is warned about and ignored.
    """
    targets = _read_targets(config.destination, _options(config), config.timeout)
    return {signal: target for signal, target in targets.items() if signal in config.signals}


def wants_cumulative(config: ExporterConfig) -> bool:
    """Whether distributions are added up before they are sent: by the option, or else by OpenTelemetry's preference.

    Without either, they go as they were recorded.

    Raises:
        SettingsError: The option cannot be used.
    """
    option = _options(config)["temporality"].lower()
    if option and option not in _TEMPORALITIES:
        raise SettingsError(
            f"{config.destination}: expected a temporality of {', '.join(_TEMPORALITIES)}, got {option!r}"
        )
    return (option or variables.read(_PREFERENCE).lower()) == "cumulative"


def how_to_leave_out(signal: Signal) -> str:
    """A hint for whoever has a receiver that does not take a signal."""
    return f"If this receiver takes no {signal}, set OTEL_{signal.upper()}_EXPORTER=none"


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
