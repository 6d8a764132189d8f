"""Base-128 varints, which encode lengths and tags in protobuf and ClickHouse's RowBinary: seven bits per byte, lowest first."""

__all__ = ["decode_varint", "encode_varint"]


def encode_varint(number: int) -> bytes:
    """Encode a non-negative number."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(body: memoryview, offset: int, end: int) -> tuple[int, int]:
    """Decode the varint at an offset. Return its value and the offset after it, or an offset of -1 if there is no varint."""
    value = shift = 0
    while offset < end and shift < 64:
        byte = body[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
    return 0, -1
