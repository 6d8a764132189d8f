"""Positions and meanings of the words of a ring file."""

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
"""Offset of the agent's reports on delivery (`RingFile.report`): their length, then at most TROUBLE_BYTES of UTF-8."""
TROUBLE_BYTES: Final = 1024
DISK_REPORT: Final = 3640
"""Offset of the agent's report on the disk (`RingFile.report_disk`): its length, then at most DISK_REPORT_BYTES of UTF-8."""
DISK_REPORT_BYTES: Final = 440
LOG_DURATIONS: Final = 3200
"""Offset of the durations of log calls. Each `LogPath` has the sum in nanoseconds, then the counts of DURATION_BUCKETS buckets."""
SHORTEST_DURATION_BITS: Final = 6
DURATION_BUCKETS: Final = 26
"""Number of buckets. Bucket i counts durations above ``2 ** (i + 5)`` and up to ``2 ** (i + 6)`` ns. The first bucket has no
lower bound, the last no upper one."""
LANE_HEADER_BYTES: Final = 128
MAX_LANES: Final = 64

LAYOUT_BITS: Final = 16
POSITION_SHIFT: Final = 13
"""Shift of the position in a mark, ``position << 13 | layout``. Positions are multiples of 8, so the low 16 bits are free."""
WRAP: Final = 0xFFFF
SKIP: Final = 0xFFFE
MAX_LAYOUT: Final = 0xFFFD

AUTOMATIC_STEPS: Final = 0x5A7E_9000_0000_0000
"""First automatic step of a resumed process, for rows without a given step. The agent replaces it by the step after the last
known one."""
AUTOMATIC_STEPS_END: Final = AUTOMATIC_STEPS + (1 << 44)

PENDING: Final = 0x7FF7_A5C3_5A3C_C3A5
LOST: Final = 0x7FF7_A5C3_5A3C_105D


class HeaderWord(enum.IntEnum):
    """Word indices in the file's header. The agent writes the words from AGENT_PID on, the writer writes the others."""

    MAGIC = 0
    VERSION = 1
    FILE_BYTES = 2
    DICTIONARY_BYTES = 3
    LANES = 4
    WRITER_PID = 5
    CREATED = 6
    STATE = 7
    SIGTERM = 8
    """Time at which the writer received SIGTERM, or 0."""
    FLUSH_REQUESTS = 9
    """Number of flushes that the writer has requested. The writer stores each lane's `LaneWord.FLUSH` before it raises this."""
    AGENT_PID = 16
    PENDING_REQUESTS = 17
    """Requests that are spooled for an online destination, which has neither accepted nor rejected them yet."""
    STALLED = 18
    """1 while a destination cannot be reached and waiting for it is pointless. `RingFile.trouble` has the reason."""
    QUARANTINED_ITEMS = 20
    """Points and events that a receiver has rejected permanently."""
    ENDED = 19
    """1 once all data of the writer, and the event that reports its end, are in the spool."""
    FLUSHED = 21
    """Number of the last complete flush request. All data recorded before it are delivered (offline: spooled)."""
    PULSE = 24
    """Time of the agent's last sign of life, in nanoseconds of the machine's monotonic clock; 0 before the first one."""
    DISK_REPORTS = 25
    """Number of changes of `RingFile.disk_report`."""
    LAST_STEP = 28
    """One more than the highest step that the agent has read, from 0 up to AUTOMATIC_STEPS (exclusive); 0 if it read none."""
    LAST_AUTOMATIC = 29
    """One more than the highest automatic step that the agent has read, less AUTOMATIC_STEPS; 0 if it read none."""
    SPOOL_LOSSES = 32
    """First of the counters of lost items. There is one for each `SpoolLoss`."""


class LaneWord(enum.IntEnum):
    """Word indices in a lane's header. The agent writes TAIL, the writer writes the others."""

    TAIL = 0
    """Position up to which rows are in the spool, so that their space is free."""
    HEAD = 1
    """Position after the last row. The writer stores it when it finishes; the reader then detects that it has read every row."""
    DROPS = 2
    """First of the counters of dropped points. There is one for each `Drop`."""
    FLUSH = 15
    """Position up to which the last flush request asks for delivery."""


class Drop(enum.IntEnum):
    """Reason for a logged value that could not be recorded. The counters count points: the values of a row, without its step."""

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
    """Reason for a recorded item that will not arrive. The counters cover all processes of the run on this node."""

    SPOOL_FULL_SYSTEM = 0
    SPOOL_FULL_MEDIA = 1
    SPOOL_FULL_SCALARS = 2
    DAMAGED = 3
    """The item could not be read back from the disk."""
    REFUSED = 4
    """A receiver accepted the rest of the request and rejected these items."""
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    """The encoded image was larger than its limit."""
    MEDIA_DAMAGED = 8
    """The file of a table, image or text could not be read or encoded."""


class State(enum.IntEnum):
    """State that the writer stores. A dead writer whose state is OPEN has crashed; if it had received SIGTERM, it was preempted."""

    OPEN = 0
    FINISHED = 1
    FAILED = 2
    PREEMPTED = 3


class LogPath(enum.IntEnum):
    """Path of a log call through the code."""

    DIRECT = 0
    """One C call, for a known row of plain numbers. One call in 64 is timed."""
    GENERAL = 1
    """A call of `Recorder.log`. Every call is timed."""


class EntryKind(enum.IntEnum):
    """Kind of a dictionary entry."""

    VOID = 0
    """Empty entry, because writing it was interrupted."""
    METADATA = 1
    LAYOUT = 2
