"""The form of a layout's rows: the place of each column among a row's words."""

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.ring.layout import Layout

__all__ = ["RowForm"]

_DEVICE: Final = "D"


class RowForm:
    """The places of the columns in the rows of one layout.

    Attributes:
        layout: Layout of the rows.
        codes: Storage codes of the columns, one character per column.
        offsets: Index of each column's first word among the words of a row's values, int64, shape (columns,).
        sizes: Number of words in each column, int64, shape (columns,).
        words: Number of words of a row's values.
        row_bytes: Size of a row in bytes.
        device_words: Indices of the words that a device writes, int64.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.codes = layout.codes
        self.sizes: NDArray[np.int64] = np.array([column.words for column in layout.columns], np.int64)
        ends = np.cumsum(self.sizes, dtype=np.int64)
        self.offsets: NDArray[np.int64] = ends - self.sizes
        self.words = int(ends[-1]) if len(ends) else 0
        self.row_bytes = layout.row_bytes
        from_device = self.code_bytes == ord(_DEVICE)
        self.device_words: NDArray[np.int64] = np.flatnonzero(np.repeat(from_device, self.sizes))

    @cached_property
    def code_bytes(self) -> NDArray[np.uint8]:
        """Storage code of each column, uint8, shape (columns,)."""
        return np.frombuffer(self.codes.encode("latin-1"), np.uint8)
