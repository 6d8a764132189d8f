"""Media that a destination cannot show. They are counted as refused, with one warning for each kind."""

from typing import Final

from tensormeter.logger import get_logger
from tensormeter_exporters.refused_items import RefusedItems

__all__ = ["UnsupportedMedia"]

logger: Final = get_logger("tensormeter.agent")


class UnsupportedMedia:
    """The kinds of media that one destination has refused. Not thread-safe."""

    def __init__(self, destination: str) -> None:
        """
        Args:
            destination: Name of the destination, for warnings.
        """
        self._destination = destination
        self._warned: set[str] = set()

    def refuse(self, refused: RefusedItems, kind: str, key: str) -> None:
        """Count an item as refused, and log a warning for the first item of its kind.

        Args:
            refused: Counter of the request's refused items.
            kind: Kind of the item, in the plural, such as "HTML documents".
            key: Key under which the item was logged.
        """
        reason = f"{self._destination} cannot show {kind}, such as {key[:100]!r}"
        refused.add(reason, is_unsupported=True)
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s; other destinations get them, and further ones are only counted", reason)
