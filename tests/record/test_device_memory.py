"""Page-locking, with a double for the CUDA runtime: what is asked of it, and what becomes of its refusals."""

import gc
import mmap
import weakref
from types import SimpleNamespace

import pytest
import torch

from support.forks import call_in_child
from tensormeter.record.device import cuda_runtime, page_locking
from tensormeter.record.device.page_locking import is_in_memory, page_lock, retire, unlock_retired, view_on_device
from tensormeter.record.values.outcomes import Refused


class Runtime:
    """Records what it is asked. `answers`: return codes by name, 0 if there is none."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.mode = 0
        self.pointers_work = 1
        self.pointer = None
        self.unregistered = []
        self.while_registering = lambda: None

    def answer(self, name):
        self.asked.append(name)
        return self.answers.get(name, 0)

    def cudaHostRegister(self, pointer, size, flags):
        assert self.mode == 2  # else a capture in another thread would be invalidated
        assert flags == 3
        self.pointer = self.pointer or pointer
        self.while_registering()
        return self.answer("register")

    def cudaHostUnregister(self, pointer):
        assert self.mode == 2
        self.unregistered.append(pointer)
        return self.answer("unregister")

    def cudaThreadExchangeStreamCaptureMode(self, mode):
        mode._obj.value, self.mode = self.mode, mode._obj.value
        return self.answer("mode")

    def cudaGetLastError(self):
        return self.answer("clear")

    def cudaDeviceGetAttribute(self, value, attribute, device):
        assert attribute == 91
        value._obj.value = self.pointers_work
        return self.answer("attribute")

    def cudaHostGetDevicePointer(self, seen, pointer, flags):
        seen._obj.value = self.pointer
        return self.answer("pointer")


class NoDevice:
    def __init__(self, device):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


@pytest.fixture
def runtime(monkeypatch):
    runtime = Runtime()
    for module in (cuda_runtime, page_locking):
        monkeypatch.setattr(module, "cuda_runtime", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", NoDevice)
    for kept in ("_locked", "_retired"):
        monkeypatch.setattr(page_locking, kept, {})
    return runtime


DEVICE = torch.device("cuda", 0)


@pytest.fixture
def memory():
    return torch.zeros(8, dtype=torch.float64)


class Memory:
    """Memory with separate pages, as a ring's. `mapped` says whether they are still mapped."""

    def __init__(self):
        class Pages(mmap.mmap):
            pass  # which can be referred to weakly

        pages = Pages(-1, mmap.PAGESIZE)
        self.mapped = weakref.finalize(pages, lambda: None)
        self.tensor = torch.frombuffer(pages, dtype=torch.float64)
        self.address = self.tensor.data_ptr()

    def drop(self):
        del self.tensor
        gc.collect()

    @property
    def is_mapped(self):
        return self.mapped.alive


def test_memory_is_registered_in_the_right_mode(runtime, memory):
    page_lock(memory, DEVICE)
    assert "clear" not in runtime.asked
    assert runtime.mode == 0
    assert runtime.pointer == memory.data_ptr()


def test_memory_that_others_registered_is_refused(runtime, memory):
    """They may have unmapped it since: devices would store into the pages that were there, and no value would come."""
    runtime.answers["register"] = 712
    with pytest.raises(Refused, match="error 712"):
        page_lock(memory, DEVICE)
    assert runtime.asked[-1] == "clear"


@pytest.mark.parametrize("first", ["the handler", "the interrupted call"])
def test_a_signal_handler_may_register_the_same_memory(runtime, memory, first):
    def handler():
        runtime.while_registering = lambda: None
        runtime.answers["register"] = 0 if first == "the handler" else 712
        page_lock(memory.view(-1), DEVICE)
        runtime.answers["register"] = 712 if first == "the handler" else 0

    runtime.while_registering = handler
    page_lock(memory, DEVICE)
    retire(memory, lambda: True)
    unlock_retired()
    assert runtime.unregistered == [memory.data_ptr()]


def test_memory_stays_mapped_as_long_as_it_is_page_locked(runtime):
    memory, come = Memory(), []
    page_lock(memory.tensor, DEVICE)
    retire(memory.tensor, lambda: bool(come))
    memory.drop()
    unlock_retired()  # a value is still on its way
    assert memory.is_mapped
    assert runtime.unregistered == []
    come.append(True)
    unlock_retired()
    gc.collect()
    assert not memory.is_mapped
    assert runtime.unregistered == [memory.address]
    unlock_retired()
    assert runtime.unregistered == [memory.address]


def test_memory_in_use_is_not_unlocked(runtime):
    memory = Memory()
    page_lock(memory.tensor, DEVICE)
    memory.drop()
    unlock_retired()
    assert memory.is_mapped
    assert runtime.unregistered == []


def test_memory_that_cannot_be_unlocked_stays_mapped(runtime):
    memory = Memory()
    page_lock(memory.tensor, DEVICE)
    retire(memory.tensor, lambda: True)
    memory.drop()
    runtime.answers["unregister"] = 4  # cudaErrorCudartUnloading
    for _ in range(2):
        unlock_retired()
    assert memory.is_mapped
    assert runtime.unregistered == [memory.address]  # tried once
    assert runtime.asked[-1] == "clear"


def test_memory_that_could_not_be_page_locked_is_not_unlocked(runtime, memory):
    runtime.answers["register"] = 2
    with pytest.raises(Refused):
        page_lock(memory, DEVICE)
    retire(memory, lambda: True)
    unlock_retired()
    assert runtime.unregistered == []


def test_a_forked_child_unlocks_nothing(runtime, memory):
    page_lock(memory, DEVICE)
    retire(memory, lambda: True)
    assert call_in_child(lambda: unlock_retired() or runtime.unregistered) == "[]"
    unlock_retired()
    assert len(runtime.unregistered) == 1


def test_a_refused_registration_leaves_no_error_behind(runtime, memory):
    runtime.answers["register"] = 2
    with pytest.raises(Refused, match="error 2"):
        page_lock(memory, DEVICE)
    assert runtime.asked[-1] == "clear"
    assert runtime.mode == 0


def test_a_failing_call_leaves_the_capture_mode_as_it_was(runtime, memory, monkeypatch):
    monkeypatch.setattr(runtime, "cudaHostRegister", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_lock(memory, DEVICE)
    assert runtime.mode == 0


@pytest.mark.parametrize("wrong", ["attribute", "pointer", "pointers do not work", "another address", "no runtime"])
def test_memory_that_a_device_does_not_reach_is_never_viewed(runtime, memory, monkeypatch, wrong):
    """A kernel that stored to a wrong address would end the training process."""
    monkeypatch.setattr(torch, "as_tensor", lambda *_, **__: pytest.fail("viewed"))
    runtime.pointer = memory.data_ptr()
    if wrong in ("attribute", "pointer"):
        runtime.answers[wrong] = 1
    elif wrong == "pointers do not work":
        runtime.pointers_work = 0
    elif wrong == "another address":
        runtime.pointer += 4096
    else:
        monkeypatch.setattr(page_locking, "cuda_runtime", lambda: None)
    with pytest.raises(Refused):
        view_on_device(memory, DEVICE)
    assert ("clear" in runtime.asked) is (wrong in ("attribute", "pointer"))


def test_a_copy_is_not_taken_for_a_view(runtime, memory, monkeypatch):
    runtime.pointer = memory.data_ptr()
    monkeypatch.setattr(torch, "as_tensor", lambda array, device: torch.zeros(8, dtype=torch.float64))
    with pytest.raises(Refused, match="a copy on cpu"):
        view_on_device(memory, DEVICE)


def test_the_view_is_described_as_the_interface_wants_it(runtime, memory, monkeypatch):
    runtime.pointer = memory.data_ptr()
    seen = {}

    def as_tensor(array, device):
        seen.update(array.__cuda_array_interface__)
        return SimpleNamespace(device=device, data_ptr=memory.data_ptr)

    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    view = view_on_device(memory, DEVICE)
    assert view.device == DEVICE
    assert seen == {"shape": (8,), "typestr": "<f8", "data": (memory.data_ptr(), False), "version": 2}


def test_folders_in_memory_are_detected(tmp_path):
    with open("/proc/mounts") as mounts:
        kinds = {line.split()[1]: line.split()[2] for line in mounts}
    if kinds.get("/dev/shm") == "tmpfs":
        assert is_in_memory(page_locking.Path("/dev/shm/tensormeter-ring"))
    assert not is_in_memory(page_locking.Path("/proc/ring"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a CUDA runtime")
def test_there_is_no_runtime_where_torch_has_none():
    assert cuda_runtime.cuda_runtime() is None
