"""The resource of a run, in the form that SDK metric readers receive."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.sdk.resources import Resource

from tensormeter.conventions.semconv import SERVICE_NAME

__all__ = ["ReaderResource", "merge_resources"]

_UNKNOWN_SERVICE: Final = "unknown_service"
"""Prefix of the default service name that the SDK uses."""


class ReaderResource(Resource):
    """A resource that looks up its attributes on each read, because the run may start after the provider has been created."""

    def __init__(self, find: Callable[[], Mapping[str, Any]], schema_url: str = "") -> None:
        """Create a resource.

        Args:
            find: Thread-safe function that returns the attributes.
            schema_url: Schema URL of the attributes.
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


def merge_resources(run: Mapping[str, Any], program: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the resource attributes of the run and the program.

    The program's attributes take precedence, except for the default attributes that the SDK adds.
    """
    overrides = {
        name: value
        for name, value in program.items()
        if not (name == SERVICE_NAME and str(value).startswith(_UNKNOWN_SERVICE))
        and not (name.startswith("telemetry.sdk.") and name in run)
    }
    return {**run, **overrides}
