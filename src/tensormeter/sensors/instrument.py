"""The sensor interface: instruments, and readings that provide their values."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Attribute

__all__ = ["AbsentError", "Instrument", "Kind", "Observed", "Reading", "Sensor", "observe"]

logger: Final = get_logger("tensormeter.agent")

Kind = Literal["gauge", "counter", "updowncounter"]


@dataclass(frozen=True)
class Instrument:
    """An observable instrument.

    Attributes:
        name: Name from the semantic conventions, or a name with the prefix `tensormeter.` if these define none.
        kind: Kind of the OpenTelemetry observable instrument.
        unit: UCUM unit.
        description: Human-readable description, which ends with a period.
        attributes: Names of the attributes that the instrument's points may have.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()


Observed = tuple[Instrument, int | float, Mapping[str, Attribute]]
"""An instrument with one of its values and the value's attributes."""

Reading = tuple[str, Callable[[], Iterable[Observed]]]
"""Human-readable name, and a function that reads values from the machine once.

The function may raise any error; see `observe`.
"""


class AbsentError(Exception):
    """The machine lacks the requested device or file. The reading ends here, and this does not count as a failure."""


class Sensor(Protocol):
    """A sensor for one part of the machine.

    A single thread constructs, uses and closes the sensor, which may block that thread.
    """

    @property
    def name(self) -> str:
        """Name of the sensor, a single word such as `host`."""
        ...

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """All instruments for which readings can provide values; empty if there is nothing to read on this machine."""
        ...

    def readings(self) -> Iterable[Reading]:
        """Return the readings of one sample. If one fails, its earlier values and the other readings are still used."""
        ...

    def close(self) -> None:
        """Release the sensor's resources."""
        ...


def observe(sensor: Sensor, failures: dict[str, int]) -> dict[str, list[Observed]]:
    """Run all readings of a sensor.

    If a reading raises an error, the values that it has already yielded are kept, because they are valid.

    Args:
        sensor: Sensor to read.
        failures: Number of failed readings by exception name. The function updates the numbers and logs the first
            failure of each kind.

    Returns:
        Observed values by instrument name.
    """
    observed: dict[str, list[Observed]] = {}
    for name, read in sensor.readings():
        try:
            for item in read():
                observed.setdefault(item[0].name, []).append(item)
        except AbsentError:
            continue
        except Exception as error:  # drivers, file systems and ending processes can raise any error
            kind = type(error).__name__
            if kind not in failures:
                logger.warning(
                    "sensor %s: could not read all of %s (%s: %s); its remaining values are missing",
                    sensor.name,
                    name,
                    kind,
                    error,
                )
            failures[kind] = failures.get(kind, 0) + 1
    return observed
