"""Handling of cut-off processes: their rings are gone, and the spool does not contain their end events.

This happens after a power failure, or when a container or a person deletes the shared memory with the rings. The
contents of the spool are correct, but the last values may be missing. If a process is certainly gone, the agent adds an
end event with the state "crashed" to the spool. Without this event, the run would stay "running" forever.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from tensormeter.agent.spool.encoding import encode_log_request
from tensormeter.agent.spool.process_origin import Origin
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.semconv import RUN_END
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Event, Value

__all__ = ["describe_unknown", "end_cut_processes"]

logger: Final = get_logger("tensormeter.agent")

_NOTHING_STORED: Final = (
    "no data reached the disk before a power failure or the deletion of the run's files; the values are lost"
)

_NOTHING_KNOWN: Final = "the spool was damaged and no longer lists the run's processes; the last values may be missing"


_NEVER_SYNCED: Final = "the machine lost power or was restarted, and the spool was not synced (durability is none); any of its values may be missing"


def describe_unknown(losses: Mapping[str, int]) -> str:
    """Describe the end of a run without rings or recorded processes. `losses` are the spool's losses."""
    return _NOTHING_KNOWN if losses else _NOTHING_STORED


def end_cut_processes(
    spool: Spool,
    present: Collection[str],
    destinations: Sequence[str],
    losses: Mapping[str, int],
    *,
    synced: bool = True,
) -> list[str]:
    """Store the end events of cut-off processes in the spool.

    Args:
        spool: Spool of the run.
        present: IDs of the processes that have a ring.
        destinations: Destinations that receive log records.
        losses: Losses of the spool so far, which the events report.
        synced: Whether the spool is synced. If not, a power failure may have removed any of its contents.

    Returns:
        Distinct descriptions of how the processes ended, for users.

    Raises:
        SpoolError: The disk refuses the write.
    """
    descriptions: dict[str, None] = {}
    for process, ended, description in spool.processes():
        origin = Origin.from_json(description)
        if origin is not None and origin.rebooted and not synced:
            descriptions[_NEVER_SYNCED] = None
        if ended or process in present:
            continue
        fate = origin.fate() if origin is not None else ""
        if origin is None or not fate:
            descriptions[
                "the process had not ended when its spool was last written; its last values may be missing"
            ] = None
            continue
        descriptions[f"{fate}; its last values may be missing"] = None
        encoded = [] if origin.child else _end(origin, fate, spool.last_time(process), losses)
        spool.put(encoded, destinations, process, {}, started=True, ended=True)
    return list(descriptions)


def _end(origin: Origin, fate: str, last_time: int, losses: Mapping[str, int]) -> list[Encoded]:
    """Return a list with the request that ends a process; empty if the process's resource is invalid."""
    message = f"{fate}; the last values may be missing"
    body: dict[str, Value] = {"state": "crashed", "message": message, "dropped": dict(losses)}
    try:
        event = Event(RUN_END, last_time or time.time_ns(), body)
        return [encode_log_request(origin.resource, [event], Priority.ESSENTIAL)]
    except Exception as error:
        logger.warning("cannot record the end of a process: %s", error)
        return []
