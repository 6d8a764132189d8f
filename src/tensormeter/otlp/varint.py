"""Base-128 varints, which encode tags and lengths in protobuf, and lengths in ClickHouse's RowBinary format.

A varint stores seven bits per byte, starting with the lowest bits.
"""

__all__ = ["decode_varint", "encode_varint"]


def encode_varint(number: int) -> bytes:
    """Encode a non-negative integer."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(body: memoryview, offset: int, end: int) -> tuple[int, int]:
    """Decode the varint at an offset. Return its value and the offset after it, or (0, -1) if there is no valid varint."""
    value = shift = 0
    while offset < end and shift < 64:
        byte = body[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
    return 0, -1
