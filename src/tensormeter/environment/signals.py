"""The OpenTelemetry signals of a run, and the choice of signals for a destination."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from tensormeter.environment import variables as environment
from tensormeter.errors import SettingsError

__all__ = ["SIGNALS", "SIGNALS_OPTION", "ExcludedSignal", "Signal", "excluded_signals"]

Signal = Literal["metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)

SIGNALS_OPTION: Final = "signals"
"""Option of `otlp` destinations that lists the signals to send, separated by spaces, commas or `+`."""

_KIND: Final = "otlp"


@dataclass(frozen=True)
class ExcludedSignal:
    """A signal that is not sent to a destination.

    Attributes:
        signal: Name of the signal.
        reason: Setting that excludes the signal, described for users.
    """

    signal: Signal
    reason: str


def excluded_signals(destination: str, options: Mapping[str, str]) -> tuple[ExcludedSignal, ...]:
    """Return the signals that are not sent to a destination.

    The destination's option takes precedence over `OTEL_METRICS_EXPORTER` and `OTEL_LOGS_EXPORTER`. Only `otlp`
    destinations can leave out a signal. Other destinations need both signals, because a run consists of values and
    events.

    Args:
        destination: Name of the destination in the settings.
        options: Options of the destination.

    Raises:
        SettingsError: The option names no signal or an unknown one, or the destination does not support the option.
    """
    chosen = options.get(SIGNALS_OPTION)
    if destination.partition(":")[0] != _KIND:
        if chosen is not None:
            raise SettingsError(
                f"{destination}.{SIGNALS_OPTION}: only {_KIND} destinations can exclude a signal; remove the option"
            )
        return ()
    if chosen is not None:
        names = chosen.replace("+", " ").replace(",", " ").lower().split()
        if not names or not set(names) <= set(SIGNALS):
            raise SettingsError(
                f"{destination}.{SIGNALS_OPTION}: expected metrics, logs or metrics+logs, got {chosen!r}"
            )
        return tuple(
            ExcludedSignal(signal, f"the option {destination}.{SIGNALS_OPTION} is {chosen}")
            for signal in SIGNALS
            if signal not in names
        )
    variables = {signal: f"OTEL_{signal.upper()}_EXPORTER" for signal in SIGNALS}
    return tuple(
        ExcludedSignal(signal, f"{variable}=none")
        for signal, variable in variables.items()
        if environment.read(variable).lower() == "none"
    )
