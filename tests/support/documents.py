"""Examples in documentation pages."""

import re
from pathlib import Path

from support.processes import ROOT

__all__ = ["examples"]


def examples(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page of `docs/` in a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", Path(ROOT, "docs", page).read_text(), re.DOTALL)
