"""The end of a run as the script states it in its call of `finish`."""

import sys
from typing import Final

from tensormeter.errors import join_choices
from tensormeter.logger import get_logger
from tensormeter.record.warn_once import shown
from tensormeter.session import exit_hooks

__all__ = ["stated_outcome"]

logger: Final = get_logger()

_STATES: Final = ("finished", "failed", "preempted")


def stated_outcome(state: object, exit_code: object) -> exit_hooks.Outcome:
    """Return the final state of a run that ends now, and its cause. Invalid arguments cause a warning.

    Args:
        state: See `Run.finish`.
        exit_code: See `Run.finish`.
    """
    detected = exit_hooks.outcome()
    final, reason = _final_state(state, exit_code)
    if final is None:
        final = detected.state if detected.state == "preempted" else "finished"
    failure = exit_hooks.Failure(reason) if reason or final != detected.state else detected.failure
    error = sys.exc_info()[1]
    if final == "failed" and error is not None and not detected.failure.message:  # called in an `except` block
        failure = exit_hooks.describe_failure(type(error), error)
    return exit_hooks.Outcome(final, failure)


def _final_state(state: object, exit_code: object) -> tuple[str | None, str]:
    """Return the state that the arguments select, and the reason. The state is None if they select none."""
    if isinstance(state, int):
        exit_code, state = state if exit_code is None else exit_code, None
    if isinstance(exit_code, int):
        return ("failed", f"exit status {int(exit_code)}") if exit_code else ("finished", "")
    if exit_code is not None:
        logger.warning("finish: ignored the exit code %s; pass an integer", shown(exit_code))
    if state is None:
        return None, ""
    if issubclass(type(state), str) and state in _STATES:
        return _STATES[_STATES.index(state)], ""  # a plain string, also for a member of an Enum
    logger.warning("finish: ignored the state %s; expected %s", shown(state), join_choices(*_STATES))
    return None, ""
