"""Keeping `torch.compile` out of the recorder.

A log call inside a compiled function is a graph break: the graph ends before it, the call runs as always, another graph
begins after it. Left to itself, dynamo would look into the call instead, break somewhere inside, and compile the pieces.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, Final

__all__ = ["break_graph", "skip_own_files", "trace_into"]

_PACKAGE: Final = str(Path(__file__).parents[1])


def break_graph(function: Callable[..., Any]) -> None:
    """Mark a function as one that dynamo does not look into: what `torch.compiler.disable` does, without its wrapper."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]


def trace_into(function: Callable[..., Any]) -> None:
    """Let dynamo look into a function of this package: it goes by the name of the file."""
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_filename=f"<{function.__module__}>")


def skip_own_files() -> bool:
    """Tell dynamo, once it is loaded, to run this package's functions as they are.

    If it is loaded after the run was begun and the very next log call is inside a compiled function, dynamo does look into
    that one call, and says so in warnings; the values are right.

    Returns:
        Whether it is loaded; until then it has to be asked again.
    """
    rules = sys.modules.get("torch._dynamo.trace_rules")
    if rules is None:
        return False
    add = getattr(rules, "add", None)
    if add is not None and not any(directory.startswith(_PACKAGE) for directory in rules.SKIP_DIRS):
        add("tensormeter")
    return True
