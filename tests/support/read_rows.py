"""The values of rows that the agent's reader returns, row by row."""

from collections.abc import Mapping

import numpy as np

from tensormeter.agent.ingest.item_rows import ItemRows
from tensormeter.agent.ingest.lane_reader import Rows
from tensormeter.ring.layout import Stream

__all__ = ["values_of_rows"]


def values_of_rows(rows: Rows | ItemRows, streams: Mapping[int, Stream]) -> list[dict[str, float | int | None]]:
    """The values of each row by name; None where a device never finished."""
    if isinstance(rows, Rows):
        masks = [[False] * len(rows.times) if mask is None else mask.tolist() for mask in rows.lost]
        columns = [column.tolist() for column in rows.columns]
        return [
            dict(
                zip(
                    rows.layout.names,
                    [None if mask[i] else column[i] for mask, column in zip(masks, columns, strict=True)],
                    strict=True,
                )
            )
            for i in range(len(rows.times))
        ]
    values: list[dict[str, float | int | None]] = [{} for _ in rows.times]
    for index, row in enumerate(rows.rows.tolist()):
        words = rows.values_of(index)
        cells = (words if chr(rows.codes[index]) not in "dD" else words.view(np.float64)).tolist()
        name = streams[int(rows.streams[index])].name
        values[row][name] = None if rows.lost[index] else cells[0] if len(cells) == 1 else cells
    return values
