"""Which of several metrics of one name is meant: two libraries, or two processes, may give one name to different things."""

from dataclasses import dataclass
from typing import Final, Protocol

from tensormeter.server.store import Kind

__all__ = ["ANY", "Choice", "OneVariant", "Variant", "Varying"]

Variant = tuple[Kind, str, str]
"""Kind, scope and unit: series of one metric that differ in one of them are not comparable."""


class Varying(Protocol):
    """A series as far as this module looks at it."""

    @property
    def kind(self) -> Kind: ...

    @property
    def scope(self) -> str: ...

    @property
    def unit(self) -> str: ...


@dataclass(frozen=True)
class Choice:
    """The variants that a request asks for; None: any."""

    scope: str | None = None
    unit: str | None = None
    kind: str | None = None
    temporality: str | None = None

    def fits(self, series: Varying) -> bool:
        """Whether it asks for this series."""
        return (
            self.scope in (None, series.scope)
            and self.unit in (None, series.unit)
            and self.kind in (None, series.kind.name)
            and self.temporality in (None, series.kind.temporality)
        )


ANY: Final = Choice()


class OneVariant:
    """Takes in series of one variant: that of the first series which fits.

    Attributes:
        variant: That one; None before there is one.
        others: Further variants which fit, in the order of their series.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self.variant: Variant | None = None
        self.others: list[Variant] = []

    def takes(self, series: Varying) -> bool:
        """Whether a series is of the variant."""
        if not self._choice.fits(series):
            return False
        variant = series.kind, series.scope, series.unit
        if self.variant is None:
            self.variant = variant
        elif variant != self.variant and variant not in self.others:
            self.others.append(variant)
        return variant == self.variant
