"""Finding the run that a person means."""

from typing import Any, Final

from tensormeter.client.connection import ApiError, Connection
from tensormeter.errors import UsageError

__all__ = ["find_run"]

_PAGE: Final = 1000


def find_run(connection: Connection, selector: str, project: str | None = None) -> dict[str, Any]:
    """The run, as the API gives it, whose id is `selector`, or else whose name it is, or whose id begins with it.

    Raises:
        TensormeterError: No run, or several; the message names some.
    """
    try:
        return connection.get("runs", selector, project=project)
    except ApiError as error:
        if error.status != 404:
            raise
    found: list[dict[str, Any]] = []
    offset, total = 0, 1
    while offset < total:
        page = connection.get("runs", project=project, limit=_PAGE, offset=offset, fields="")
        found += [run for run in page["runs"] if run["name"] == selector or run["id"].startswith(selector)]
        offset, total = offset + _PAGE, page["total"]
    named = [run for run in found if run["name"] == selector] or found
    if len(named) == 1:
        return connection.get("runs", named[0]["id"], project=named[0]["project"])
    if not named:
        raise UsageError(f"there is no run {selector!r}; see `tensormeter runs`")
    # Quoted as Python does it, so that no name of a project can move the cursor of a terminal.
    ids = ", ".join(repr(f"{run['project']}/{run['id']}")[1:-1] for run in named[:5])
    raise UsageError(f"{len(named)} runs match {selector!r} ({ids}{', ...' if len(named) > 5 else ''}); give an id")
