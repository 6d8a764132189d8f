"""CRC-32C of many records at once, as TensorFlow's record files use it.

NumPy computes the checksums of all records of a block together, two bytes of each record at a time. Python has no other
CRC-32C without a further package. See RFC 3720 for the polynomial, and TensorFlow's `crc32c.h` for the masking.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["masked_checksums"]

_POLYNOMIAL: Final = 0x82F63B78
_MASK: Final = 0xA282EAD8

_UInt32 = NDArray[np.uint32]


def _byte_table() -> _UInt32:
    table: _UInt32 = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


def _pair_table(table: _UInt32) -> _UInt32:
    pairs: _UInt32 = np.arange(65536, dtype=np.uint32)
    for _ in range(2):
        pairs = table[pairs & 0xFF] ^ (pairs >> 8)
    return pairs


_BYTES: Final = _byte_table()
_PAIRS: Final = _pair_table(_BYTES)


def masked_checksums(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> _UInt32:
    """Return the masked CRC-32C of pieces of a buffer, uint32, shape (n,).

    Args:
        data: Buffer.
        starts: Offset of each piece, shape (n,).
        lengths: Length of each piece in bytes, shape (n,). The time is proportional to the sum, and a little more for the
            longest.
    """
    order = np.argsort(-lengths, kind="stable")
    positions, sizes = starts[order], lengths[order]
    checksums: _UInt32 = np.full(len(order), 0xFFFFFFFF, np.uint32)
    longest = int(sizes[0]) if len(sizes) else 0
    active = len(sizes)
    for offset in range(0, longest - longest % 2, 2):
        active = int(np.searchsorted(-sizes[:active], -(offset + 2), side="right"))
        at = positions[:active] + offset
        word = data[at].astype(np.uint32) | data[at + 1].astype(np.uint32) << np.uint32(8)
        part = checksums[:active]
        checksums[:active] = _PAIRS[(part ^ word) & 0xFFFF] ^ (part >> 16)
    odd = np.flatnonzero(sizes % 2)
    if len(odd):
        part = checksums[odd]
        checksums[odd] = _BYTES[(part ^ data[positions[odd] + sizes[odd] - 1]) & 0xFF] ^ (part >> 8)
    checksums ^= np.uint32(0xFFFFFFFF)
    masked = (checksums >> 15 | checksums << 17) + np.uint32(_MASK)
    result = np.empty_like(masked)
    result[order] = masked
    return result
