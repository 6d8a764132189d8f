"""Variants of a metric, which arise when libraries or processes use one name for different quantities."""

from dataclasses import dataclass
from typing import Final, Protocol

from tensormeter.server.store import Kind

__all__ = ["ANY", "Variant", "VariantFilter", "VariantSelector", "Varying"]

Variant = tuple[Kind, str, str]
"""Kind, scope and unit. Series of a metric are comparable only if all three are equal."""


class Varying(Protocol):
    """A series with a kind, a scope and a unit."""

    @property
    def kind(self) -> Kind: ...

    @property
    def scope(self) -> str: ...

    @property
    def unit(self) -> str: ...


@dataclass(frozen=True)
class VariantFilter:
    """A filter for variants. A field that is None matches any value."""

    scope: str | None = None
    unit: str | None = None
    kind: str | None = None
    temporality: str | None = None

    def matches(self, series: Varying) -> bool:
        """Return whether the filter matches the variant of a series."""
        return self.accepts(series.kind, series.scope, series.unit)

    def accepts(self, kind: Kind, scope: str, unit: str) -> bool:
        """Return whether the filter matches a variant."""
        return (
            self.scope in (None, scope)
            and self.unit in (None, unit)
            and self.kind in (None, kind.name)
            and self.temporality in (None, kind.temporality)
        )


ANY: Final = VariantFilter()


class VariantSelector:
    """A selector of comparable series, which all have the variant of the first series that matches a filter.

    Attributes:
        variant: The selected variant; None before the first match.
        others: Other variants that match the filter, in order of first appearance.
    """

    def __init__(self, variants: VariantFilter) -> None:
        self._variants = variants
        self.variant: Variant | None = None
        self.others: list[Variant] = []

    def accepts(self, series: Varying) -> bool:
        """Return whether a series has the selected variant. The first series that matches the filter determines it."""
        if not self._variants.matches(series):
            return False
        variant = series.kind, series.scope, series.unit
        if self.variant is None:
            self.variant = variant
        elif variant != self.variant and variant not in self.others:
            self.others.append(variant)
        return variant == self.variant
