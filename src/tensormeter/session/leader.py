"""The process of a run that does once what not every rank needs to do."""

from tensormeter.conventions.semconv import RANK
from tensormeter.resource import describe_rank
from tensormeter.settings import Settings

__all__ = ["is_leader"]


def is_leader(settings: Settings) -> bool:
    """Return whether this process prints, warns, and records the console and the code for all ranks of the run."""
    return settings.ranks == "this" or not describe_rank().get(RANK)
