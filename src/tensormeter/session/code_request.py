"""Request to the agent to describe the code of this process. The process itself reads nothing."""

import contextlib
import os
import sys
from typing import Any, Final

from tensormeter.conventions.semconv import RUN_CODE
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.record.media.item import EventContent

__all__ = ["request_code"]

_MOST_PATHS: Final = 200
_LONGEST_PATH: Final = 4096


def request_code() -> EventContent:
    """Return the places where the agent finds the program: the script, its folder, and `sys.path`."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folders = []
    with contextlib.suppress(OSError):  # it has been removed
        folders.append(os.getcwd())
    if isinstance(script, str) and script:
        script = os.path.join(*folders, script)
        folders.insert(0, os.path.dirname(os.path.realpath(script)))
    paths = [os.path.join(*folders[-1:], path) for path in list(sys.path)[:_MOST_PATHS] if isinstance(path, str)]
    body: dict[str, Any] = {
        "script": script if isinstance(script, str) else None,
        "folders": folders,
        "paths": [as_unicode(path) for path in paths if len(path) <= _LONGEST_PATH],
    }
    return EventContent(RUN_CODE, body)
