"""The records in W&B's files. wandb reads them in Go only, so LevelDB's log format is undone here: blocks of 32 KiB, chunks with a
header of 7 bytes.
"""

import json
import struct

BLOCK = 32768


def records(path):
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    at, part = 7, b""  # after the file's own header
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def nested(items):
    """W&B takes mappings apart: every leaf is an item with the path to it."""
    document = {}
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = document
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return document


def rows(logged):
    return [nested(record.history.item) for record in logged if record.WhichOneof("record_type") == "history"]
