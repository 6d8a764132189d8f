"""Values that may be logged, and the exact results; values that may not, and the warnings."""

import enum
import fractions
import math
import struct
import warnings
from collections import ChainMap, Counter, OrderedDict, defaultdict
from decimal import Decimal
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from tensormeter.otlp.batch import STEP_METRIC


class MyFloat(float):
    pass


class Level(enum.IntEnum):
    HIGH = 7


class LikeFastai(torch.Tensor):
    """A tensor whose type watches its operations, and does not expect to be read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.item, torch.Tensor.numel, torch.Tensor.numpy):
            raise RuntimeError("an unexpected operation")
        return super().__torch_function__(function, types, args, kwargs or {})


class Broken(float):
    """A number whose conversion fails with a custom error."""

    def __float__(self):
        raise KeyError("broken")


NUMPY_DTYPES = ["float16", "float32", "float64", "longdouble", "int8", "int64", "uint8", "uint16", "uint64", "bool"]
TORCH_DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.bool,
]

EXACT = [
    (1.5, 1.5),
    (-0.0, -0.0),
    (math.inf, math.inf),
    (-math.inf, -math.inf),
    (5e-324, 5e-324),
    (0, 0.0),
    (-7, -7.0),
    (1 << 53, float(1 << 53)),
    ((1 << 53) + 1, (1 << 53) + 1),
    (-(1 << 53) - 1, -(1 << 53) - 1),
    ((1 << 63) - 1, (1 << 63) - 1),
    (-(1 << 63), -(1 << 63)),
    (True, 1.0),
    (False, 0.0),
    (MyFloat(2.5), 2.5),
    (Level.HIGH, 7.0),
    (fractions.Fraction(1, 4), 0.25),
    (Decimal("0.125"), 0.125),
    (Decimal("Infinity"), math.inf),
    (np.int64((1 << 53) + 1), (1 << 53) + 1),
    (np.array(3.5), 3.5),
    (np.array([3.5]), 3.5),
    (np.array([[7]]), 7.0),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.longdouble("1e400"), math.inf),
    (torch.tensor(0.1), float(np.float32(0.1))),
    (torch.tensor([2.5]), 2.5),
    (torch.tensor([[[2.5]]]), 2.5),
    (torch.tensor(2.5, requires_grad=True), 2.5),
    (torch.nn.Parameter(torch.tensor([4.0])), 4.0),
    (torch.tensor((1 << 53) + 1), (1 << 53) + 1),
    (torch.tensor(1 + 2j).imag, 2.0),
    (torch.arange(6.0).reshape(2, 3)[1:, 2:], 5.0),
    (torch.tensor([2.5]).as_subclass(LikeFastai), 2.5),
    (ml_dtypes.bfloat16(1.5), 1.5),
    (np.array([[1.5]], ml_dtypes.float8_e4m3fn), 1.5),
    (np.array([3], ml_dtypes.int4), 3.0),
    *((np.dtype(name).type(1), 1.0) for name in NUMPY_DTYPES),
    *((torch.tensor(1).to(dtype), 1.0) for dtype in TORCH_DTYPES),
]


def bits(number):
    return struct.pack("<q" if type(number) is int else "<d", number)


@pytest.mark.parametrize(("value", "expected"), EXACT, ids=lambda value: f"{type(value).__name__}-{value!r:.20}")
def test_the_exact_value_is_recorded(recording, warnings_logged, value, expected):
    for _ in range(2):  # by the recorder, then by the writer for the key
        recording.log({"a": value}, 1)
    recorded = [row.values["a"] for row in recording.rows()]
    assert [type(number) for number in recorded] == [type(expected)] * 2
    assert [bits(number) for number in recorded] == [bits(expected)] * 2
    assert warnings_logged() == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 << 63, 2.0**63),
        (1 << 70, 2.0**70),
        (-(1 << 63) - 1, -(2.0**63)),
        (np.uint64((1 << 64) - 1), 2.0**64),
        (torch.tensor((1 << 64) - 1, dtype=torch.uint64), 2.0**64),
    ],
)
def test_integers_beyond_64_bits_are_rounded_with_one_warning(recording, warnings_logged, value, expected):
    for step in range(2):
        recording.log({"big": value, "small": 1.0}, step)
    assert recording.values() == [{"big": expected, "small": 1.0}] * 2
    (message,) = warnings_logged()
    assert message.startswith(f"'big' is recorded as {expected!r}, the nearest float")
    assert recording.ring.drops() == {}


def test_nan_keeps_its_bits(recording):
    (odd,) = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_1234))
    recording.log({"a": odd})
    recording.log({"a": np.float64("nan")})
    first, second = (row.values["a"] for row in recording.rows())
    assert bits(first) == bits(odd)
    assert math.isnan(second)


def test_tensors_are_recorded_in_every_grad_mode(recording):
    with torch.inference_mode():
        tensor = torch.tensor(2.5)
        recording.log({"a": tensor})
    recording.log({"a": tensor})
    with torch.no_grad():
        recording.log({"a": torch.tensor(3.5)})
    assert torch.is_grad_enabled()
    assert recording.values() == [{"a": 2.5}, {"a": 2.5}, {"a": 3.5}]


def test_types_may_change_from_row_to_row(recording):
    values = [1.0, 2, (1 << 60) + 1, np.float32(4), torch.tensor(5), True, 7.0, 8]
    for value in values:
        recording.log({"a": value, "b": 0.5})
    assert recording.values() == [{"a": int(value), "b": 0.5} for value in values]


MAPPINGS = [lambda values: defaultdict(float, values), Counter, OrderedDict, ChainMap, MappingProxyType]


@pytest.mark.parametrize("make", MAPPINGS)
def test_mappings_are_read_and_never_written(recording, make):
    """A defaultdict makes up what one asks it for; asked for another row's keys, it must not."""
    recording.log({"a": 1}, 1)
    recording.log({"b": 1}, 2)
    other = make({"a": 5})
    recording.log(other, 3)
    assert dict(other) == {"a": 5}
    assert [(row.step, row.values) for row in recording.rows()] == [(1, {"a": 1.0}), (2, {"b": 1.0}), (3, {"a": 5.0})]


def meta():
    return torch.empty((), device="meta")


def fake():
    with FakeTensorMode():
        return torch.tensor(1.0)


REFUSED = {
    "empty list": list,
    "mixed list": lambda: [1.0, "a"],
    "list of None": lambda: [None, None],
    "ragged list": lambda: [[1.0], [1.0, 2.0]],
    "set": lambda: {1.0, 2.0},
    "iterator": lambda: iter([1.0, 2.0]),
    "bytes": lambda: b"unknown",
    "complex": lambda: 1 + 2j,
    "huge int": lambda: 10**400,
    "broken": lambda: Broken(1.0),
    "signalling decimal": lambda: Decimal("sNaN"),
    "empty array": lambda: np.zeros(0),
    "complex array": lambda: np.array(1j),
    "text array": lambda: np.array("1"),
    "datetime": lambda: np.datetime64("2020-01-01"),
    "object array": lambda: np.array([1.0], dtype=object),
    "masked": lambda: np.ma.masked,
    "masked array": lambda: np.ma.array([1.0], mask=[True]),
    "empty tensor": lambda: torch.zeros(0),
    "complex tensor": lambda: torch.tensor(1j),
    "sparse": lambda: torch.tensor([1.0]).to_sparse(),
    "meta": meta,
    "fake": fake,
    "subclass": lambda: TwoTensor(torch.tensor(1.0), torch.tensor(2.0)),
    "uninitialized": torch.nn.UninitializedParameter,
    "bits": lambda: torch.zeros((), dtype=torch.uint8).view(torch.bits8),
    "function": lambda: print,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_values_are_counted_and_warned_about_once(recording, warnings_logged, kind):
    value = REFUSED[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            recording.log({"before": 1.0, "bad": value, "after": 2.0}, step)
        recording.log({"bad": value}, 3)
    assert [(row.step, row.values) for row in recording.rows()] == [
        (step, {"before": 1.0, "after": 2.0}) for step in range(3)
    ]
    assert recording.ring.drops() == {"unsupported_value": 4}
    (message,) = warnings_logged()
    assert message.startswith("'bad' is not recorded: ")


def test_each_key_has_its_own_warning(recording, warnings_logged):
    for _ in range(2):
        recording.log({"a": 1j, "b": 2j, "step": object(), "closed": [], "values": ()}, "not a step")
        recording.log(5)
    assert sorted(message.split()[0] for message in warnings_logged()) == sorted(
        ["'a'", "'b'", "'step'", "'closed'", "'values'", "replaced", "log()"],
    )
    assert recording.ring.drops() == {"unsupported_value": 14}


@pytest.mark.parametrize("key", [5, 0, None, ("a",), b"a", "", STEP_METRIC])
def test_keys_that_cannot_be_recorded_are_refused(recording, warnings_logged, key):
    for _ in range(2):
        recording.log({key: 1.0, "good": 2.0})
    assert recording.values() == [{"good": 2.0}] * 2
    assert recording.ring.drops() == {"unsupported_value": 2}
    (message,) = warnings_logged()
    assert message.startswith(f"{key!r} is not recorded: the ")


def test_a_refused_key_does_not_silence_another_warning(new_recording, warnings_logged):
    recording = new_recording(lanes=1, buffer_bytes=4096)
    for number in range(200):
        recording.log({0: 1.0, "a": float(number)})
    assert [message.split(" is ")[1][:4] for message in warnings_logged()] == ["not ", "full"]


@pytest.mark.parametrize("values", [None, 5, "abc", [1.0], [("a", 1.0)], {1.0}, object()])
@pytest.mark.parametrize("before", [{}, {"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}])
def test_rows_that_are_no_mapping_are_refused(recording, warnings_logged, values, before):
    recording.log(before)
    for _ in range(2):
        recording.log(values)
    recording.log({"last": 1.0})
    assert recording.values() == [row for row in (before, {"last": 1.0}) if row]
    assert recording.ring.drops() == {"unsupported_value": 2}
    assert len(warnings_logged()) == 1


def test_each_type_of_row_that_is_no_mapping_has_its_own_warning(recording, warnings_logged):
    for row in (5, "loss", 6, [("loss", 1.0)]):
        recording.log(row)
    assert warnings_logged() == [
        f"log() expects a mapping of names to values, got {kind}; log a dict" for kind in ("int", "str", "list")
    ]


def test_tensors_inside_vmap_are_refused(recording, warnings_logged):
    def traced(x):
        recording.log({"inside": x, "b": 1.0})
        return x * 2

    assert torch.vmap(traced)(torch.arange(3.0)).tolist() == [0.0, 2.0, 4.0]
    torch.func.grad(traced)(torch.tensor(1.0))
    assert recording.values() == [{"b": 1.0}, {"b": 1.0}]
    (message,) = warnings_logged()
    assert "function transform" in message


@pytest.fixture
def mesh():
    """A mesh of one process, which is all that placements need."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_only_replicated_distributed_tensors_are_recorded(recording, warnings_logged, mesh):
    """A tensor with the same value in every process, or with a value that no process may be asked for."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    local = torch.tensor([2.5], requires_grad=True)
    tensors = {
        "replicated": DTensor.from_local(local, mesh, [Replicate()]),
        "partial": DTensor.from_local(local, mesh, [Partial()]),
        "sharded": DTensor.from_local(local, mesh, [Shard(0)]),
    }
    for _ in range(2):
        recording.log(tensors)
    assert recording.values() == [{"replicated": 2.5}] * 2
    assert recording.ring.drops() == {"unsupported_value": 4}
    partial, sharded = warnings_logged()
    assert "'partial' is not recorded: the value of a DTensor with placements (Partial(sum),)" in partial
    assert "to_local()" in sharded


def test_real_tensors_in_fake_mode_do_not_stop_the_program(recording, warnings_logged):
    tensor = torch.tensor(1.0)
    with FakeTensorMode():
        recording.log({"a": tensor, "b": 1.0})
    assert recording.values() == [{"b": 1.0}]
    assert len(warnings_logged()) == 1


def test_an_empty_row_is_no_row(recording):
    recording.log({})
    recording.log({}, 5)
    recording.log({"a": 1.0})
    assert [(row.step, row.values) for row in recording.rows()] == [(0, {"a": 1.0})]


def test_nested_mappings_are_flattened_by_the_same_writers(recording, warnings_logged):
    class Flag(enum.StrEnum):
        TRAIN = "train"

    for step in range(3):
        recording.log({Flag.TRAIN: {"loss": 0.5, "parts": {"kl": 1, 2: MappingProxyType({"x": 3.0})}}, "lr": 4.0}, step)
        recording.log({"train": OrderedDict(loss=torch.tensor(6.0)), "empty": {}}, step)
    assert (
        recording.values()
        == [
            {"train/loss": 0.5, "train/parts/kl": 1.0, "train/parts/2/x": 3.0, "lr": 4.0},
            {"train/loss": 6.0},
        ]
        * 3
    )
    assert (recording.ring.drops(), warnings_logged()) == ({}, [])


def test_what_is_wrong_in_a_nested_mapping_is_named_by_its_path(recording, warnings_logged):
    loop = {"x": 1.0}
    loop["self"] = loop
    for step in range(2):
        recording.log({"a": {"b": 1.0, ("c",): 2.0}, "a/b": 3.0, "loop": loop, "none": {"sometimes": None}}, step)
    assert recording.values() == [{"a/b": 3.0, "loop/x": 1.0}] * 2
    assert sorted(message.split(": ")[0] for message in warnings_logged()) == [
        "'a' is not recorded",
        "'a/b' occurred twice in one log() call; recorded the last one",
        "'loop/self' is not recorded",
    ]
    assert recording.ring.drops() == {"unsupported_value": 6, "none_value": 2}
    assert recording.recorder.lost_names["none_value"] == ["'none/sometimes'"]


def test_reductions_apply_to_the_names_of_nested_mappings(recording):
    for value in (1.0, 3.0):
        recording.log({"train": {"loss": value}}, 5, every=2)
    assert recording.values() == [{"train/loss": 2.0}]
