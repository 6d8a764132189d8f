"""Statistics that only the training process has: torch's allocator, Python's garbage collector."""

import gc
import sys
from types import SimpleNamespace

import pytest

from support.optional import has_cuda, torch
from support.processes import run_python
from tensormeter.record.runtime.gc_metrics import garbage
from tensormeter.record.runtime.torch_memory import TORCH_MEMORY, torch_memory

USED = {
    "allocated_bytes": {"all": {"current": 100, "peak": 300}, "small_pool": {"current": 1, "peak": 2}},
    "reserved_bytes": {"all": {"current": 400, "peak": 500}},
    "inactive_split_bytes": {"all": {"current": 30, "peak": 40}},
    "num_alloc_retries": 2,
    "num_ooms": 1,
}
UNUSED = {**USED, "reserved_bytes": {"all": {"current": 0, "peak": 0}}}
REDUCED = {"reserved_bytes": {"all": {"current": 5, "peak": 6}}}


def pretend(monkeypatch, statistics, *, initialized=True):
    """CUDA with these devices. Any other name fails the test: above all, functions that wait for the GPU."""
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: len(statistics),
        memory_stats_as_nested_dict=lambda device: statistics[device],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


def test_torch_memory_is_sampled_for_each_gpu_in_use(monkeypatch):
    pretend(monkeypatch, [UNUSED, USED, REDUCED])
    samples = {
        (stream.name, dict(stream.attributes)["tensormeter.torch.device"]): value for stream, value in torch_memory()
    }
    assert samples == {
        ("tensormeter.torch.memory.allocated", "cuda:1"): 100,
        ("tensormeter.torch.memory.allocated.peak", "cuda:1"): 300,
        ("tensormeter.torch.memory.reserved", "cuda:1"): 400,
        ("tensormeter.torch.memory.reserved.peak", "cuda:1"): 500,
        ("tensormeter.torch.memory.inactive_split", "cuda:1"): 30,
        ("tensormeter.torch.memory.allocation_retries", "cuda:1"): 2,
        ("tensormeter.torch.memory.out_of_memory_errors", "cuda:1"): 1,
        ("tensormeter.torch.memory.reserved", "cuda:2"): 5,
        ("tensormeter.torch.memory.reserved.peak", "cuda:2"): 6,
    }
    assert {stream.kind for stream, _ in torch_memory() if stream.unit == "By"} == {"gauge"}
    assert {stream.kind for stream, _ in torch_memory() if stream.unit != "By"} == {"observable_counter"}


def test_sampling_initializes_no_cuda(monkeypatch):
    pretend(monkeypatch, [USED], initialized=False)
    assert list(torch_memory()) == []


def test_sampling_does_not_import_torch():
    code = "import sys; from tensormeter.record.runtime.torch_memory import torch_memory; "
    code += "print(list(torch_memory()), 'torch' in sys.modules)"
    output = run_python("-c", code, check=True).stdout
    assert output == "[] False\n"


def test_garbage_collections_are_counted_and_timed():
    before = {(stream.name, stream.attributes): value for stream, value in garbage()}
    assert len(before) == 9
    gc.collect()
    after = {(stream.name, stream.attributes): value for stream, value in garbage()}
    oldest = ("cpython.gc.collections", (("cpython.gc.generation", 2),))
    assert after[oldest] == before[oldest] + 1
    assert {stream.kind for stream, _ in garbage()} == {"observable_counter"}


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")
def test_torch_memory_of_a_real_gpu():
    block = torch.empty(1 << 24, dtype=torch.uint8, device="cuda")
    device = (("tensormeter.torch.device", f"cuda:{torch.cuda.current_device()}"),)
    samples = {stream.name: value for stream, value in torch_memory() if stream.attributes == device}
    assert samples.keys() == TORCH_MEMORY.keys()
    assert samples["tensormeter.torch.memory.allocated"] == torch.cuda.memory_allocated() >= len(block)
    assert samples["tensormeter.torch.memory.reserved"] == torch.cuda.memory_reserved()
