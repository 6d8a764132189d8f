"""Counting into buckets: exact, compared with the SDK's mapping and rational arithmetic, and equal on host and device."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tensormeter.record.histogram import pooling
from tensormeter.record.histogram.counting import (
    DeviceTables,
    _bounds,
    array_pieces,
    bounds_on_device,
    count_on_host,
    tensor_pieces,
)
from tensormeter.record.histogram.histogram import DeviceDistribution
from tensormeter.record.reduction.reduction import Rule
from tensormeter.ring.histogram_buckets import DOUBLE, SINGLE

TABLES = pytest.mark.parametrize("table", [SINGLE, DOUBLE], ids=["single", "double"])
DTYPES = {SINGLE: np.float32, DOUBLE: np.float64}


def awkward_values(table, seed=0):
    """Every bound and its neighbours, random patterns of bits, many magnitudes, zeros and what is not finite."""
    random, dtype = np.random.default_rng(seed), DTYPES[table]
    bounds = _bounds(table)
    with np.errstate(over="ignore"):
        near = [bounds, np.nextafter(bounds, dtype(np.inf)), np.nextafter(bounds, dtype(-np.inf))]
    bits = random.integers(0, 1 << 63, 20_000).view(dtype)
    spread = (random.choice([-1.0, 1.0], 20_000) * np.exp2(random.uniform(-70, 40, 20_000))).astype(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 2], dtype)
    return np.concatenate([*near, bits, spread, special])


def bins_of(values, table):
    """The bin of each value, as the search that is used for few values says."""
    return np.searchsorted(_bounds(table), values)


def exact_index(value, table):
    """Bucket of a positive number by OpenTelemetry's definition, in rational arithmetic."""
    parts, number = 1 << table.scale, Fraction(value)
    index = math.frexp(value)[1] * parts
    while Fraction(2) ** index >= number**parts:
        index -= 1
    return index


def expected_bin(value, table, index_of):
    if math.isnan(value):
        return table.bins - 1
    if math.isinf(value):
        return table.bins - 2 if value > 0 else 0
    if abs(value) <= 2.0**table.lowest:
        return table.buckets + 1
    position = index_of(abs(value)) - table.first_index
    return table.buckets + 2 + position if value > 0 else table.buckets - position


def counts(counted):
    return np.frombuffer(counted.counts, np.int32)


def test_float32_values_get_the_buckets_of_the_sdk():
    mapping = LogarithmMapping(SINGLE.scale)
    values = awkward_values(SINGLE)
    wrong = [
        value
        for value, index in zip(values.tolist(), bins_of(values, SINGLE).tolist(), strict=True)
        if index != expected_bin(value, SINGLE, mapping.map_to_index)
    ]
    assert wrong == []


@TABLES
def test_buckets_are_those_of_rational_arithmetic(table):
    values = awkward_values(table)[::5]
    wrong = [
        value
        for value, index in zip(values.tolist(), bins_of(values, table).tolist(), strict=True)
        if index != expected_bin(value, table, lambda value: exact_index(value, table))
    ]
    assert wrong == []


@TABLES
def test_the_fast_search_on_the_host_agrees_with_binary_search(table):
    """Compared with the binary search, on the first and last number of every cell and on awkward numbers."""
    bits = table.fraction_bits // 23 * 32
    words = np.arange(1 << 16, dtype=f"u{bits // 8}") << (bits - 16)
    ends = np.concatenate([words, words | ((1 << (bits - 16)) - 1)]).view(DTYPES[table])
    for values in (awkward_values(table), ends):
        want = np.bincount(bins_of(values, table), minlength=table.bins)
        assert np.array_equal(counts(count_on_host([values], table)), want)
        assert np.array_equal(counts(count_on_host(np.array_split(values, 7), table)), want)


@TABLES
def test_the_device_has_the_same_bounds_and_counts(table):
    values = awkward_values(table)
    device = torch.device("cpu")
    assert np.array_equal(bounds_on_device(device, table).numpy(), _bounds(table))
    finite = values[np.isfinite(values)]
    device_counts, statistics = DeviceTables().count([torch.from_numpy(values), torch.from_numpy(finite)], table)
    assert device_counts.dtype == torch.int32
    first, second = device_counts.numpy().reshape(2, -1)
    assert np.array_equal(first, counts(count_on_host([values], table)))
    host = count_on_host([finite], table)
    assert np.array_equal(second, counts(host))
    assert math.isnan(statistics[0, 1])
    assert statistics[1, 1:].tolist() == list(host.statistics[1:])


def test_large_tensors_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr("tensormeter.record.histogram.counting._DEVICE_PIECE", 1000)
    values = torch.randn(12_345, generator=torch.Generator().manual_seed(1))
    bin_counts, statistics = DeviceTables().count([values], SINGLE)
    host = count_on_host(tensor_pieces(values, SINGLE), SINGLE)
    assert np.array_equal(bin_counts.numpy(), counts(host))
    assert bin_counts.sum() == 12_345
    assert statistics[0].tolist() == pytest.approx(host.statistics)
    assert statistics[0].tolist() == pytest.approx(
        [values.double().sum().item(), values.min().item(), values.max().item()]
    )


@pytest.mark.parametrize(
    ("values", "table"),
    [
        (torch.randn(999).bfloat16(), SINGLE),
        (torch.randn(999).half(), SINGLE),
        (torch.randn(999).to(torch.float8_e5m2), SINGLE),
        (torch.randint(-128, 128, (30, 30), dtype=torch.int8), SINGLE),
        (torch.randn(999) > 0, SINGLE),
        (torch.randint(-(1 << 53), 1 << 53, (999,)), DOUBLE),
        (torch.randn(30, 40).t(), SINGLE),
        (torch.randn(1, 40).expand(30, 40), SINGLE),
        (torch.nn.Parameter(torch.randn(7)), SINGLE),
    ],
    ids=["bf16", "f16", "fp8", "int8", "bool", "int64", "transposed", "expanded", "parameter"],
)
def test_every_dtype_and_shape_is_counted_alike_on_host_and_device(values, table):
    exact = values.detach().double().reshape(-1)
    want = count_on_host([exact.numpy()], DOUBLE)
    host = count_on_host(tensor_pieces(values, table), table)
    device, statistics = DeviceTables().count([values], table)
    assert np.array_equal(counts(host), device.numpy())
    assert counts(host).sum() == values.numel()
    assert host.statistics == pytest.approx(want.statistics)
    assert statistics[0].tolist() == pytest.approx(want.statistics)
    if table is SINGLE:
        assert np.array_equal(bins_of(exact.float().numpy(), SINGLE), bins_of(exact.numpy().astype(np.float32), SINGLE))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_arrays_of_any_byte_order_and_stride_are_counted(byte_order):
    values = np.arange(-50, 50, dtype=f"{byte_order}f4").reshape(10, 10)[::2, 1:]
    counted = count_on_host(array_pieces(values, SINGLE), SINGLE)
    assert counted.statistics == (values.sum(), values.min(), values.max())
    assert counts(counted).sum() == values.size


class Widths(TorchDispatchMode):
    """The dtypes of the results of operations."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


class TestNothingSynchronizes:
    """Fake tensors know shapes only, so an operation that needs a value, hence a device's answer, is an error."""

    @pytest.mark.parametrize(
        "synchronizing",
        [
            lambda x: x.sum().item(),
            lambda x: bool(x.any()),
            lambda x: x.masked_select(x > 0),
            lambda x: x.int().bincount(),
            lambda x: x.unique(),
        ],
        ids=["item", "bool", "mask", "bincount", "unique"],
    )
    def test_the_check_can_fail(self, synchronizing):
        with FakeTensorMode(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            synchronizing(torch.empty(1000, device="cuda"))

    @pytest.mark.parametrize(
        ("device", "table"), [("cuda", SINGLE), ("cuda", DOUBLE), ("xpu", SINGLE), ("xpu", DOUBLE), ("mps", SINGLE)]
    )
    @pytest.mark.parametrize("size", [1, 5000, 20_000_000])
    def test_counting(self, device, table, size):
        wide = table is DOUBLE
        dtypes = [torch.float64, torch.int64] if wide else [torch.float32, torch.bfloat16, torch.float16, torch.bool]
        with FakeTensorMode(), Widths() as widths:
            tensors = [torch.empty(size, device=device, dtype=dtype) for dtype in dtypes]
            counts, statistics = DeviceTables().count(tensors, table)
        assert counts.device.type == statistics.device.type == device
        assert (torch.float64 in widths.seen) == (device != "mps")  # Apple's devices have none
        assert counts.shape == (len(dtypes) * table.bins,)
        assert statistics.shape == (len(dtypes), 3)

    def test_grad_mode_and_inference_mode(self):
        tables = DeviceTables()
        with torch.inference_mode():
            tables.count([torch.ones(3)], SINGLE)
        weight = torch.ones(3, requires_grad=True)
        _, statistics = tables.count([weight * 2], SINGLE)
        assert not statistics.requires_grad
        assert torch.is_grad_enabled()
        assert statistics[0].tolist() == [6.0, 2.0, 2.0]

    @pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
    @pytest.mark.parametrize("reduce", ["mean", "last"])
    def test_neither_does_putting_steps_together(self, device, reduce, monkeypatch):
        monkeypatch.setattr(pooling, "_current_stream", lambda tensor: None)
        pools, rules = pooling.Pools(DeviceTables()), {"a": Rule(2, reduce), "b": Rule(2, reduce)}
        with FakeTensorMode(), Widths() as widths:
            for step in range(2):
                row = {name: DeviceDistribution(torch.empty(50, device=device), SINGLE) for name in rules}
                ready = pools.add(rules, row, step)
        assert {name: tuple(distribution.counts.shape) for name, distribution in ready.items()} == dict.fromkeys(
            "ab", (SINGLE.bins,)
        )
        assert {distribution.counts.device.type for distribution in ready.values()} == {device}
        assert (torch.float64 in widths.seen) == (device != "mps")
