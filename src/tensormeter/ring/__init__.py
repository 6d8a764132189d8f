"""The ring file: a process's rows in shared memory, with everything that is needed to deliver them.

A training process writes the file, and the agent reads it. Neither waits for the other.
The file outlives its writer. After SIGKILL, any process that opens the file can read every row that was completely written.

Layout (little-endian words of 8 bytes; offsets in bytes from the start of the file)::

    0      header       4096 bytes with the words named in `HeaderWord`; the lane table starts at word 64, the agent's
                        delivery reports at byte 2048, the durations of log calls at byte 3200, and the agent's disk
                        report at byte 3640
    4096   dictionary   append-only entries: length | kind | JSON, padded to 8 bytes
    ...    lanes        one per writing thread: 128 bytes with the words named in `LaneWord`, then the rows

The writer publishes a dictionary entry by writing its length last.
Entry 1 holds the metadata (resource, settings, run), which later entries may replace. The other entries describe row layouts.

A row is ``mark | time | step | value ... | mark``.
The mark is ``position << 13 | layout``. The position is the number of bytes written to the lane before the row, over all laps.
It is a multiple of 8, up to 2**50. The low 16 bits hold the id of the row's layout.
The writer stores the last word of a row last, so a row is complete when both marks match. A writer that is killed at any
moment leaves complete rows, followed by bytes that are not a row.
Rows never cross the end of a lane. A mark with the layout `WRAP` sends the reader back to the start of the lane. A mark with
the layout `SKIP`, followed by a size, covers a row that could not be written.
On machines that reorder stores (arm64), a reader must let the writer's stores settle between checking the marks and reading
the values; see `tensormeter.agent.ingest.lane_reader`.

Values are float64 (`d`), int64 (`q`), float64 stored by a device (`D`), or distribution columns
(see `tensormeter.ring.histogram_buckets`).
A word for a device value holds `PENDING` until the device overwrites it with the value. `LOST` means that no value will arrive.
Both are NaNs that arithmetic does not produce.

The writer holds a POSIX record lock on the accompanying `.lock` file for its whole lifetime.
Forked children do not inherit such a lock, so a child that outlives the writer is not mistaken for it.
"""
