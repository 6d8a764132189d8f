"""The ring file: the rows of a process in shared memory, and all metadata that the agent needs to deliver them.

A training process writes the file, and the agent reads it. Neither process waits for the other.
The file outlives its writer. Even after a SIGKILL, another process can open the file and read all complete rows.

Layout (little-endian words of 8 bytes; offsets in bytes from the start of the file)::

    0      header       4096 bytes with the words listed in `HeaderWord`; the lane table starts at word 64, the agent's
                        delivery reports at byte 2048, the durations of log calls at byte 3200, and the agent's disk
                        report at byte 3640
    4096   lanes        one per writing thread: 128 bytes with the words listed in `LaneWord`, then the rows

The accompanying `.names` file is the dictionary, which grows as needed (see `tensormeter.ring.dictionary`). The writer publishes
entries by storing the position after them in the ring's header. The first entry holds metadata (resource, settings, run). Later
entries hold numbered streams, layouts of rows that refer to these numbers, or metadata that replaces earlier metadata.
A `.documents` file holds the run's documents once they have changed. `.console` files hold output of the program.

A row consists of the words ``mark | time | step | value ... | mark``.
The mark is ``position << 13 | layout``. The position is the number of bytes written to the lane before the row, over all laps.
It is a multiple of 8, up to 2**50. The low 16 bits of the mark hold the id of the row's layout.
The writer stores the final mark after all other words, so a row is complete if its two marks match. If the writer is killed
while it writes a row, the bytes of this row have no matching marks, and all earlier rows are complete.
Rows never cross the end of a lane. A mark with the layout `WRAP` makes the reader continue at the start of the lane. A mark
with the layout `SKIP`, followed by a size, replaces a row that could not be written.
A row with the layout `ITEMS` or `ITEMS_UNSTEPPED` describes its own columns, so that rare combinations of names need no entry in
the dictionary. It consists of ``mark | time | step | columns << 32 | words | header ... | value ... | mark``, with the number of
its columns, the number of words that their values take, and one header ``stream << 32 | words << 8 | code`` per column.
On machines that reorder stores (arm64), a reader must let the writer's stores settle between checking the marks and reading
the values; see `tensormeter.agent.ingest.lane_reader`.

Values are float64 (`d`), int64 (`q`), float64 stored by a device (`D`), or distribution columns
(see `tensormeter.ring.histogram_buckets`).
The word of a device value holds `PENDING` until the device overwrites it with the value. The word holds `LOST` if the value can
no longer arrive. Both constants are NaN bit patterns that arithmetic never produces.

The writer holds a POSIX record lock on the accompanying `.lock` file until it exits or releases the file.
Forked child processes do not inherit POSIX locks. A child that outlives the writer is therefore not mistaken for the writer.
"""
