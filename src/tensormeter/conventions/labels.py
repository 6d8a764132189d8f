"""The rule for names that people choose: projects, runs, groups and tags. Any text is a name, in any script."""

import re
from typing import Final

from tensormeter.conventions.unicode_names import as_unicode

__all__ = ["LONGEST_LABEL", "LONGEST_NAME", "fit_label"]

LONGEST_LABEL: Final = 128
"""Maximum length of the name of a project, group or tag, in characters."""

LONGEST_NAME: Final = 1_024
"""Maximum length of the display name of a run, in characters."""

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
"""Control characters, line breaks, and characters that reverse the direction of the text around them."""


def fit_label(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return the name closest to a text: control characters become spaces, and the rest is cut. The result may be empty."""
    return _CONTROLS.sub(" ", as_unicode(text)).strip()[:longest].rstrip()
