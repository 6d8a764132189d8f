"""Documents that would expand into more memory than they are worth."""

import pytest
from google.protobuf.message import DecodeError

from support.imported_runs import read_all
from support.record_logs import record_log
from tensormeter.errors import EncodingError
from tensormeter.importers import bounded_parsing
from tensormeter.importers.bounded_parsing import parse_json, parse_message
from tensormeter.importers.tensorboard.messages import Event, HParams, Value
from tensormeter.importers.wandb.messages import HistoryItem, Record
from tensormeter.otlp.varint import encode_varint

LIMIT = 1000
EMPTY = b"\x0a\x00" * (LIMIT + 1)
"""Empty elements of field 1, which expand the most."""


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """The same limits a thousand times smaller, so that the documents are small too."""
    monkeypatch.setattr(bounded_parsing, "MOST_FIELDS", LIMIT)
    monkeypatch.setattr(bounded_parsing, "MOST_VALUES", LIMIT)
    monkeypatch.setattr(bounded_parsing, "_SMALL", LIMIT)


def field(number: int, contents: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(contents)) + contents


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Record, field(2, EMPTY)),
        (Record, field(17, field(4, EMPTY))),
        (HistoryItem, EMPTY.replace(b"\x0a", b"\x12")),
        (Event, field(5, EMPTY)),
        (Value, field(8, EMPTY.replace(b"\x0a", b"\x42"))),
        (Value, field(8, field(10, b"\1" * 16 * LIMIT))),
        (HParams, field(3, EMPTY)),
    ],
)
def test_messages_with_too_many_fields_are_refused(kind, data):
    with pytest.raises(DecodeError, match="more than 1,000 fields"):
        parse_message(kind, data)


def test_large_messages_with_few_fields_are_parsed():
    image = Value(tag="image")
    image.image.encoded_image_string = bytes(1 << 20)
    image.tensor.double_val.extend([0.5] * 500)
    assert parse_message(Value, image.SerializeToString()) == image
    with pytest.raises(DecodeError):
        parse_message(Value, image.SerializeToString()[:-1])


def test_json_with_too_many_values_is_refused():
    with pytest.raises(EncodingError, match="more than 1,000 values"):
        parse_json(b"[" + b"[]," * (LIMIT // 2) + b"1]")
    assert len(parse_json("[" + "1," * 600 + "1]")) == 601


def test_otlp_with_too_many_values_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("tensormeter.importers.otlp_lines._MOST_VALUES", LIMIT)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"resourceMetrics": [' + "{}," * LIMIT + "{}]}\n" + '{"resourceMetrics": []}\n')
    (fault,) = read_all(path).faults
    assert fault.endswith("lines.jsonl:1: skipped, more than 1,000 values")


def test_a_record_that_expands_costs_only_itself(tmp_path):
    run = Record(num=1)
    run.run.run_id = run.run.project = "expanding"
    row = Record(num=2)
    row.history.item.append(HistoryItem(key="loss", value_json="1").SerializeToString())
    path = tmp_path / "run-expanding.wandb"
    path.write_bytes(record_log([run.SerializeToString(), field(2, EMPTY), field(3, EMPTY), row.SerializeToString()]))
    tally = read_all(path)
    assert (tally.runs, tally.points, tally.left_out["damaged W&B records"]) == (1, 1, 2)
