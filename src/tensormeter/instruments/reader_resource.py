"""The resource that the SDK's metric readers get: that of the run."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.sdk.resources import Resource

from tensormeter.conventions.semconv import SERVICE_NAME

__all__ = ["ReaderResource", "merge_resources"]

_UNKNOWN_SERVICE: Final = "unknown_service"
"""What the SDK calls a service whose name is not given, or the beginning of it."""


class ReaderResource(Resource):
    """A resource whose attributes are looked up when they are read: the run may begin after the provider is made."""

    def __init__(self, find: Callable[[], Mapping[str, Any]], schema_url: str = "") -> None:
        """
        Args:
            find: Finds the attributes. Any thread.
            schema_url: Of the attributes.
        """
        super().__init__({}, schema_url)
        self._find = find

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self._find()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def merge_resources(run: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that the program gives over those of the run, but for the SDK's words for what was not given."""
    named = {
        name: value
        for name, value in given.items()
        if not (name == SERVICE_NAME and str(value).startswith(_UNKNOWN_SERVICE))
        and not (name.startswith("telemetry.sdk.") and name in run)
    }
    return {**run, **named}
