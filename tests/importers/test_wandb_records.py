"""Records that older versions of wandb write, and records that could be mistaken for others."""

import json

import numpy as np
import pytest

from support.import_server import left_out
from support.record_logs import BLOCK, record_log
from tensormeter.importers.wandb.messages import HistoryItem, HistoryRow, Record, record_kind
from tensormeter.importers.wandb.record_log import read_records


def run_record(run_id: str) -> bytes:
    record = Record(num=1)
    record.run.run_id = record.run.project = run_id
    record.run.start_time.seconds = 1_750_000_000
    return record.SerializeToString()


def history_record(row: dict, *, nested: bool = False) -> bytes:
    record = Record(num=2)
    for key, value in row.items():
        item = HistoryItem(value_json=json.dumps(value))
        if nested:
            item.nested_key.append(key)
        else:
            item.key = key
        record.history.item.append(item.SerializeToString())
    return record.SerializeToString()


@pytest.fixture
def contents_of(server, run_import, tmp_path):
    """Imports a log with these rows, and returns the run that the server has."""

    def contents_of(run_id: str, *rows: bytes):
        path = tmp_path / f"run-{run_id}.wandb"
        path.write_bytes(record_log([run_record(run_id), *rows]))
        result = run_import(path)
        return server.contents(run_id)[run_id], result

    return contents_of


def test_rows_of_older_versions_have_documents_as_values(contents_of):
    rows = [
        {
            "_step": step,
            "_timestamp": 1_750_000_000 + step,
            "loss": step / 3,
            "outer": {"inner": {"x": step}, "text": "word"},
            "h": {"_type": "histogram", "values": [1, 2], "bins": [0.0, 1.0, 2.0]},
            "p": {"_type": "histogram", "values": [1, 2], "packedBins": {"min": 0.0, "size": 0.5, "count": 2}},
        }
        for step in range(5)
    ]
    run, _ = contents_of("older", *map(history_record, rows))
    assert run["series"]["loss"][0]["value"] == [step / 3 for step in range(5)]
    assert run["series"]["outer.inner.x"][0]["value"] == list(range(5))
    assert len(run["histograms"]["h"]) == len(run["histograms"]["p"]) == 5
    assert run["run"]["state"] == "crashed"


@pytest.mark.parametrize("length", [127, 128, 129, 130, 131, 258, 300])
def test_keys_and_values_of_any_length_are_told_apart(contents_of, length):
    """A length of 130 is encoded like the tag of the value."""
    name, text, digits = "k" * length, "1" * length, "0." + "3" * length
    rows = [
        {"_step": step, "_timestamp": 1_750_000_000 + step, name: step + 0.5, "t": text, "n": float(digits)}
        for step in range(3)
    ]
    run, _ = contents_of(f"length{length}", *(history_record(row, nested=True) for row in rows))
    assert run["series"][name][0]["value"] == [0.5, 1.5, 2.5]
    assert run["series"]["n"][0]["value"] == [float(digits)] * 3
    assert any(event["body"].get("text") == text for event in run["events"] if event["name"] == "tensormeter.text")


def test_values_that_change_their_type_are_kept(contents_of):
    values = [1, 2.5, "text", True, float("nan"), None, [1], 2**70, -3]
    rows = [{"_step": step, "_timestamp": 1_750_000_000 + step, "m": value} for step, value in enumerate(values)]
    run, result = contents_of("types", *(history_record(row, nested=True) for row in rows))
    (series,) = run["series"]["m"]
    assert dict(zip(series["step"], series["value"], strict=True)) == {
        0: 1,
        1: 2.5,
        3: 1,
        4: "NaN",
        7: float(2**70),
        8: -3,
    }
    assert left_out(result) == {"null values in the history": 1, "lists in the history": 1}


def test_records_of_any_length_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [
        0,
        1,
        BLOCK - 15,
        BLOCK - 14,
        BLOCK - 13,
        BLOCK - 8,
        BLOCK - 7,
        BLOCK - 6,
        3 * BLOCK,
        *rng.integers(0, 99999, 30),
    ]
    records = [rng.bytes(int(size)) for size in sizes]
    path = tmp_path / "run.wandb"
    path.write_bytes(record_log(records))
    assert list(read_records(path)) == records


def test_damage_at_any_byte_costs_records_but_invents_none(tmp_path):
    rng = np.random.default_rng(1)
    records = [rng.bytes(int(size)) for size in rng.integers(1, 9000, 30)]
    data = record_log(records)
    path = tmp_path / "run.wandb"
    for offset in rng.integers(7, len(data), 60).tolist():
        damaged = bytearray(data)
        damaged[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        faults = []
        kept = list(read_records(path, damage=faults.append))
        assert set(kept) <= set(records)
        assert faults or kept == records


def test_the_kind_of_a_record_is_found_behind_its_envelope():
    for name, number in {"history": 2, "run": 17, "exit": 18, "environment": 26, "output_raw": 13}.items():
        record = Record(num=300)
        getattr(record, name).SetInParent()
        assert record_kind(record.SerializeToString()) == number
        assert record_kind(b"\x82\x01\x03abc" + record.SerializeToString()) == number  # field 16, `control`
    assert record_kind(b"") == record_kind(b"\x08") == 0
    assert HistoryRow.FromString(b"").item == []


@pytest.mark.parametrize("step", [b"1.5", b"1e400", b"NaN", b"9223372036854775808"])
def test_invalid_steps_and_times_cost_no_other_value(contents_of, step):
    run_id = f"step-{step.decode()}"
    odd = Record()
    odd.ParseFromString(history_record({"_step": 0, "_timestamp": 1_750_000_000, "loss": 1, "text": "kept"}))
    odd.history.step.num = 7
    for index, key in ((0, "_step"), (1, "_timestamp")):
        odd.history.item[index] = HistoryItem(key=key, value_json=step).SerializeToString()
    odd.history.item.append(HistoryItem(key="lost").SerializeToString()[:-1])
    rows = [{"_step": number, "_timestamp": 1_750_000_000 + number, "loss": number} for number in range(8, 12)]
    run, result = contents_of(run_id, odd.SerializeToString(), *map(history_record, rows))
    assert (run["series"]["loss"][0]["step"], run["series"]["loss"][0]["value"]) == (
        [7, 8, 9, 10, 11],
        [1, 8, 9, 10, 11],
    )
    assert left_out(result)["damaged values in the history"] == 1
    assert left_out(result)["invalid steps and times, which the rest of their row replaces"] >= 1


def test_a_file_is_whole_only_between_its_records(tmp_path):
    records = [b"first", b"second" * 7, b"x" * 2 * BLOCK]
    whole = {len(record_log(records[:count])) for count in range(len(records) + 1)}
    data, path = record_log(records), tmp_path / "cut.wandb"
    edges = {
        *range(7, 80),
        *range(BLOCK - 8, BLOCK + 9),
        *range(2 * BLOCK - 8, 2 * BLOCK + 9),
        len(data) - 1,
        len(data),
    }
    for size in edges:
        path.write_bytes(data[:size])
        faults = []
        kept = list(read_records(path, damage=faults.append))
        assert kept == records[: len(kept)]
        assert len(faults) == (size not in whole), size
