"""Archives: folders that `tensormeter export --project` has written. docs/archive.md describes them.

An import repeats the requests of the original processes, so the server computes the same answers from them.
"""

from tensormeter.importers.archive.source import ArchivedRun, find

__all__ = ["ArchivedRun", "find"]
