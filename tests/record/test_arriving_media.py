"""Media whose data arrives from a device after the log call, with CPU tensors in place of a device's."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import tensormeter
from support.device_events import FakeEvent
from tensormeter.record.media import arriving
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.file import media_directory

RED = torch.zeros(3, 8, 8, dtype=torch.uint8)
RED[0] = 255


class Device:
    """A device that finishes its work when a test calls `finish`."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.events: list[FakeEvent] = []

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors.append(tensor.clone())
        return self.tensors[-1]

    def holds(self, value: Any) -> bool:
        return any(value is tensor for tensor in self.tensors)

    def record_event(self, device: torch.device) -> FakeEvent:
        self.events.append(FakeEvent())
        return self.events[-1]

    def finish(self) -> None:
        for event in self.events:
            event.happened = True


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(arriving, "is_on_device", device.holds)
    monkeypatch.setattr(arriving, "record_event", device.record_event)
    monkeypatch.setattr("tensormeter.record.loggable_values.is_on_device", device.holds)
    return device


@pytest.fixture
def run(tmp_path):
    run = tensormeter.init("arriving", settings={"mode": "offline", "directory": tmp_path, "agent": "off"})
    yield run
    run.finish()


def stored(run) -> list[tuple[dict[str, Any], bytes]]:
    """The first line and the data of each media file of a run."""
    files = sorted(media_directory(run._process.ring.path).glob("*"))
    parts = [file.read_bytes().partition(b"\n") for file in files]
    return [(json.loads(line), data) for line, _, data in parts]


def test_an_image_is_recorded_once_its_copy_has_arrived(run, device):
    pixels = device.put(RED)
    run.log({"sample": tensormeter.Image(pixels, "red")}, step=7)
    pixels.zero_()
    run.log({"loss": 1.0}, step=8)
    assert stored(run) == []
    device.finish()
    run.log({"loss": 1.0}, step=9)
    run.log({"other": tensormeter.Image(RED)}, step=10)
    (first, data), (second, _) = stored(run)
    assert (first["key"], first["step"], first["body"]["caption"]) == ("sample", 7, "red")
    assert data == RED.permute(1, 2, 0).numpy().tobytes()
    assert (second["key"], second["step"]) == ("other", 10)
    assert first["time"] < second["time"]
    run.log({"loss": 1.0})
    assert run._process.recorder.next_step == 12


def test_everything_that_holds_tensors_of_a_device_arrives(run, device):
    frames = torch.arange(4 * 8 * 8 * 3, dtype=torch.uint8).view(4, 8, 8, 3)
    samples = torch.linspace(-1, 1, 100)
    run.log(
        {
            "list": [device.put(RED), RED],
            "nested": tensormeter.Image([tensormeter.Image(device.put(RED)), RED]),
            "batch": device.put(torch.stack([RED, RED]).float() / 255),
            "video": tensormeter.Video(device.put(frames)),
            "frames": tensormeter.Video([device.put(frame) for frame in frames]),
            "audio": tensormeter.Audio(device.put(samples), 8000),
        }
    )
    assert stored(run) == []
    device.finish()
    run.finish()
    contents = {line["key"]: (line["body"], data) for line, data in stored(run)}
    red = RED.permute(1, 2, 0).numpy().tobytes()
    assert contents["list"][1] == contents["nested"][1] == red * 2
    assert [image["shape"] for image in contents["batch"][0]["images"]] == [[8, 8, 3]] * 2
    assert contents["video"][1] == contents["frames"][1] == frames.numpy().tobytes()
    assert contents["audio"][1] == samples.numpy().tobytes()


def test_the_end_of_the_run_names_items_that_have_not_arrived(run, device, caplog, monkeypatch):
    monkeypatch.setattr("tensormeter.record.recorder._SETTLE_TIMEOUT", 0.01)
    run.log({"sample": tensormeter.Image(device.put(RED))})
    run.finish()
    assert "'sample' is not recorded: its data did not arrive from the device" in caplog.text
    assert run._process.ring.drops() == {"device_unfinished": 1}
    assert stored(run) == []


def test_a_device_error_is_a_refusal(run, device, caplog, monkeypatch):
    class Failing:
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(arriving, "record_event", lambda device: Failing())
    run.log({"sample": device.put(torch.stack([RED, RED]))})
    run.log({"loss": 1.0})
    assert "'sample' is not recorded: cannot copy it (RuntimeError: CUDA error: an illegal memory access" in caplog.text
    assert stored(run) == []


def test_a_table_does_not_wait(run, device, caplog):
    image = tensormeter.Image(device.put(RED))
    with pytest.raises(Refused, match=r"still on the device; pass a copy on the CPU, such as tensor\.cpu\(\)"):
        image.pack()
    run.log({"table": tensormeter.Table(["image"], [[image]])})
    assert "still on the device" in caplog.text
    device.finish()
    assert np.frombuffer(image.pack().data, np.uint8).size == RED.numel()


def test_waiting_items_are_limited(run, device, caplog):
    for _ in range(65):
        run.log({"sample": tensormeter.Image(device.put(RED))})
    assert "'sample' is not recorded: too many items wait for the device; log fewer at a time" in caplog.text
    device.finish()
    run.finish()
    assert len(stored(run)) == 64


def test_data_that_is_too_large_is_not_copied(run, device, caplog, monkeypatch):
    monkeypatch.setattr(arriving, "PIXEL_BYTES", 100)
    run.log({"sample": [device.put(RED), device.put(RED)]})
    assert "'sample' is not recorded: the data on the device has 384 bytes, but the limit is" in caplog.text
    assert device.events == []
