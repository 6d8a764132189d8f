"""Unique series names for destinations that lack histograms and attributes.

Such a destination receives composed names: `grad/mean` for the mean of the distribution `grad`, `hw.power{hw.id=GPU-0}`
for a series with attributes. If a composed name equals the name of another metric, the metric that arrives first keeps
the name, and the other gets a suffix. Within a request, the logged metric counts as first. The names are stored in the
destination's folder, so that the next agent uses the same names.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import make_directory
from tensormeter.logger import get_logger
from tensormeter_exporters.names import suffix_of
from tensormeter_exporters.otlp_series import SteppedSeries

__all__ = ["SeriesNames"]

logger: Final = get_logger("tensormeter.agent")

_STATE: Final = "names.json"


class SeriesNames:
    """Unique names of series and their statistics. Not thread-safe. Calls block while they access the disk."""

    def __init__(
        self,
        destination: str,
        state: Path | None,
        stored: Callable[[str], str] = str,
        clean: Callable[[str], str] = str,
        longest: int = 0,
    ) -> None:
        """
        Args:
            destination: Name of the destination, for warnings.
            state: Folder for the state file; None to forget the names when the agent ends.
            stored: Function that converts a metric's name to a valid name.
            clean: Function that converts the composed part of a name to valid characters.
            longest: Maximum length of a name in characters; 0 for no limit.
        """
        self._destination = destination
        self._state = None if state is None else state / _STATE
        self._stored = stored
        self._clean = clean
        self._longest = longest
        self._owners: dict[tuple[str, str], str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._kept: dict[tuple[str, str], str] = {}
        self._saved = 0
        self._load()

    def begin(self, series: Iterable[SteppedSeries]) -> None:
        """Assign names to the logged metrics of a request before any names are composed."""
        for stepped in series:
            if stepped.identity == stepped.series.name:
                self.of(stepped)

    def of(self, stepped: SteppedSeries, part: str = "") -> str:
        """Return the name of a series, or of its statistic `part`, such as `/mean`. Call `save` to store the name."""
        process, identity = stepped.sender.process, f"{stepped.identity}\0{part}"
        name = self._names.get((process, identity))
        if name is None:
            name = self._names[process, identity] = self._choose(process, stepped, part, identity)
        return name

    def save(self) -> None:
        """Store the names. Call this before writing any data under new names.

        Raises:
            OSError: The state file cannot be written.
        """
        if self._state is None or len(self._kept) == self._saved:
            return
        make_directory(self._state.parent)
        document = [[process, name, owner] for (process, name), owner in self._kept.items()]
        write_file(self._state, json.dumps(document))
        self._saved = len(self._kept)

    def _choose(self, process: str, stepped: SteppedSeries, part: str, identity: str) -> str:
        series = stepped.series
        composed = self._clean(stepped.name.removeprefix(series.name) + part)
        plain = name = self._fit(self._stored(series.name) + composed, identity)
        while (owner := self._owners.setdefault((process, name), identity)) != identity:
            self._kept[process, name] = owner
            name = self._fit(name, identity, suffix_of(f"{identity}\0{name}"))
        if part or stepped.identity != series.name:
            self._kept[process, name] = identity
        if name != plain:
            logger.warning(
                "%s: %s is stored as %r, because %r is the name of another metric",
                *(self._destination, f"{stepped.name}{part}", name, plain),
            )
        return name

    def _fit(self, name: str, identity: str, suffix: str = "") -> str:
        """Return a name with a suffix, shortened to the maximum length."""
        if self._longest and len(name) + len(suffix) > self._longest:
            suffix = suffix or suffix_of(identity)
            name = name[: self._longest - len(suffix)].rstrip("/. ")
        return f"{name}{suffix}"

    def _load(self) -> None:
        if self._state is None:
            return
        try:
            document: Any = json.loads(self._state.read_text(encoding="utf-8"))
            self._kept = {(str(process), str(name)): str(owner) for process, name, owner in document}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logger.warning(
                "%s: cannot read %s (%s); some metrics may be stored under different names from now on",
                self._destination,
                self._state,
                error,
            )
        self._owners = dict(self._kept)
        self._saved = len(self._kept)
