"""The positions and meanings of the words in a ring file."""

import enum
from typing import Final

__all__ = [
    "AUTOMATIC_STEPS",
    "AUTOMATIC_STEPS_END",
    "CONSOLE_HEADER_BYTES",
    "CONSOLE_MAGIC",
    "CONSOLE_VERSION",
    "DISK_REPORT",
    "DISK_REPORT_BYTES",
    "DURATION_BUCKETS",
    "HEADER_BYTES",
    "ITEMS",
    "ITEMS_UNSTEPPED",
    "ITEM_CODE_BITS",
    "ITEM_STREAM_SHIFT",
    "LANE_HEADER_BYTES",
    "LANE_TABLE",
    "LAYOUT_BITS",
    "LOG_DURATIONS",
    "LOST",
    "MAGIC",
    "MAX_ITEM_WORDS",
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
    "ConsoleKind",
    "ConsoleWord",
    "Drop",
    "EntryKind",
    "HeaderWord",
    "LaneWord",
    "LogPath",
    "SpoolLoss",
    "State",
]

MAGIC: Final = 0x474E_4952_5445_4D54  # "TMETRING" in the file
VERSION: Final = 3

HEADER_BYTES: Final = 4096
LANE_TABLE: Final = 64
TROUBLE: Final = 2048
"""Offset of the agent's delivery reports (`RingFile.report`): the length, then up to TROUBLE_BYTES bytes of UTF-8."""
TROUBLE_BYTES: Final = 1024
DISK_REPORT: Final = 3640
"""Offset of the agent's disk report (`RingFile.report_disk`): the length, then up to DISK_REPORT_BYTES bytes of UTF-8."""
DISK_REPORT_BYTES: Final = 440
LOG_DURATIONS: Final = 3200
"""Offset of the log call durations. Each `LogPath` has their sum in nanoseconds, followed by DURATION_BUCKETS bucket counts."""
SHORTEST_DURATION_BITS: Final = 6
DURATION_BUCKETS: Final = 26
"""Number of duration buckets. Bucket i counts durations in ``(2 ** (i + 5), 2 ** (i + 6)]`` ns. The first bucket has no lower
bound, and the last bucket has no upper bound."""
LANE_HEADER_BYTES: Final = 128
MAX_LANES: Final = 64

LAYOUT_BITS: Final = 16
POSITION_SHIFT: Final = 13
"""Number of bits by which a mark shifts the position: ``position << 13 | layout``. Positions are multiples of 8, so the low 16
bits are free for the layout."""
WRAP: Final = 0xFFFF
SKIP: Final = 0xFFFE
ITEMS: Final = 0xFFFD
"""Layout of rows that describe their own columns: rows of rare sets of names."""
ITEMS_UNSTEPPED: Final = 0xFFFC
"""Like ITEMS, but for rows without a step."""
MAX_LAYOUT: Final = 0xFFFB

ITEM_STREAM_SHIFT: Final = 32
ITEM_CODE_BITS: Final = 8
MAX_ITEM_WORDS: Final = (1 << 24) - 1
"""Maximum number of words in a column of a row with the layout ITEMS."""

AUTOMATIC_STEPS: Final = 0x5A7E_9000_0000_0000
"""First of the placeholder steps that a resumed process gives to rows logged without a step. The agent replaces them with the
steps that follow the last known step."""
AUTOMATIC_STEPS_END: Final = AUTOMATIC_STEPS + (1 << 44)

PENDING: Final = 0x7FF7_A5C3_5A3C_C3A5
LOST: Final = 0x7FF7_A5C3_5A3C_105D


class HeaderWord(enum.IntEnum):
    """Indices of the words in the file's header. The agent writes all words from AGENT_PID on. The writer writes the others."""

    MAGIC = 0
    VERSION = 1
    FILE_BYTES = 2
    DICTIONARY_END = 3
    """Position in the dictionary file up to which its entries are complete."""
    LANES = 4
    WRITER_PID = 5
    CREATED = 6
    STATE = 7
    SIGTERM = 8
    """Time when the writer received SIGTERM, in nanoseconds since the Unix epoch, or 0."""
    DOCUMENT_CHANGES = 10
    """Number of times that the writer has changed the run's documents (see `RingFile.write_documents`)."""
    FLUSH_REQUESTS = 9
    """Number of flushes that the writer has requested. The writer first stores `LaneWord.FLUSH` in all lanes."""
    AGENT_PID = 16
    PENDING_REQUESTS = 17
    """Number of spooled requests that at least one online destination has neither accepted nor rejected yet."""
    STALLED = 18
    """1 while a destination is unreachable, so that waiting for delivery is pointless. `RingFile.trouble` gives the reason."""
    QUARANTINED_ITEMS = 20
    """Number of points and events that a receiver has rejected permanently."""
    ENDED = 19
    """1 once all of the writer's data is in the spool, including the event that marks the writer's end."""
    FLUSHED = 21
    """Number of the last completed flush request. All data that precedes it has been delivered or, in an offline run, spooled."""
    PULSE = 24
    """Time of the agent's last heartbeat, in nanoseconds of the machine's monotonic clock; 0 before the first heartbeat."""
    DISK_REPORTS = 25
    """Number of times that `RingFile.disk_report` has changed."""
    LAST_STEP = 28
    """Highest non-negative step that the agent has read, plus 1; 0 if there is none. Automatic steps are not included."""
    LAST_AUTOMATIC = 29
    """Number of automatic steps up to the highest one that the agent has read, or 0 if it has read none."""
    SETTLED_ATTEMPT = 30
    """Number of the attempt once the agent has settled it (see `tensormeter.agent.attempts`); 0 before."""
    SPOOL_LOSSES = 32
    """First counter of lost items. There is one counter for each `SpoolLoss`."""

    AGENT_SLEEPS = 48
    """1 while the agent sleeps for up to a second, so that a writer must wake it if a lane fills up; otherwise 0."""


class LaneWord(enum.IntEnum):
    """Indices of the words in a lane's header. The agent writes TAIL, and the writer writes the others."""

    TAIL = 0
    """Position up to which the rows are in the spool. The writer may overwrite these rows."""
    HEAD = 1
    """Position after the last row. The writer stores it when it finishes, so the reader can verify that it read every row."""
    DROPS = 2
    """First counter of dropped points. There is one counter for each `Drop`."""
    FLUSH = 15
    """Position up to which the last flush request asks the agent to deliver rows."""


class Drop(enum.IntEnum):
    """Reason why a logged value could not be recorded. Each value of a row counts as one point. The step does not count."""

    RING_FULL = 0
    UNSUPPORTED_VALUE = 1
    TOO_MANY_NAMES = 2
    DEVICE_UNFINISHED = 3
    MEDIA_FULL = 4
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    CONFIG_TOO_LARGE = 8
    MEDIA_TOO_LARGE = 9
    """An audio clip, a video, an HTML document or a figure was larger than its limit."""
    NONE_VALUE = 10
    """The value was None."""


class SpoolLoss(enum.IntEnum):
    """Reason why a recorded item cannot be delivered. The counters cover all of the run's processes on this node."""

    SPOOL_FULL_SYSTEM = 0
    SPOOL_FULL_MEDIA = 1
    SPOOL_FULL_SCALARS = 2
    DAMAGED = 3
    """The item could not be read back from the disk."""
    REFUSED = 4
    """A receiver rejected the item but accepted other items of the same request."""
    TEXT_TOO_LARGE = 5
    TABLE_TOO_LARGE = 6
    IMAGE_TOO_LARGE = 7
    """The encoded image was larger than its limit."""
    MEDIA_DAMAGED = 8
    """The file of a media item could not be read or encoded."""
    MEDIA_TOO_LARGE = 9
    """The encoded audio clip or video was larger than its limit."""
    SPOOL_FULL_LOGS = 10


class State(enum.IntEnum):
    """State of the writer. A writer that ended in state OPEN has crashed, or was preempted if it had received SIGTERM."""

    OPEN = 0
    FINISHED = 1
    FAILED = 2
    PREEMPTED = 3


class LogPath(enum.IntEnum):
    """Code path of a log call."""

    DIRECT = 0
    """A call to a specialized writer, for plain numbers with known keys and types. One call in 64 is timed."""
    GENERAL = 1
    """A call to `Recorder.log` or to a writer for device values. Every call is timed."""


class EntryKind(enum.IntEnum):
    """Kind of a dictionary entry."""

    VOID = 0
    """Entry without content, left behind by an interrupted write."""
    METADATA = 1
    LAYOUT = 2
    STREAMS = 3
    """A list of streams, and the number of the first one. The others have the following numbers."""


CONSOLE_MAGIC: Final = 0x534E_4F43_5445_4D54  # "TMETCONS" in the file
CONSOLE_VERSION: Final = 1
CONSOLE_HEADER_BYTES: Final = 4096


class ConsoleWord(enum.IntEnum):
    """Indices of the words in the header of a console file. The agent writes all words from TAIL on."""

    MAGIC = 0
    VERSION = 1
    SIZE = 2
    """Size of the space for chunks in bytes."""
    WRITER_PID = 3
    HEAD = 4
    """Position after the last complete chunk."""
    FULL = 5
    """Number of lines that were dropped because the space was full."""
    CHILD_STAMP = 6
    """Changes when a forked child creates its file. Children write this word, too."""
    RELAY_BUSY = 8
    """1 while a relay passes bytes on."""
    RELAY_READY = 9
    """1 once a relay has started."""
    RELAY_SUPERVISOR = 10
    """ID of the relay's supervising process."""
    RELAY_WORKER = 11
    """ID of the relay's process that passes bytes on."""
    RELAY_RELEASED = 12
    """Bits of the kinds of streams whose pipes the program has closed."""
    TAIL = 16
    """Position up to which the space is free."""
    TOO_FAST = 17
    """Number of lines that the agent left out because there were too many in a short time."""
    OVER_LIMIT = 18
    """Number of lines that the agent left out because the process had printed more than `console_max_bytes`."""
    REPLAY = 20
    """Position of an earlier chunk. Another agent reads from here to know the lines that are still to come in a file."""


class ConsoleKind(enum.IntEnum):
    """Kind of a chunk in a console file."""

    STDOUT = 1
    STDERR = 2
    LOG_RECORD = 3
    """A record of Python's `logging`, as JSON."""
    LOGGED_STDOUT = 5
    """Text that a handler of `logging` printed. Its log record was captured, so the text is not recorded again."""
    LOGGED_STDERR = 6
