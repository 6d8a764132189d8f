"""What a sensor is: instruments, and readings that give them values."""

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
        name: The semantic conventions' name, or one beginning with `tensormeter.` where they have none.
        kind: Which of OpenTelemetry's observable instruments.
        unit: UCUM unit.
        description: For people; one sentence.
        attributes: Names of the attributes that its points may have.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()


Observed = tuple[Instrument, int | float, Mapping[str, Attribute]]
"""One value of an instrument, with its attributes."""

Reading = tuple[str, Callable[[], Iterable[Observed]]]
"""A name for people, and a function that asks the machine once. It may raise whatever it likes: see `observe`."""


class AbsentError(Exception):
    """The machine lacks the requested device or file. Omitted without being counted as a failure."""


class Sensor(Protocol):
    """One part of the machine. Constructed, used and closed by one thread, which it may block; never shared."""

    @property
    def name(self) -> str:
        """A word, such as `host`."""
        ...

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """All that its readings can give values for; empty if there is nothing to read on this machine."""
        ...

    def readings(self) -> Iterable[Reading]:
        """What to read for one sample. Each fails by itself."""
        ...

    def close(self) -> None:
        """Give back what the sensor holds."""
        ...


def observe(sensor: Sensor, failures: dict[str, int]) -> dict[str, list[Observed]]:
    """Take all readings of a sensor, as far as they succeed.

    Args:
        sensor: Is read.
        failures: Readings that have failed, by the name of the exception; added to. The first of each kind is logged.

    Returns:
        What was observed, by instrument name.
    """
    observed: dict[str, list[Observed]] = {}
    for name, read in sensor.readings():
        try:
            for item in read():
                observed.setdefault(item[0].name, []).append(item)
        except AbsentError:
            continue
        except Exception as error:  # drivers, file systems and dying processes fail in every way there is
            kind = type(error).__name__
            if kind not in failures:
                logger.warning("sensor %s: %s cannot be read (%s: %s)", sensor.name, name, kind, error)
            failures[kind] = failures.get(kind, 0) + 1
    return observed
