"""Exclusion of the recorder from `torch.compile`.

A log call inside a compiled function causes a graph break: the graph ends before the call, the call runs uncompiled, and a new
graph begins after it. Without this module, dynamo would trace into the call, break the graph somewhere inside, and compile the
pieces.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, Final

__all__ = ["break_graph", "skip_own_files", "trace_into"]

_PACKAGE: Final = str(Path(__file__).parents[1])


def break_graph(function: Callable[..., Any]) -> None:
    """Mark a function so that dynamo does not trace it. `torch.compiler.disable` has the same effect, but adds a wrapper."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]


def trace_into(function: Callable[..., Any]) -> None:
    """Let dynamo trace a function of this package.

    Dynamo skips the package's files by name, so the function gets another file name.
    """
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_filename=f"<{function.__module__}>")


def skip_own_files() -> bool:
    """Make dynamo run this package's functions without tracing them, if dynamo is loaded.

    If dynamo is first loaded during a run, it may still trace the next log call inside a compiled function. Dynamo then logs
    warnings, but the recorded values are correct.

    Returns:
        Whether dynamo is loaded. If it is not, call this function again later.
    """
    rules = sys.modules.get("torch._dynamo.trace_rules")
    if rules is None:
        return False
    add = getattr(rules, "add", None)
    if add is not None and not any(directory.startswith(_PACKAGE) for directory in rules.SKIP_DIRS):
        add("tensormeter")
    return True
