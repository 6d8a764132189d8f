"""The check of the devices' way: here of one that is a CPU in disguise; the real one is among the GPU tests."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from tensormeter.record.device import device_copies as device
from tensormeter.record.device import host_mapped, path_report
from tensormeter.record.device.event_copies import EventCopies
from tensormeter.record.device.path_report import device_path_report


@pytest.fixture
def disguised(monkeypatch):
    """A "CUDA device" made of CPU tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU in a dream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(path_report, "_device", lambda index: torch.device("cpu"))
    for module in (device, host_mapped):
        monkeypatch.setattr(module, "page_lock", lambda memory, device: None)
    monkeypatch.setattr(host_mapped, "view_on_device", lambda memory, device: memory)

    monkeypatch.setattr(device.DeviceCopies, "prepare", lambda self, tensor: self._begin(tensor.device))
    monkeypatch.setattr(device, "is_in_memory", lambda path: True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_report_is_empty_without_a_device():
    assert device_path_report() == []


def test_a_device_that_works_is_reported_with_its_path(disguised, tmp_path):
    (path,) = device_path_report(tmp_path)
    assert (path.name, path.path, path.works, path.synchronizes) == ("A GPU in a dream", "one launch", True, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("waits", [False, True])
def test_a_copy_that_waits_is_told_from_what_torch_says_of_its_own_watch(disguised, tmp_path, monkeypatch, waits):
    def watch(mode):
        if mode == "warn":
            warnings.warn("the debug mode does not yet detect all synchronizing operations", stacklevel=2)

    def copy(self, word, values):
        if waits:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        plain.copy(self, word, values)

    plain = device.DeviceCopies
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", watch)
    monkeypatch.setattr(path_report, "DeviceCopies", type("Copies", (plain,), {"copy": copy}))
    (path,) = device_path_report(tmp_path)
    assert path.synchronizes is waits


def test_a_device_that_cannot_store_into_the_ring_is_reported_with_the_reason(disguised, tmp_path, monkeypatch):
    def refuse(memory, device):
        raise host_mapped.Refused("the device addresses host memory differently from the host")

    monkeypatch.setattr(host_mapped, "view_on_device", refuse)
    (path,) = device_path_report(tmp_path)
    assert path.works
    assert path.path == "two launches (trial: the device addresses host memory differently from the host)"


def test_the_report_follows_the_setting_of_the_device_path(disguised, tmp_path):
    (path,) = device_path_report(tmp_path, one_launch=False)
    assert path.works
    assert path.path == "two launches (trial: none, as set by device_path)"


def test_values_that_do_not_come_are_reported(disguised, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "gather", lambda sources, words, start=0: words.fill_(0.0))
    monkeypatch.setattr(device.DeviceCopies, "copy", lambda self, word, values: None)
    (path,) = device_path_report(tmp_path, timeout=0.0)
    assert not path.works
    assert path.path == "no value arrived within 0 s"


def test_wrong_values_are_reported(disguised, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "gather", lambda sources, words, start=0: words.fill_(0.0))
    (path,) = device_path_report(tmp_path)
    assert not path.works
    assert path.path.startswith("expected [")


def test_a_ring_that_cannot_be_page_locked_is_reported(disguised, tmp_path, monkeypatch):
    looks = []
    event = SimpleNamespace(query=lambda: looks.append(None) or len(looks) > 1)
    monkeypatch.setattr(device, "is_in_memory", lambda path: False)
    monkeypatch.setattr(device, "EventCopies", lambda pending: EventCopies(pending, lambda device: event))
    (path,) = device_path_report(tmp_path)
    assert path.works
    assert path.path.startswith("events (the ring")
    assert "is on a disk" in path.path
