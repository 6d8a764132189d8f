"""Event files of torch's `SummaryWriter` and of TensorBoard's own messages, imported."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.histogram.metadata import create_summary_metadata as histogram_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from support.import_server import counted, left_out
from tensormeter.cli.export import export
from tensormeter.importers.tensorboard.checksums import masked_checksums

STEPS = 300


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A log directory that torch's SummaryWriter has written."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("runs")
    writer = SummaryWriter(str(folder / "exp" / "train"))
    for step in range(STEPS):
        writer.add_scalar("loss", 1 / (1 + step), step)
        writer.add_scalar("acc", step * 0.1, 2 * step)
        writer.add_scalar("new", step, step, new_style=True)
    writer.add_scalar("loss", float("nan"), STEPS)
    pixels = (np.arange(60).reshape(3, 4, 5) * 4).astype(np.uint8)
    writer.add_image("picture", pixels, 2)
    writer.add_histogram("weights", np.arange(1000) / 100, 3)
    writer.add_audio("clip", torch.zeros(1, 800), 4, sample_rate=8000)
    writer.add_text("note", "**bold**", 5)
    writer.add_pr_curve("pr", np.array([0, 1, 1, 0]), np.array([0.1, 0.6, 0.9, 0.3]), 6, num_thresholds=11)
    writer.add_mesh("mesh", torch.zeros(1, 3, 3), global_step=7)
    writer.add_hparams({"lr": 0.1, "zero": 0, "name": "x", "flag": False}, {"best": 0.5}, run_name="hparams")
    writer.close()
    SummaryWriter(str(folder / "empty")).close()
    return folder


@pytest.fixture
def copied(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "runs"))


def event_file(folder: Path) -> Path:
    (file,) = folder.glob("exp/train/events.*")
    return file


def test_runs_arrive_with_all_that_torch_recorded(server, run_import, recorded):
    result = run_import(recorded, "--project", "whole")
    runs = server.contents("whole")
    assert runs.keys() == {"exp/train", "exp/train/hparams", "empty"}
    run = runs["exp/train"]
    assert (run["run"]["state"], runs["exp/train/hparams"]["run"]["config"]) == (
        "finished",
        {"lr": 0.1, "zero": 0.0, "name": "x", "flag": False},
    )
    assert runs["exp/train/hparams"]["series"]["best"][0]["value"] == [0.5]
    single = [float(np.float32(1 / (1 + step))) for step in range(STEPS)]
    (loss,) = run["series"]["loss"]
    assert (loss["step"], loss["value"]) == (list(range(STEPS + 1)), [*single, "NaN"])
    assert run["series"]["acc"][0]["step"] == list(range(0, 2 * STEPS, 2))
    assert run["series"]["new"][0]["value"] == list(range(STEPS))
    (weights,) = run["histograms"]["weights"]
    assert sum(weights["counts"]) == 1000
    items = {event["attributes"].get("tensormeter.key"): event for event in run["events"]}
    assert (items["picture"]["body"]["width"], items["picture"]["step"]) == (5, 2)
    assert items["clip"]["body"]["sample_rate"] == 8000
    assert items["note"]["body"] == {"text": "**bold**", "content_type": "text/markdown"}
    curve = items["pr"]["body"]
    assert curve["chart"] == {"kind": "pr_curve", "x": "recall", "y": "precision", "title": "pr"}
    assert curve["columns"][-2:] == ["precision", "recall"]
    assert len(curve["rows"]) == 11
    assert any("mesh" in kind for kind in left_out(result))
    assert counted(result)["runs"] == 3


def test_steps_times_and_values_equal_those_that_tensorboard_reads(server, run_import, recorded, tmp_path):
    run_import(recorded / "exp" / "train", "--project", "round")
    (run,) = (run for run in server.get("/api/v1/runs", project="round")["runs"] if run["name"] == "train")
    target = tmp_path / "run.jsonl"
    arguments = [run["id"], "--project", "round", "--endpoint", server.url, "--format", "jsonl", "-o", str(target)]
    assert CliRunner().invoke(export, arguments).exit_code == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    accumulator = EventAccumulator(str(event_file(recorded).parent), {"scalars": 0, "tensors": 0})
    accumulator.Reload()
    for tag in ("loss", "acc"):
        expected = [(event.step, round(event.wall_time * 1e9), str(event.value)) for event in accumulator.Scalars(tag)]
        exported = [(row["step"], row["time"], str(row["value"])) for row in rows if row["metric"] == tag]
        assert sorted(exported) == sorted((step, time, value.replace("nan", "NaN")) for step, time, value in expected)


def test_importing_twice_changes_nothing(server, run_import, recorded):
    run_import(recorded, "--project", "twice")
    before = server.contents("twice")
    run_import(recorded, "--project", "twice")
    assert server.contents("twice") == before


def test_a_moved_folder_is_the_same_run(server, run_import, recorded, tmp_path):
    run_import(recorded / "exp", "--project", "moved")
    shutil.copytree(recorded / "exp" / "train", tmp_path / "elsewhere" / "train")
    run_import(tmp_path / "elsewhere", "--project", "moved")
    assert len(server.get("/api/v1/runs", project="moved")["runs"]) == 2


def test_a_file_that_ends_early_is_read_up_to_there(server, run_import, copied):
    file = event_file(copied)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 3])
    result = run_import(copied, "--project", "cut", status=1)
    assert "ends within a record" in result.output
    steps = server.contents("cut")["exp/train"]["series"]["loss"][0]["step"]
    assert 0 < len(steps) < STEPS
    file.write_bytes(data)
    run_import(copied, "--project", "cut")
    assert len(server.contents("cut")["exp/train"]["series"]["loss"][0]["step"]) == STEPS + 1


def test_a_damaged_record_is_skipped(server, run_import, copied):
    file = event_file(copied)
    data = bytearray(file.read_bytes())
    offset = data.index(b"loss", 2000)
    data[offset] ^= 0xFF
    file.write_bytes(data)
    result = run_import(copied, "--project", "damaged", status=1)
    assert "is damaged; skipped it" in result.output
    run = server.contents("damaged")["exp/train"]
    assert len(run["series"]["loss"][0]["step"]) == STEPS
    assert len(run["series"]["acc"][0]["step"]) == STEPS


def test_a_damaged_length_ends_the_file(server, run_import, copied):
    file = event_file(copied)
    data = bytearray(file.read_bytes())
    (first,) = struct.unpack_from("<Q", data)
    data[first + 16] ^= 0x01
    file.write_bytes(data)
    result = run_import(copied, "--project", "length", status=1)
    assert "left out the rest of the file" in result.output


def test_a_record_beyond_the_limit_is_skipped(run_import, tmp_path, monkeypatch):
    monkeypatch.setattr("tensormeter.importers.tensorboard.record_file._LONGEST_RECORD", 1 << 20)
    writer = EventFileWriter(str(tmp_path / "run"))
    for step in range(2):
        value = Summary.Value(tag="loss", simple_value=step)
        writer.add_event(Event(wall_time=1_750_000_000 + step, step=step, summary=Summary(value=[value])))
        writer.add_event(Event(wall_time=1_750_000_000, graph_def=bytes(6 << 20)))
    writer.close()
    result = run_import(tmp_path, "--project", "graphs", status=1)
    assert result.output.count("has 6 MiB; skipped it") == 2
    assert counted(result)["points"] == 2


def test_an_hparams_message_that_is_damaged_costs_only_itself(run_import, tmp_path):
    writer = EventFileWriter(str(tmp_path / "run"))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=b"\x1a\x05x"))
    values = [Summary.Value(tag="_hparams_", metadata=metadata), Summary.Value(tag="loss", simple_value=1)]
    writer.add_event(Event(wall_time=1_750_000_000, step=1, summary=Summary(value=values)))
    writer.close()
    result = run_import(tmp_path, "--project", "hparams", status=1)
    assert counted(result)["points"] == 1
    assert left_out(result) == {"damaged values in event files": 1}


def test_a_restart_becomes_an_attempt_that_shadows_what_it_repeats(server, run_import, tmp_path):
    for start, steps in ((0, range(10)), (6, range(6, 12))):
        writer = EventFileWriter(str(tmp_path / "run"), filename_suffix=f".{start}")
        wall_time = 1_750_000_000 + 1000 * start
        if start:
            writer.add_event(Event(wall_time=wall_time, step=start, session_log=SessionLog(status=SessionLog.START)))
        for step in steps:
            value = Summary.Value(tag="loss", simple_value=start + step)
            writer.add_event(Event(wall_time=wall_time + step, step=step, summary=Summary(value=[value])))
        writer.close()
    run_import(tmp_path, "--project", "restart")
    (loss,) = server.contents("restart")["run"]["series"]["loss"]
    assert (loss["step"], loss["value"]) == (list(range(12)), [*range(6), *range(12, 18, 1)])


def test_the_newer_forms_of_scalars_and_histograms(server, run_import, tmp_path):
    """TensorFlow 2 writes tensors, several values may share an event, and times may repeat."""
    writer = EventFileWriter(str(tmp_path / "run"))
    buckets = make_tensor_proto(np.array([[0.0, 0.5, 3.0], [0.5, 2.0, 4.0]]))
    equal = make_tensor_proto(np.array([[7.0, 7.0, 0.0], [7.0, 7.0, 5.0]]))
    for step in range(3):
        values = [
            Summary.Value(tag="a", tensor=make_tensor_proto(step * 1.5, np.float32), metadata=scalar_metadata("", "")),
            Summary.Value(tag="b", simple_value=step),
            Summary.Value(tag="h", tensor=buckets, metadata=histogram_metadata("", "")),
            Summary.Value(tag="e", tensor=equal, metadata=histogram_metadata("", "")),
        ]
        writer.add_event(Event(wall_time=1_750_000_000, step=step, summary=Summary(value=values)))
    writer.close()
    run_import(tmp_path, "--project", "tensors")
    run = server.contents("tensors")["run"]
    assert run["series"]["a"][0]["value"] == [0, 1.5, 3]
    assert run["series"]["b"][0]["value"] == [0, 1, 2]
    assert run["series"]["b"][0]["step"] == [0, 1, 2]
    assert len(run["histograms"]["h"]) == 3
    assert sum(run["histograms"]["h"][0]["counts"]) == 7
    assert sum(run["histograms"]["e"][0]["counts"]) == 5


def test_short_floats_and_invalid_times_are_read(server, run_import, tmp_path):
    writer = EventFileWriter(str(tmp_path / "run"))
    bfloat = TensorProto(dtype=14, half_val=[0x3F80])  # 1.0
    packed = TensorProto(dtype=14, tensor_content=b"\x00\x40")  # 2.0
    tensors = {"half": make_tensor_proto(0.5, np.float16), "bfloat": bfloat, "packed": packed}
    for wall_time in (1_750_000_000.0, float("nan"), 1e300, -1.0):
        values = [
            Summary.Value(tag=tag, tensor=tensor, metadata=scalar_metadata("", "")) for tag, tensor in tensors.items()
        ]
        writer.add_event(Event(wall_time=wall_time, step=1, summary=Summary(value=values)))
    writer.close()
    run_import(tmp_path, "--project", "shorts")
    run = server.contents("shorts")["run"]
    assert {name: series[0]["value"][-1] for name, series in run["series"].items() if name in tensors} == {
        "half": 0.5,
        "bfloat": 1,
        "packed": 2,
    }
    assert run["run"]["state"] == "finished"


def test_links_are_not_followed(run_import, recorded, tmp_path):
    (tmp_path / "link").symlink_to(recorded)
    assert "found no runs" in run_import(tmp_path, status=1).output


def test_checksums_equal_tensorboards():
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    lengths = np.array([0, 1, 2, 3, 7, 8, 64, 65, 500])
    starts = np.cumsum(lengths)
    expected = [
        masked_crc32c(data[start : start + size].tobytes()) for start, size in zip(starts, lengths, strict=True)
    ]
    assert masked_checksums(data, starts, lengths).tolist() == expected
