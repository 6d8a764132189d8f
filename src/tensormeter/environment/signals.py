"""The signals of OpenTelemetry that a run is made of, and which of them a destination is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from tensormeter.environment import variables as environment
from tensormeter.errors import SettingsError

__all__ = ["SIGNALS", "SIGNALS_OPTION", "LeftOut", "Signal", "signals_left_out"]

Signal = Literal["metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)

SIGNALS_OPTION: Final = "signals"
"""Option of a destination of the kind `otlp`: the signals that it is sent, separated by spaces or `+`."""

_KIND: Final = "otlp"


@dataclass(frozen=True)
class LeftOut:
    """A signal that a destination is not sent.

    Attributes:
        signal: The signal.
        reason: The setting that says so, for people.
    """

    signal: Signal
    reason: str


def signals_left_out(destination: str, options: Mapping[str, str]) -> tuple[LeftOut, ...]:
    """The signals that a destination is not sent: by its option, or else by `OTEL_METRICS_EXPORTER` and `OTEL_LOGS_EXPORTER`.

    Only destinations of the kind `otlp` can do without a signal. The others need both: events and values make a run together.

    Args:
        destination: The destination, as the settings name it.
        options: Options of that destination.

    Raises:
        SettingsError: The option names no signal, a signal that does not exist, or belongs to another kind of destination.
    """
    chosen = options.get(SIGNALS_OPTION)
    if destination.partition(":")[0] != _KIND:
        if chosen is not None:
            raise SettingsError(f"{destination}.{SIGNALS_OPTION}: only {_KIND} can leave a signal out")
        return ()
    if chosen is not None:
        names = chosen.replace("+", " ").replace(",", " ").lower().split()
        if not names or not set(names) <= set(SIGNALS):
            raise SettingsError(
                f"{destination}.{SIGNALS_OPTION}: expected metrics, logs or metrics+logs, got {chosen!r}"
            )
        return tuple(
            LeftOut(signal, f"the option {destination}.{SIGNALS_OPTION} is {chosen}")
            for signal in SIGNALS
            if signal not in names
        )
    variables = {signal: f"OTEL_{signal.upper()}_EXPORTER" for signal in SIGNALS}
    return tuple(
        LeftOut(signal, f"{variable}=none")
        for signal, variable in variables.items()
        if environment.read(variable).lower() == "none"
    )
