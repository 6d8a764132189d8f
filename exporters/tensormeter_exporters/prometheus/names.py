"""Names for Prometheus: one for each metric and attribute, even where several become the same when their characters are replaced.

The first keeps the plain name. One that comes later gets a suffix, which depends on its own name only, so that it is the same
on every node and after every start.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["IDENTITY_LABELS", "Kind", "LabelNames", "MetricNames", "Origin"]

Kind = Literal["gauge", "counter", "histogram", "gaugehistogram"]

IDENTITY_LABELS: Final = ("project", "run_id", "process")
_RESERVED_LABELS: Final = frozenset(("le", "__name__", "otel_scope_name", "otel_scope_version", *IDENTITY_LABELS))

_SAMPLES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "gauge": ("",),
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "gaugehistogram": ("", "_bucket", "_count", "_sum", "_gcount", "_gsum"),
}
"""Suffixes of the names that a family takes, by OpenMetrics: another family must have none of them. In the older text format a
gauge histogram is a histogram, whose `_count` and `_sum` strict parsers expect nowhere else."""

_REPLACED: Final = re.compile(r"[^a-zA-Z0-9_]")
"""Characters that become `_`. A colon is for recording rules, and prometheus_client replaces it in one of its formats only."""

_DIGITS: Final = (8, 16, 64)
"""Lengths of the suffix, in hexadecimal digits; the next if there is such a name already."""


@dataclass(frozen=True, order=True)
class Origin:
    """The source of a family.

    Attributes:
        metric: Name of the metric, as it was logged.
        statistic: Such as `/mean`, if the family is one of a distribution's; else empty.
        kind: Of the family.
        unit: Of the metric. Values in different units are different families.
        form: How the metric's points are to be read; empty for a gauge. Others of its name are different families, too.
    """

    metric: str
    statistic: str
    kind: Kind
    unit: str = ""
    form: str = ""

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.statistic.removeprefix('/')} of {self.metric}" if self.statistic else self.metric

    @property
    def text_with_unit(self) -> str:
        """For people who may have two of one name."""
        return f"{self.text} ({self.unit})" if self.unit else self.text

    @property
    def plain_name(self) -> str:
        """The name with other characters replaced; empty if no letter or digit is left."""
        clean = _REPLACED.sub("_", f"{self.metric}{self.statistic}")
        if not clean.strip("_"):
            return ""
        clean = f"_{clean}" if clean[0].isdigit() else clean
        return clean.removesuffix("_total") if self.kind == "counter" else clean

    @property
    def exact(self) -> bool:
        """Whether no character is replaced. Of several metrics in one request, such a one keeps the plain name."""
        return _REPLACED.search(self.metric) is None and not self.metric[:1].isdigit()


class MetricNames:
    """Names of families. Not thread-safe."""

    def __init__(self, reserved: Iterable[tuple[Origin, str]]) -> None:
        """Start with names that are taken.

        Args:
            reserved: Origins, and their names.
        """
        self._owners: dict[str, Origin] = {}
        for origin, name in reserved:
            self.take(origin, name)

    def find(self, origin: Origin) -> tuple[str, Origin | None]:
        """Choose a name, without taking it.

        Returns:
            The family's name (of a counter without `_total`), and whose plain name it would have been; None if its own.
        """
        plain = origin.plain_name
        rival = self._rival(origin, plain) if plain else None
        if plain and rival is None:
            return plain, None
        name = plain
        details = [origin.unit, origin.form] if origin.unit or origin.form else []
        identity = "|".join([origin.kind, origin.metric, origin.statistic, *details])
        for digits in _DIGITS:
            name = f"{plain or 'metric'}_{_digest(identity, digits)}"
            if self._rival(origin, name) is None:
                break
        return name, rival

    def take(self, origin: Origin, name: str) -> None:
        """Keep a name for an origin."""
        self._owners.update((f"{name}{suffix}", origin) for suffix in _SAMPLES[origin.kind])

    def _rival(self, origin: Origin, name: str) -> Origin | None:
        owners = (self._owners.get(f"{name}{suffix}") for suffix in _SAMPLES[origin.kind])
        return next((owner for owner in owners if owner not in (None, origin)), None)


class LabelNames:
    """Names of one family's labels, by the keys of attributes. Not thread-safe."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def find(self, keys: Iterable[str]) -> dict[str, str]:
        """Choose a label for each key, without taking it. Keys that are labels as they are come first."""
        owners = dict(self._owners)
        names = {}
        for key in sorted(keys, key=lambda key: (_REPLACED.search(key) is not None, key)):
            name = self._names.get(key) or _label(key)
            if owners.setdefault(name, key) != key:
                name = f"{name}_{_digest(key, _DIGITS[0])}"
                owners[name] = key
            names[key] = name
        return names

    def take(self, names: Mapping[str, str]) -> None:
        """Keep what `find` has chosen."""
        self._names.update(names)
        self._owners.update((name, key) for key, name in names.items())


def _label(key: str) -> str:
    name = _REPLACED.sub("_", key)
    if name[:1].isdigit():
        return f"_{name}"
    # Prometheus drops labels that begin with two underscores.
    return f"attribute_{name.lstrip('_')}" if name in _RESERVED_LABELS or name.startswith("__") or not name else name


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
