"""The Protobuf messages of W&B's records, reduced to the fields that the importer reads.

The definitions have the field numbers of `wandb_internal.proto` (W&B 0.12 to 0.31). They are complete enough to read the
files without the package `wandb`, and Protobuf skips all other fields.
"""

from typing import Any, Final

from tensormeter.importers.message_schema import build_messages

__all__ = ["HistoryItem", "HistoryRow", "Record", "record_kind"]

_MESSAGES: Final[dict[str, str]] = {
    "Timestamp": "1 seconds int64, 2 nanos int32",
    "Item": "1 key string, 2 nested_key string*, 16 value_json string",
    "Step": "1 num int64",
    "History": "1 item bytes*, 2 step Step",
    "Summary": "1 update Item*, 2 remove Item*",
    "Output": "1 output_type int32, 2 timestamp Timestamp, 3 line string",
    "Stats": "2 timestamp Timestamp, 3 item Item*",
    "File": "1 path string",
    "Files": "1 files File*",
    "ManifestEntry": "1 path string, 4 size int64",
    "Manifest": "4 contents ManifestEntry*",
    "Artifact": "4 type string, 5 name string, 6 digest string, 8 metadata string, 11 aliases string*, 12 manifest Manifest",
    "Alert": "1 title string, 2 text string, 3 level string",
    "MetricSummary": "1 min bool, 2 max bool, 3 mean bool, 4 best bool, 5 last bool, 6 none bool",
    "Metric": "1 name string, 2 glob_name string, 4 step_metric string, 7 summary MetricSummary",
    "Git": "1 remote_url string, 2 commit string",
    "Run": "1 run_id string, 2 entity string, 3 project string, 4 config Summary, 5 summary Summary, 6 run_group string, "
    "7 job_type string, 8 display_name string, 9 notes string, 10 tags string*, 12 sweep_id string, 13 host string, "
    "14 starting_step int64, 17 start_time Timestamp, 21 git Git",
    "Exit": "1 exit_code int32, 2 runtime int32",
    "Environment": "1 os string, 2 python string, 5 args string*, 6 program string, 9 git Git, 11 root string, "
    "12 host string, 14 executable string, 18 gpu_type string, 25 cuda_version string",
    "Record": "1 num int64, 2 history History, 3 summary Summary, 4 output Output, 5 config Summary, 6 files Files, 7 stats Stats, "
    "8 artifact Artifact, 10 alert Alert, 12 metric Metric, 13 output_raw Output, 17 run Run, 18 exit Exit, "
    "23 preempting File, 26 environment Environment",
    "HistoryRow": "1 item Item*, 2 step Step",
}
"""Fields by message; see `build_messages`. Configurations have the form of summaries."""


_CLASSES: Final = build_messages("tensormeter.importers.wandb", _MESSAGES)

_ENVELOPE: Final = frozenset({1, 16, 19, 200})
"""Fields of a record that precede or follow its contents: number, control, UUID and information about the sender."""

Record: Final[Any] = _CLASSES["Record"]
"""A record. The items of its history stay encoded, because most of them need no message."""
HistoryRow: Final[Any] = _CLASSES["HistoryRow"]
"""The contents of a record's history, with decoded items."""
HistoryItem: Final[Any] = _CLASSES["Item"]


def record_kind(data: bytes) -> int:
    """Return the field number of a record's contents, which is the kind of the record, without parsing it; 0 if unknown."""
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag >> 3 not in _ENVELOPE:
                return tag >> 3
            number, at = _varint(data, at)
            if tag & 7 == 2:
                at += number
            elif tag & 7:
                return 0
    except IndexError:
        pass
    return 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    return number | data[at] << shift, at + 1
