"""Finding the run that a person means."""

from typing import Any, Final

from tensormeter.cli.client import ApiClient, ApiError
from tensormeter.cli.terminal import plain
from tensormeter.errors import UsageError

__all__ = ["find_run"]

_PAGE: Final = 1000


def find_run(client: ApiClient, selector: str, project: str | None) -> dict[str, Any]:
    """The run, with its last values, whose id is `selector`, or else whose name it is, or whose id begins with it.

    Raises:
        TensormeterError: No run, or several; the message names some.
    """
    try:
        return client.get("runs", selector, project=project)
    except ApiError as error:
        if error.status != 404:
            raise
    found: list[dict[str, Any]] = []
    offset, total = 0, 1
    while offset < total:
        page = client.get("runs", project=project, limit=_PAGE, offset=offset, fields="")
        found += [run for run in page["runs"] if run["name"] == selector or run["id"].startswith(selector)]
        offset, total = offset + _PAGE, page["total"]
    named = [run for run in found if run["name"] == selector] or found
    if len(named) == 1:
        return client.get("runs", named[0]["id"], project=named[0]["project"])
    if not named:
        raise UsageError(f"there is no run {plain(selector)!r}; see `tensormeter runs`")
    ids = ", ".join(plain(f"{run['project']}/{run['id']}") for run in named[:5])
    raise UsageError(
        f"{len(named)} runs match {plain(selector)!r} ({ids}{', ...' if len(named) > 5 else ''}); give an id"
    )
