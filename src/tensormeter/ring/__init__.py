"""The ring file: the rows of a process in shared memory, and all metadata that the agent needs to deliver them.

A training process writes the file, and the agent reads it. Neither process waits for the other.
The file outlives its writer. Even after a SIGKILL, another process can open the file and read all complete rows.

Layout (little-endian words of 8 bytes; offsets in bytes from the start of the file)::

    0      header       4096 bytes with the words listed in `HeaderWord`; the lane table starts at word 64, the agent's
                        delivery reports at byte 2048, the durations of log calls at byte 3200, and the agent's disk
                        report at byte 3640
    4096   dictionary   append-only entries: length | kind | JSON, padded to 8 bytes
    ...    lanes        one per writing thread: 128 bytes with the words listed in `LaneWord`, then the rows

The writer publishes a dictionary entry by writing its length after all other parts of the entry.
The first entry holds metadata (resource, settings, run). Later entries hold row layouts, or metadata that replaces earlier
metadata.

A row consists of the words ``mark | time | step | value ... | mark``.
The mark is ``position << 13 | layout``. The position is the number of bytes written to the lane before the row, over all laps.
It is a multiple of 8, up to 2**50. The low 16 bits of the mark hold the id of the row's layout.
The writer stores the final mark after all other words, so a row is complete if its two marks match. If the writer is killed
while it writes a row, the bytes of this row have no matching marks, and all earlier rows are complete.
Rows never cross the end of a lane. A mark with the layout `WRAP` makes the reader continue at the start of the lane. A mark
with the layout `SKIP`, followed by a size, replaces a row that could not be written.
On machines that reorder stores (arm64), a reader must let the writer's stores settle between checking the marks and reading
the values; see `tensormeter.agent.ingest.lane_reader`.

Values are float64 (`d`), int64 (`q`), float64 stored by a device (`D`), or distribution columns
(see `tensormeter.ring.histogram_buckets`).
The word of a device value holds `PENDING` until the device overwrites it with the value. The word holds `LOST` if the value can
no longer arrive. Both constants are NaN bit patterns that arithmetic never produces.

The writer holds a POSIX record lock on the accompanying `.lock` file until it exits or releases the file.
Forked child processes do not inherit POSIX locks. A child that outlives the writer is therefore not mistaken for the writer.
"""
