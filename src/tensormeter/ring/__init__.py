"""The ring file: a process's rows in shared memory, and all that is needed to deliver them.

A training process writes it, the agent reads it, and neither waits for the other.
The file outlives its writer: after SIGKILL every row whose write had ended can be read by anyone who opens the file.

Layout (little-endian words of 8 bytes; offsets in bytes from the start of the file)::

    0      header       4096 bytes, the words named in `HeaderWord`; the table of lanes begins at word 64, the agent's
                        words on a failing delivery at byte 2048, how long log calls took at byte 3200
    4096   dictionary   append-only entries: length | kind | JSON, padded to 8
    ...    lanes        one for each writing thread: 128 bytes of the words named in `LaneWord`, then the rows

A dictionary entry is published by writing its length last.
Entry 1 is the metadata (resource, settings, run), which a later entry may replace; the others describe row layouts.

A row is ``mark | time | step | value ... | mark``.
The mark is ``position << 13 | layout``: the row's position (bytes written to the lane before it, over all laps, a multiple
of 8, up to 2**50) and, in the low 16 bits, the id of its layout.
The last word of a row is stored last, so a row is there when both marks are right, and a writer killed at any instant
leaves whole rows followed by something that is not one.
Rows never straddle the end of a lane: a mark with the layout `WRAP` sends the reader back to its start, and one with
`SKIP`, followed by a size, covers a row whose writing failed.
On machines that reorder stores (arm64), a reader must let the writer's stores settle between seeing the marks and reading
the values: see `tensormeter.agent.ingest.lane_reader`.

Values are float64 (`d`), int64 (`q`), float64 stored by a device (`D`), or one of the columns of distributions
(see `tensormeter.ring.histogram_buckets`).
A device's word holds `PENDING` until the device has stored its value over it; `LOST` says that it never will.
Both are NaNs that arithmetic does not produce.

The writer holds a POSIX record lock on the file's `.lock` companion for as long as it lives.
Such a lock is not inherited over fork, so children that outlive the writer do not look like it.
"""
