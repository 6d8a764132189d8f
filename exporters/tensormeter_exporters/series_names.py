"""Names of series for a destination that has nothing but names: one for each series, and for each number made of one.

A destination without histograms and attributes gets names that are made up: `grad/mean` of the distribution `grad`,
`hw.power{hw.id=GPU-0}`. A metric may have been logged under just that name. Then the one that comes first keeps it, and within a
request what was logged; the other gets a suffix. The choice is kept in the destination's folder, so the next agent makes the same.
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
    """Names of series and of what is made of them, one for each. Used by one thread; blocks for the disk."""

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
            state: Folder for the state file; without one, choices do not outlive this agent.
            stored: The name under which a metric without attributes is stored.
            clean: Makes a part of a name of any text, for what is made up.
            longest: Characters of a name, at most; 0 for no limit.
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
        """Give their names to the metrics of a request that were logged, before any is made up."""
        for stepped in series:
            if stepped.identity == stepped.series.name:
                self.of(stepped)

    def of(self, stepped: SteppedSeries, part: str = "") -> str:
        """The name of a series, or of a part of it, such as `/mean`. `save` keeps the choice."""
        process, identity = stepped.sender.process, f"{stepped.identity}\0{part}"
        name = self._names.get((process, identity))
        if name is None:
            name = self._names[process, identity] = self._choose(process, stepped, part, identity)
        return name

    def save(self) -> None:
        """Keep what was chosen, before anything is written under it.

        Raises:
            OSError: The disk refuses.
        """
        if self._state is None or len(self._kept) == self._saved:
            return
        make_directory(self._state.parent)
        document = [[process, name, owner] for (process, name), owner in self._kept.items()]
        write_file(self._state, json.dumps(document))
        self._saved = len(self._kept)

    def _choose(self, process: str, stepped: SteppedSeries, part: str, identity: str) -> str:
        series = stepped.series
        made_up = self._clean(stepped.name.removeprefix(series.name) + part)
        plain = name = self._fit(self._stored(series.name) + made_up, identity)
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
        """A name with a suffix, not too long."""
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
            logger.warning("%s: %s cannot be read (%s); names are chosen again", self._destination, self._state, error)
        self._owners = dict(self._kept)
        self._saved = len(self._kept)
