"""The words of a ring file: where they are, and what they mean."""

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
"""Offset of the agent's words on delivery (`RingFile.report`): their length, then at most TROUBLE_BYTES of UTF-8."""
TROUBLE_BYTES: Final = 1024
DISK_REPORT: Final = 3640
"""Offset of the agent's words on its disk (`RingFile.report_disk`): their length, then at most DISK_REPORT_BYTES of UTF-8."""
DISK_REPORT_BYTES: Final = 440
LOG_DURATIONS: Final = 3200
"""Offset of how long log calls took, for each `LogPath`: the sum in nanoseconds, then the counts of DURATION_BUCKETS buckets."""
SHORTEST_DURATION_BITS: Final = 6
DURATION_BUCKETS: Final = 26
"""Bucket i counts durations of more than ``2 ** (i + 5)`` and up to ``2 ** (i + 6)`` ns; the first and the last are open."""
LANE_HEADER_BYTES: Final = 128
MAX_LANES: Final = 64

LAYOUT_BITS: Final = 16
POSITION_SHIFT: Final = 13
"""A mark is ``position << 13 | layout``: positions are multiples of 8, so the low 16 bits are free for the layout."""
WRAP: Final = 0xFFFF
SKIP: Final = 0xFFFE
MAX_LAYOUT: Final = 0xFFFD

AUTOMATIC_STEPS: Final = 0x5A7E_9000_0000_0000
"""Where the steps of a resumed process begin that no caller gave: the agent replaces this by the step behind the last known one."""
AUTOMATIC_STEPS_END: Final = AUTOMATIC_STEPS + (1 << 44)

PENDING: Final = 0x7FF7_A5C3_5A3C_C3A5
LOST: Final = 0x7FF7_A5C3_5A3C_105D


class HeaderWord(enum.IntEnum):
    """Word indices in the file's header. Those from AGENT_PID on are written by the agent, the others by the writer."""

    MAGIC = 0
    VERSION = 1
    FILE_BYTES = 2
    DICTIONARY_BYTES = 3
    LANES = 4
    WRITER_PID = 5
    CREATED = 6
    STATE = 7
    SIGTERM = 8
    """Time at which the writer was told to end, or 0."""
    FLUSH_REQUESTS = 9
    """Number of flushes that the writer has requested. Each lane's `LaneWord.FLUSH` is stored before it is raised."""
    AGENT_PID = 16
    PENDING_REQUESTS = 17
    """Requests spooled for an online destination and neither accepted nor rejected yet."""
    STALLED = 18
    """1 while a destination cannot be reached, and it makes no sense to wait for it. `RingFile.trouble` says why."""
    QUARANTINED_ITEMS = 20
    """Points and events that a receiver has rejected for good."""
    ENDED = 19
    """1 once everything that the writer left, and the news of its end, is in the spool."""
    FLUSHED = 21
    """Number of the last flush request that is complete: everything recorded before it is delivered (offline: spooled)."""
    PULSE = 24
    """When the agent last was alive, in nanoseconds of the machine's monotonic clock; 0 before the first time."""
    DISK_REPORTS = 25
    """Number of times that `RingFile.disk_report` has changed."""
    LAST_STEP = 28
    """One more than the highest step from 0 that was read, but for those from AUTOMATIC_STEPS on; 0 if none was."""
    LAST_AUTOMATIC = 29
    """The same of those, less AUTOMATIC_STEPS."""
    SPOOL_LOSSES = 32
    """The first of the counters of items, one for each `SpoolLoss`."""


class LaneWord(enum.IntEnum):
    """Word indices in a lane's header. TAIL is written by the agent, the others by the writer."""

    TAIL = 0
    """Position up to which rows are in the spool and their space is free."""
    HEAD = 1
    """Position after the last row; written when the writer finishes, to know when everything has been read."""
    DROPS = 2
    """The first of the counters, one for each `Drop`."""
    FLUSH = 15
    """Position up to which the last flush request wants rows delivered."""


class Drop(enum.IntEnum):
    """Why something that was logged could not be recorded. Counted in points: the values of a row, without its step."""

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
    """Why something that was recorded will not arrive. Of all processes of the run on this node together."""

    SPOOL_FULL_SYSTEM = 0
    SPOOL_FULL_MEDIA = 1
    SPOOL_FULL_SCALARS = 2
    DAMAGED = 3
    """Could not be read from the disk any more."""
    REFUSED = 4
    """A receiver took the rest of the request, but not these."""
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    """Larger than its limit once it was encoded."""
    MEDIA_DAMAGED = 8
    """A table, image or text whose file could not be read or encoded."""


class State(enum.IntEnum):
    """What the writer says of itself. A dead writer whose state is still OPEN has crashed, or was preempted if it had been
    told to end.
    """

    OPEN = 0
    FINISHED = 1
    FAILED = 2
    PREEMPTED = 3


class LogPath(enum.IntEnum):
    """Which way a log call went."""

    DIRECT = 0
    """One C call, for a known row of plain numbers. One call in 64 is timed."""
    GENERAL = 1
    """Through `Recorder.log`. Every call is timed."""


class EntryKind(enum.IntEnum):
    """Kinds of dictionary entries."""

    VOID = 0
    """Nothing: writing the entry was interrupted."""
    METADATA = 1
    LAYOUT = 2
