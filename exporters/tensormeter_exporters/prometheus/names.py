"""Unique Prometheus names for metrics and attributes, even if replacing invalid characters makes several names equal.

The first metric keeps the plain name. The others get a suffix that depends only on the original name, so it is the same
on every node and after every restart.
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
"""Suffixes of the names that a family reserves in OpenMetrics. Other families must not use these names.

In the older text format, a gauge histogram is a histogram, and strict parsers do not let other families use its names
`_count` and `_sum`.
"""

_REPLACED: Final = re.compile(r"[^a-zA-Z0-9_]")
"""Characters that are replaced by `_`, including colons.

Colons are reserved for recording rules, and prometheus_client replaces them in only one of its two formats.
"""

_DIGITS: Final = (8, 16, 64)
"""Lengths of the suffix in hexadecimal digits. If the resulting name is already in use, the next length is tried."""


@dataclass(frozen=True, order=True)
class Origin:
    """The metric, or the statistic of a metric, from which a family is created.

    Attributes:
        metric: Name under which the metric was logged.
        statistic: Statistic of a distribution, such as `/mean`, or "".
        kind: Kind of the family.
        unit: Unit of the metric. Different units make different families.
        form: Type and temporality of the points; "" for a gauge. Different forms make different families.
    """

    metric: str
    statistic: str
    kind: Kind
    unit: str = ""
    form: str = ""

    @property
    def text(self) -> str:
        """Human-readable name."""
        return f"{self.statistic.removeprefix('/')} of {self.metric}" if self.statistic else self.metric

    @property
    def text_with_unit(self) -> str:
        """Human-readable name with the unit, which distinguishes metrics with the same name."""
        return f"{self.text} ({self.unit})" if self.unit else self.text

    @property
    def plain_name(self) -> str:
        """Name with invalid characters replaced; empty if the name contains no letters or digits."""
        clean = _REPLACED.sub("_", f"{self.metric}{self.statistic}")
        if not clean.strip("_"):
            return ""
        clean = f"_{clean}" if clean[0].isdigit() else clean
        return clean.removesuffix("_total") if self.kind == "counter" else clean

    @property
    def exact(self) -> bool:
        """Whether no character of the metric's name is replaced. In a request, these metrics are named before others."""
        return _REPLACED.search(self.metric) is None and not self.metric[:1].isdigit()


class MetricNames:
    """Family names in use. Not thread-safe."""

    def __init__(self, reserved: Iterable[tuple[Origin, str]]) -> None:
        """Start with a set of reserved names.

        Args:
            reserved: Origins with their reserved names.
        """
        self._owners: dict[str, Origin] = {}
        for origin, name in reserved:
            self.take(origin, name)

    def find(self, origin: Origin) -> tuple[str, Origin | None]:
        """Choose a name without reserving it.

        Returns:
            Name of the family, without a counter's `_total`, and the origin that already uses the plain name, or None
            if the plain name is free.
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
        """Reserve a name for an origin."""
        self._owners.update((f"{name}{suffix}", origin) for suffix in _SAMPLES[origin.kind])

    def _rival(self, origin: Origin, name: str) -> Origin | None:
        owners = (self._owners.get(f"{name}{suffix}") for suffix in _SAMPLES[origin.kind])
        return next((owner for owner in owners if owner not in (None, origin)), None)


class LabelNames:
    """Label names of one family, by attribute key. Not thread-safe."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def find(self, keys: Iterable[str]) -> dict[str, str]:
        """Choose a label for each key without reserving it. Keys that are valid labels take precedence."""
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
        """Reserve labels chosen by `find`."""
        self._names.update(names)
        self._owners.update((name, key) for key, name in names.items())


def _label(key: str) -> str:
    name = _REPLACED.sub("_", key)
    if name[:1].isdigit():
        return f"_{name}"
    # Prometheus drops labels that start with two underscores.
    return f"attribute_{name.lstrip('_')}" if name in _RESERVED_LABELS or name.startswith("__") or not name else name


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
