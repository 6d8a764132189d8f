"""The lines that a run prints when it starts and when it ends, and the address of its page.

The lines go to standard error, which is a terminal or the log file of a job. In a notebook, the address is a link.
"""

import contextlib
import html
import shlex
import sys
from typing import Any, Final
from urllib.parse import quote

from tensormeter.conventions.unicode_names import as_unicode, printable
from tensormeter.disk.user_folders import user_state_folder
from tensormeter.environment.otlp import belongs_to_opentelemetry
from tensormeter.settings import Settings

__all__ = ["in_notebook", "page_address", "print_end", "print_start", "sync_command"]

_PREFIX: Final = "tensormeter:"


def page_address(settings: Settings, run_id: str) -> str | None:
    """Return the URL of a run's page on an experiment server, or None if no destination of the run is such a server."""
    for destination in settings.exporters:
        if destination.partition(":")[0] != "experiment" or belongs_to_opentelemetry(settings.endpoint):
            continue
        endpoint = settings.options_of(destination).get("endpoint", settings.endpoint).rstrip("/")
        return f"{endpoint}/#/p/{_quoted(settings.project)}/runs/{_quoted(run_id)}"
    return None


def sync_command(settings: Settings) -> str:
    """Return the shell command that delivers data from this machine's spools."""
    folder = settings.directory
    return "tensormeter sync" if folder == user_state_folder() else f"tensormeter sync {shlex.quote(str(folder))}"


def print_start(settings: Settings, run_id: str, name: str) -> None:
    """Print the run's name, and its address or the command that delivers it. Never raises."""
    run = f"run {_label(name, run_id)}"
    if settings.mode == "offline" or settings.agent == "off":
        _print(f"{run} is recorded in {settings.directory}; deliver it with `{sync_command(settings)}`")
    elif (address := page_address(settings, run_id)) is not None:
        _print(f"{run}: {address}")
        _show_link(name, address)
    else:
        _print(f"{run} is delivered to {', '.join(settings.exporters)}")


def print_end(settings: Settings, run_id: str, name: str, state: str, outcome: str) -> None:
    """Print how the run ended, what arrived, and its address. Never raises.

    Args:
        settings: Settings of the run.
        run_id: ID of the run.
        name: Display name of the run.
        state: Final state of the run.
        outcome: Clause about the delivery, such as "all data was delivered".
    """
    is_delivered = settings.mode == "online" and settings.agent != "off"
    address = page_address(settings, run_id) if is_delivered else None
    _print(f"run {_label(name, run_id)} {state}; {outcome}{f': {address}' if address else ''}")


def in_notebook() -> bool:
    """Return whether this process runs a notebook or an IPython shell, where users often forget to finish a run."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _label(name: str, run_id: str) -> str:
    name = printable(name)
    return name if name == run_id else f"{name} ({run_id})"


def _quoted(text: str) -> str:
    return quote(as_unicode(text), safe="")


def _print(line: str) -> None:
    with contextlib.suppress(
        Exception
    ):  # standard error may be closed, or replaced with an object that raises anything
        sys.stderr.write(f"{_PREFIX} {as_unicode(line)}\n")
        sys.stderr.flush()


def _show_link(name: str, address: str) -> None:
    if not in_notebook():
        return
    with contextlib.suppress(Exception):  # a notebook without a display
        if not hasattr(sys.modules["IPython"].get_ipython(), "kernel"):  # a shell in a terminal, which shows no links
            return
        display: Any = sys.modules["IPython"].display
        link = f'<a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(name)}</a>'
        display.display(display.HTML(f"Run {link}"))
