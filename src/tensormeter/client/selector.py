"""Lookup of a run by its ID, its name or the beginning of its ID."""

import json
import re
from typing import Any, Final

from tensormeter.client.connection import ApiError, Connection
from tensormeter.errors import UsageError

__all__ = ["find_run"]

_PAGE: Final = 1000
"""Number of runs per request."""

_ID: Final = re.compile(r"[\w.:@-]{1,256}", re.ASCII)
_MAX_NAME: Final = 1025
"""Number of characters of a selector that are compared with names, which have at most 1,024."""


def find_run(
    connection: Connection, selector: str, project: str | None = None, *, fields: str | None = None
) -> dict[str, Any]:
    """Find a run, and return its API document.

    Args:
        connection: Connection to the server.
        selector: ID of the run, its name, or the beginning of its ID, in this order of precedence.
        project: Project of the run. Default: all projects.
        fields: Comma-separated parts of the configuration and summary to read. Default: all.

    Raises:
        UsageError: No run matches, or several runs match; the message names up to five of them.
        TensormeterError: The server does not respond or returns an error.
    """
    try:
        return connection.get("runs", selector, project=project, fields=fields)
    except ApiError as error:
        if error.status != 404:
            raise
    matches: list[dict[str, Any]] = []
    offset: int | None = 0
    while offset is not None:
        page = connection.get("runs", project=project, limit=_PAGE, offset=offset, fields="", filter=_filter(selector))
        matches += [run for run in page["runs"] if run["name"] == selector or run["id"].startswith(selector)]
        offset = page["next"]
    matches = [run for run in matches if run["name"] == selector] or matches
    if len(matches) == 1:
        return connection.get("runs", matches[0]["id"], project=matches[0]["project"], fields=fields)
    if not matches:
        raise UsageError(f"no run {selector!r}; list runs with `tensormeter runs`")
    # Escape IDs as in a Python literal, so that a project's name cannot send control sequences to the terminal.
    ids = ", ".join(repr(f"{run['project']}/{run['id']}")[1:-1] for run in matches[:5])
    raise UsageError(f"{len(matches)} runs match {selector!r} ({ids}{', ...' if len(matches) > 5 else ''}); pass an ID")


def _filter(selector: str) -> str:
    """Return a filter for runs with this name, and for IDs that start with it."""
    condition = f"name = {json.dumps(selector[:_MAX_NAME])}"
    if _ID.fullmatch(selector):
        condition += f" or id ~ {json.dumps('^' + selector.replace('.', '[.]'))}"
    return condition
