"""Positions and meanings of the words in a ring file."""

import enum
from typing import Final

__all__ = [
    "AUTOMATIC_STEPS",
    "AUTOMATIC_STEPS_END",
    "DISK_REPORT",
    "DISK_REPORT_BYTES",
    "DURATION_BUCKETS",
    "HEADER_BYTES",
    "LANE_HEADER_BYTES",
    "LANE_TABLE",
    "LAYOUT_BITS",
    "LOG_DURATIONS",
    "LOST",
    "MAGIC",
    "MAX_LANES",
    "MAX_LAYOUT",
    "PENDING",
    "POSITION_SHIFT",
    "SHORTEST_DURATION_BITS",
    "SKIP",
    "TROUBLE",
    "TROUBLE_BYTES",
    "VERSION",
    "WRAP",
    "Drop",
    "EntryKind",
    "HeaderWord",
    "LaneWord",
    "LogPath",
    "SpoolLoss",
    "State",
]

MAGIC: Final = 0x474E_4952_5445_4D54  # "TMETRING" in the file
VERSION: Final = 2

HEADER_BYTES: Final = 4096
LANE_TABLE: Final = 64
TROUBLE: Final = 2048
"""Offset of the agent's delivery reports (`RingFile.report`): their length, then up to TROUBLE_BYTES bytes of UTF-8."""
TROUBLE_BYTES: Final = 1024
DISK_REPORT: Final = 3640
"""Offset of the agent's disk report (`RingFile.report_disk`): its length, then up to DISK_REPORT_BYTES bytes of UTF-8."""
DISK_REPORT_BYTES: Final = 440
LOG_DURATIONS: Final = 3200
"""Offset of the durations of log calls: for each `LogPath`, the sum in nanoseconds, then DURATION_BUCKETS bucket counts."""
SHORTEST_DURATION_BITS: Final = 6
DURATION_BUCKETS: Final = 26
"""Number of duration buckets. Bucket i counts durations above ``2 ** (i + 5)`` and up to ``2 ** (i + 6)`` ns. The first bucket
has no lower bound, and the last bucket has no upper bound."""
LANE_HEADER_BYTES: Final = 128
MAX_LANES: Final = 64

LAYOUT_BITS: Final = 16
POSITION_SHIFT: Final = 13
"""Shift of the position in a mark, ``position << 13 | layout``. Positions are multiples of 8, so the low 16 bits are free."""
WRAP: Final = 0xFFFF
SKIP: Final = 0xFFFE
MAX_LAYOUT: Final = 0xFFFD

AUTOMATIC_STEPS: Final = 0x5A7E_9000_0000_0000
"""First automatic step of a resumed process, for rows that are logged without a step. The agent replaces it with the step after
the last known step."""
AUTOMATIC_STEPS_END: Final = AUTOMATIC_STEPS + (1 << 44)

PENDING: Final = 0x7FF7_A5C3_5A3C_C3A5
LOST: Final = 0x7FF7_A5C3_5A3C_105D


class HeaderWord(enum.IntEnum):
    """Word indices in the file's header. The agent writes the words from AGENT_PID on, and the writer writes the others."""

    MAGIC = 0
    VERSION = 1
    FILE_BYTES = 2
    DICTIONARY_BYTES = 3
    LANES = 4
    WRITER_PID = 5
    CREATED = 6
    STATE = 7
    SIGTERM = 8
    """Time when the writer received SIGTERM, or 0."""
    FLUSH_REQUESTS = 9
    """Number of flushes that the writer has requested, incremented after each lane's `LaneWord.FLUSH` has been stored."""
    AGENT_PID = 16
    PENDING_REQUESTS = 17
    """Number of requests in the spool that an online destination has neither accepted nor rejected yet."""
    STALLED = 18
    """1 while a destination is unreachable and waiting for it is pointless. `RingFile.trouble` gives the reason."""
    QUARANTINED_ITEMS = 20
    """Number of points and events that a receiver has rejected permanently."""
    ENDED = 19
    """1 once all of the writer's data is in the spool, including the event that reports the writer's end."""
    FLUSHED = 21
    """Number of the last completed flush request. All data recorded before the request is delivered (offline: spooled)."""
    PULSE = 24
    """Time of the agent's last heartbeat, in nanoseconds of the machine's monotonic clock; 0 before the first heartbeat."""
    DISK_REPORTS = 25
    """Number of times that `RingFile.disk_report` has changed."""
    LAST_STEP = 28
    """Highest step that the agent has read, excluding automatic steps, plus 1; 0 if it has read no step of 0 or more."""
    LAST_AUTOMATIC = 29
    """Highest automatic step that the agent has read, minus AUTOMATIC_STEPS, plus 1; 0 if it has read none."""
    SPOOL_LOSSES = 32
    """First of the counters of lost items. There is one counter for each `SpoolLoss`."""


class LaneWord(enum.IntEnum):
    """Word indices in a lane's header. The agent writes TAIL, and the writer writes the others."""

    TAIL = 0
    """Position up to which rows are in the spool. Their space in the lane is free."""
    HEAD = 1
    """Position after the last row. The writer stores it on finishing, so that the reader can detect that it read every row."""
    DROPS = 2
    """First of the counters of dropped points. There is one counter for each `Drop`."""
    FLUSH = 15
    """Position up to which the last flush request asks for delivery."""


class Drop(enum.IntEnum):
    """Reason why a logged value could not be recorded. The counters count points: the values of a row, without its step."""

    RING_FULL = 0
    UNSUPPORTED_VALUE = 1
    TOO_MANY_LAYOUTS = 2
    DEVICE_UNFINISHED = 3
    MEDIA_FULL = 4
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    CONFIG_TOO_LARGE = 8


class SpoolLoss(enum.IntEnum):
    """Reason why a recorded item will not arrive. The counters cover all processes of the run on this node."""

    SPOOL_FULL_SYSTEM = 0
    SPOOL_FULL_MEDIA = 1
    SPOOL_FULL_SCALARS = 2
    DAMAGED = 3
    """The item could not be read back from the disk."""
    REFUSED = 4
    """A receiver rejected these items but accepted the rest of the request."""
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    """The encoded image was larger than its limit."""
    MEDIA_DAMAGED = 8
    """The file of a table, image or text could not be read or encoded."""


class State(enum.IntEnum):
    """State of the writer. A dead writer in state OPEN has crashed or, if it had received SIGTERM, was preempted."""

    OPEN = 0
    FINISHED = 1
    FAILED = 2
    PREEMPTED = 3


class LogPath(enum.IntEnum):
    """Path that a log call takes through the code."""

    DIRECT = 0
    """A single C call, for a known row of plain numbers. One call in 64 is timed."""
    GENERAL = 1
    """A call to `Recorder.log`. Every call is timed."""


class EntryKind(enum.IntEnum):
    """Kind of a dictionary entry."""

    VOID = 0
    """Empty entry, left behind when writing the entry was interrupted."""
    METADATA = 1
    LAYOUT = 2
