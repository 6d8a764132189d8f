"""The whole way of device values, traced on a pretended GPU: how much is launched, and that nothing waits.

Fake tensors carry device and dtype, and no data, so everything that needs a value on the host fails by itself. The
tests look for operations that wait without a value: copies to memory that is not page-locked, and blocking copies.
"""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tensormeter.record import deferred_log
from tensormeter.record.device.device_copies import DeviceCopies, place
from tensormeter.record.reduction import reduction
from tensormeter.record.reduction.reduction import Reductions, Rule
from tensormeter.record.values.classify import DeviceValue

CUDA = torch.device("cuda:0")
LAUNCHES = {
    "aten._foreach_copy_.default",
    "aten._foreach_add_.List",
    "aten._foreach_div.ScalarList",
    "aten.copy_.default",
    "aten.stack.default",
    "aten._to_copy.default",
    "aten.index_copy_.default",
    "aten.add_.Tensor",
    "aten.remainder.Scalar",
}
FREE = {  # no kernel: views, attributes, memory from the allocator's cache
    "aten.detach.default",
    "aten.select.int",
    "aten.empty.memory_format",
    "aten.slice.Tensor",
    "aten.unbind.int",
    "aten.unsqueeze.default",
    "aten.view.default",
    "aten.view.dtype",
    "prim.device.default",
}


class Waits(AssertionError):
    """An operation that makes the host wait for the device."""


class Trace(TorchDispatchMode):
    """The operations, in order; raises where one would wait."""

    def __init__(self, page_locked):
        super().__init__()
        self.page_locked = page_locked
        self.launches = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        kwargs = kwargs or {}
        if name not in LAUNCHES | FREE:
            raise Waits(f"{name} is not known to be free of waiting")
        if name == "aten._to_copy.default" and torch.device(kwargs.get("device", CUDA)).type == "cpu":
            raise Waits("a copy into new memory that is not page-locked")
        if name == "aten.copy_.default":
            self.look_at_copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if name == "aten._foreach_copy_.default":
            self.look_at_gather(*args)
        if name in LAUNCHES:
            self.launches.append(name.split(".")[1])
        return function(*args, **kwargs)

    def look_at_copy(self, to, source, non_blocking):
        if to.device == source.device:
            return
        if to.device.type != "cpu" or source.device.type != "cuda":
            raise Waits(f"a copy from {source.device} to {to.device}")
        if not non_blocking:
            raise Waits("a blocking copy")
        if to.dtype != source.dtype or not (to.is_contiguous() and source.is_contiguous()):
            raise Waits("a copy that goes through temporary memory")
        if not any(to.untyped_storage()._cdata == memory.untyped_storage()._cdata for memory in self.page_locked):
            raise Waits("a copy to memory that is not page-locked")

    def look_at_gather(self, to, sources):
        """The conditions under which this is one kernel and not one a tensor: see `tensormeter.record.device.gather`."""
        kinds = {(tensor.device, tensor.dtype) for tensor in sources}
        if len(kinds) != 1 or {tensor.device for tensor in to} != {sources[0].device}:
            raise Waits("not one device and one dtype: a copy for each tensor")
        if len({tensor.dtype for tensor in to}) != 1 or {tensor.shape for tensor in (*to, *sources)} != {()}:
            raise Waits("not of equal shapes: a copy for each tensor")
        if sources[0].dtype.is_floating_point and sources[0].dtype.itemsize == 1:
            raise Waits("no kernel for this dtype in every version")


@pytest.fixture
def pretended(recording, monkeypatch):
    """(the copies of a recorder with a pretended ring, a function that traces)."""
    # The methods ask a real device for a guard before they come to the operation.
    monkeypatch.setattr(
        torch.Tensor, "__getitem__", lambda of, index: torch.ops.aten.slice(of, 0, index.start, index.stop)
    )
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, source, non_blocking=False: torch.ops.aten.copy_(to, source, non_blocking)
    )
    with FakeTensorMode():
        copies = DeviceCopies(recording.ring)
        copies._host = torch.empty(4096, dtype=torch.float64)

        @contextmanager
        def traced():
            with Trace([copies._host]) as trace:
                yield trace

        yield copies, traced


class Proven:
    """The ring as a device sees it after the trial."""

    def __init__(self):
        self.view = torch.empty(4096, dtype=torch.float64, device=CUDA)

    def poll(self):
        pass


def scalars(number, dtype=torch.float32, device=CUDA):
    return [torch.empty((), dtype=dtype, device=device) for _ in range(number)]


def copy(copies, tensors):
    copies.copy(64, sorted((DeviceValue(tensor) for tensor in tensors), key=place))


NATIVE = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool]  # fmt: skip
OTHERS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize(
    ("number", "dtype", "copies_to_host"),
    [*((number, dtype, 1) for number in (1, 2, 64, 500) for dtype in NATIVE), *((20, dtype, 2) for dtype in OTHERS)],
)
def test_values_of_one_dtype_take_two_launches_or_three_without_kernels(pretended, number, dtype, copies_to_host):
    """A call of `_foreach_copy_` is one kernel for up to 64 values, and one more for each further 64."""
    copies, traced = pretended
    tensors = scalars(number, dtype)
    with traced() as trace:
        copy(copies, tensors)
    assert trace.launches == ["_foreach_copy_"] + ["copy_"] * copies_to_host


def test_a_mixture_takes_one_launch_for_each_dtype_and_one_copy_for_each_device(pretended):
    copies, traced = pretended
    tensors = [tensor for _ in range(3) for dtype in (*NATIVE, *OTHERS) for tensor in scalars(1, dtype)]
    with traced() as trace:
        copy(copies, tensors)
    assert trace.launches.count("_foreach_copy_") == len(NATIVE) + len(OTHERS)
    assert trace.launches.count("copy_") == len(OTHERS) + 1
    others = scalars(2, device=torch.device("cuda:1")) + scalars(2)
    with traced() as trace:
        copy(copies, others)
    assert trace.launches == ["_foreach_copy_", "copy_"] * 2


def test_a_device_that_stores_into_the_ring_takes_one_launch(pretended):
    copies, traced = pretended
    copies._mapped[CUDA] = Proven()
    tensors, others = scalars(10), scalars(3, torch.float8_e5m2)
    with traced() as trace:
        copy(copies, tensors)
    assert trace.launches == ["_foreach_copy_"]
    with traced() as trace:
        copy(copies, others)
    assert trace.launches == ["_foreach_copy_", "copy_"]


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1)])
def test_shapes_and_parameters_take_no_more_launches(pretended, shape):
    copies, traced = pretended
    tensors = [torch.empty(shape, device=CUDA, requires_grad=True), torch.nn.Parameter(torch.empty(shape, device=CUDA))]
    with traced() as trace:
        copy(copies, tensors)
    assert trace.launches == ["_foreach_copy_", "copy_"]


def test_reductions_take_one_launch_for_each_operation(pretended, monkeypatch):
    monkeypatch.setattr(reduction, "_current_stream", lambda tensor: None)
    _, traced = pretended
    reductions, rules = Reductions(), {"a": Rule(3, "mean"), "b": Rule(3, "mean")}
    rows = [dict(zip("ab", scalars(2), strict=True)) for _ in range(3)]
    launches = []
    for row in rows:
        with traced() as trace:
            reductions.add(rules, {}, {name: DeviceValue(tensor) for name, tensor in row.items()}, 0)
        launches.append(trace.launches)
    assert launches == [
        ["_foreach_copy_"],
        ["_foreach_copy_", "_foreach_add_"],
        ["_foreach_copy_", "_foreach_add_", "_foreach_div"],
    ]


def test_deferred_writes_and_their_copies_do_not_synchronize(pretended, monkeypatch):
    _, traced = pretended
    locked = deferred_log._Locked
    monkeypatch.setattr(deferred_log, "_Locked", lambda rows, count: None)
    log = deferred_log.DeferredLog(None, ["a", "b"], capacity=8, device=CUDA, first_step=0)
    copies = object.__new__(locked)  # without its page-locking
    copies._device, copies._words = (log._rows, log._count), [0]
    copies._host_rows, copies._host_count = torch.empty(8, 2, dtype=torch.float64), torch.empty(1, dtype=torch.int64)
    tensors = scalars(2)
    with traced() as trace:
        log.write({"a": tensors[0], "b": tensors[1]})
        assert trace.launches == ["_to_copy", "_to_copy", "remainder", "stack", "index_copy_", "add_"]
        trace.launches.clear()
        trace.page_locked = [copies._host_rows, copies._host_count]
        copies.begin()
    assert trace.launches == ["copy_", "copy_"]


MISTAKES = {
    "item": lambda tensors, host: tensors[0].item(),
    "tolist": lambda tensors, host: tensors[0].tolist(),
    "truth": lambda tensors, host: bool(tensors[0] > 0),
    "cpu": lambda tensors, host: tensors[0].cpu(),
    "new memory": lambda tensors, host: torch.empty(()).copy_(tensors[0], non_blocking=True),
    "blocking": lambda tensors, host: host.narrow(0, 0, 1).copy_(tensors[3]),
    "converting": lambda tensors, host: host.narrow(0, 0, 1).copy_(tensors[2], non_blocking=True),
    "from the host": lambda tensors, host: tensors[3].copy_(host.narrow(0, 0, 1), non_blocking=True),
    "nonzero": lambda tensors, host: torch.ops.aten.nonzero(tensors[2]),
    "dtypes mixed": lambda tensors, host: torch._foreach_copy_(tensors[:2], [tensors[1], tensors[4]]),
    "shapes": lambda tensors, host: torch._foreach_copy_([tensors[2]], [tensors[3]]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_trace_finds_each_kind_of_synchronization(pretended, mistake):
    copies, traced = pretended
    tensors = [*scalars(2), torch.empty(1, device=CUDA), torch.empty(1, device=CUDA, dtype=torch.float64)]
    tensors += scalars(1, torch.float16)
    with pytest.raises(Waits), traced():
        MISTAKES[mistake](tensors, copies._host)
