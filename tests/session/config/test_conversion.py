"""Conversion of configurations of any type to JSON values."""

import argparse
import collections
import dataclasses
import enum
import functools
import importlib
import json
import types
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import ml_collections
import ml_dtypes
import msgspec
import numpy as np
import omegaconf
import pydantic
import pytest
import torch
from absl import flags
from attrs import define

from tensormeter.session.config.conversion import to_json


class Color(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 3


@dataclasses.dataclass
class Optimizer:
    lr: float
    betas: tuple[float, float] = (0.9, 0.99)


@define
class Attrs:
    lr: float


class Pydantic(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    lr: float
    password: pydantic.SecretStr = pydantic.SecretStr("hunter2")


class Struct(msgspec.Struct):
    lr: float


class Named(NamedTuple):
    lr: float


class Plain:
    decay = 0.5

    def __init__(self):
        self.lr = 0.1
        self._private = 1

    def method(self):
        return 1

    @property
    def computed(self):
        raise RuntimeError("not ready")


class Slotted:
    __slots__ = ("_private", "lr", "unset")

    def __init__(self):
        self.lr = 0.1
        self._private = 1


class SlottedChild(Slotted):
    __slots__ = ("decay",)

    def __init__(self):
        super().__init__()
        self.decay = 0.5


class Described(Plain):
    def __repr__(self):
        return "Described(...)"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Config:
    """As in notebooks: a class whose attributes are the configuration."""

    lr = 0.1
    model = "resnet"


class Sections(Config):
    """As in simulators: classes within classes."""

    batch = 8

    class optimizer:
        decay = 0.5

        class schedule:
            warmup = 10

    layer = torch.nn.ReLU


class UnusableDict:
    def __init__(self):
        self.lr = 0.1

    def to_dict(self, form):
        return form


class TransformersConfig:
    def to_dict(self):
        return {"lr": 0.1}

    def __repr__(self):
        return "TransformersConfig { ... }"


SECTIONS = {"lr": 0.1, "model": "resnet", "batch": 8, "optimizer": {"decay": 0.5, "schedule": {"warmup": 10}}}


def omega():
    return omegaconf.OmegaConf.create(
        {"lr": 0.1, "double": "${twice}", "twice": 2, "deep": {"items": [1, {"a": 2}]}, "missing": "???"}
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (np.float16(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (np.longdouble(0.5), 0.5),
        (np.float32(1e-8), 1e-8),
        (np.float32(16777216), 16777216.0),
        (np.int64(5), 5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2026-01-01"), "2026-01-01"),
        (torch.tensor(0.1), 0.1),
        (torch.tensor(0.1, dtype=torch.bfloat16), 0.1),
        (torch.tensor(7), 7),
        (torch.tensor(True), True),
        (torch.nn.Parameter(torch.tensor([0.1, 2.0])), [0.1, 2.0]),
        (np.array([0.9, 0.999], np.float32), [0.9, 0.999]),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([1, "a", None, Color.RED], dtype=object), [1, "a", None, "RED"]),
        (np.array([]), []),
        (np.complex64(1 + 2j), "(1+2j)"),
        (np.array([1j]), ["1j"]),
        (torch.tensor(1 + 2j), "(1+2j)"),
        (np.array(Optimizer(0.1), dtype=object), {"lr": 0.1, "betas": [0.9, 0.99]}),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        (Color.RED, "RED"),
        (Access.READ | Access.WRITE, "READ|WRITE"),
        (Access(0), 0),
        ({Access(0): 1}, {"0": 1}),
        (np.float16(65504), 65500.0),
        (np.array([65504, 0.5], np.float16), [65500.0, 0.5]),
        (torch.tensor([57344.0], dtype=torch.float8_e5m2), [60000.0]),
        (collections.UserString("ab"), "ab"),
        (Slotted(), {"lr": 0.1}),
        (SlottedChild(), {"lr": 0.1, "decay": 0.5}),
        (Described(), "Described(...)"),
        (Size.LARGE, 3),
        (Path("a/b"), "a/b"),
        (date(2026, 1, 2), "2026-01-02"),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cpu"), "cpu"),
        (torch.Size([1, 2]), [1, 2]),
        (torch.nn.ReLU, "torch.nn.modules.activation.ReLU"),
        (np.mean, "numpy.mean"),
        (b"abc", "abc"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1, "a"}, [1, "a"]),
        (range(3), [0, 1, 2]),
        (collections.deque([1, 2]), [1, 2]),
        ({"a": 1}.keys(), ["a"]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({(0, 1): "a", Color.RED: 1, None: 2, 1.5: 3}, {"(0, 1)": "a", "RED": 1, "null": 2, "1.5": 3}),
        (Named(0.1), {"lr": 0.1}),
        (Optimizer(0.1), {"lr": 0.1, "betas": [0.9, 0.99]}),
        (Attrs(0.1), {"lr": 0.1}),
        (Pydantic(lr=0.1, more=2), {"lr": 0.1, "password": "**********", "more": 2}),
        (Struct(0.1), {"lr": 0.1}),
        (argparse.Namespace(lr=0.1, inner=types.SimpleNamespace(a=1)), {"lr": 0.1, "inner": {"a": 1}}),
        (ml_collections.ConfigDict({"lr": 0.1, "inner": {"a": 1}}), {"lr": 0.1, "inner": {"a": 1}}),
        (TransformersConfig(), {"lr": 0.1}),
        (UnusableDict(), {"lr": 0.1}),
        (ml_dtypes.bfloat16(0.1), 0.1),
        (np.array([0.1, 2.0], ml_dtypes.bfloat16), [0.1, 2.0]),
        (Plain(), {"decay": 0.5, "lr": 0.1}),
        ({"a": [Optimizer(0.1), {"b": (Plain(),)}]}, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_recorded_as_they_are_meant(caplog, value, expected):
    converted = to_json({"x": value})["x"]
    if expected is None:
        expected = {"a": [{"lr": 0.1, "betas": [0.9, 0.99]}, {"b": [{"decay": 0.5, "lr": 0.1}]}]}
    assert converted == expected or sorted(map(str, converted)) == sorted(map(str, expected))
    assert type(converted) is type(expected)
    json.dumps(converted)
    assert not caplog.records


def test_large_arrays_become_summaries():
    array = np.arange(2000, dtype=np.float32).reshape(20, 100)
    converted = to_json(
        {"array": array, "tensor": torch.from_numpy(array), "dates": np.full(200, "2026-01-01", "M8[D]")}
    )
    for name in ("array", "tensor"):
        assert converted[name] == {
            "dtype": "float32",
            "shape": [20, 100],
            "min": 0.0,
            "max": 1999.0,
            "first": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        }
    assert converted["dates"]["shape"] == [200]
    assert converted["dates"]["first"] == ["2026-01-01"] * 8


def test_frames_become_their_shape_and_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})
    converted = to_json({"frame": frame, "column": frame["a"]})
    assert converted == {"frame": {"type": "DataFrame", "shape": [2, 2], "columns": ["a", "b"]}, "column": [1, 2]}
    arrow = pytest.importorskip("pyarrow").table({"a": [1, 2]})
    assert to_json({"arrow": arrow})["arrow"] == {"type": "Table", "shape": [2, 1], "columns": ["a"]}


def test_frames_of_polars_and_arrow_become_their_shape_and_columns():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = {"a": [1, 2], "b": [3.0, 4.0]}
    converted = to_json(
        {
            "polars": polars.DataFrame(columns),
            "series": polars.Series([1, 2]),
            "arrow": pyarrow.table(columns),
            "batch": pyarrow.RecordBatch.from_pydict(columns),
        }
    )
    assert converted == {
        "polars": {"type": "DataFrame", "shape": [2, 2], "columns": ["a", "b"]},
        "series": [1, 2],
        "arrow": {"type": "Table", "shape": [2, 2], "columns": ["a", "b"]},
        "batch": {"type": "RecordBatch", "shape": [2, 2], "columns": ["a", "b"]},
    }


def test_objects_with_a_shape_and_columns_are_not_frames():
    @dataclasses.dataclass
    class Data:
        shape: tuple[int, ...] = (3, 32, 32)
        columns: tuple[str, ...] = ("a",)
        path: str = "train.csv"

    assert to_json({"data": Data()}) == {"data": {"shape": [3, 32, 32], "columns": ["a"], "path": "train.csv"}}


def test_tensors_that_cannot_be_read_without_waiting_keep_their_shape(caplog):
    converted = to_json({"meta": torch.empty(3, device="meta"), "sparse": torch.eye(2).to_sparse()})
    assert converted == {
        "meta": {"dtype": "float32", "shape": [3]},
        "sparse": {"dtype": "float32", "shape": [2, 2]},
    }
    (record,) = caplog.records
    assert "'meta' is recorded as its shape and dtype only" in record.getMessage()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (argparse.Namespace(lr=0.1), {"lr": 0.1}),
        (Optimizer(0.1), {"lr": 0.1, "betas": [0.9, 0.99]}),
        (Config, {"lr": 0.1, "model": "resnet"}),
        (Sections, SECTIONS),
        (Sections(), SECTIONS),
        (Plain(), {"decay": 0.5, "lr": 0.1}),
        (Described(), {"decay": 0.5, "lr": 0.1}),
        (SlottedChild(), {"lr": 0.1, "decay": 0.5}),
        (Pydantic(lr=0.1), {"lr": 0.1, "password": "**********"}),
        (None, {}),
    ],
    ids=["namespace", "dataclass", "class", "sections", "instance", "object", "described", "slots", "pydantic", "none"],
)
def test_a_configuration_can_be_any_object_with_named_values(config, expected):
    assert to_json(config) == expected


def test_omegaconf_is_resolved_value_by_value(caplog):
    assert to_json(omega()) == {"lr": 0.1, "double": 2, "twice": 2, "deep": {"items": [1, {"a": 2}]}}
    assert to_json({"hydra": omega()})["hydra"]["deep"] == {"items": [1, {"a": 2}]}
    assert "'missing' is left out: cannot convert a value (MissingMandatoryValue)" in caplog.text


def test_absl_flags_are_their_values():
    values = flags.FlagValues()
    flags.DEFINE_float("lr", 0.1, "", flag_values=values)
    flags.DEFINE_list("layers", ["1", "2"], "", flag_values=values)
    values(["program", "--lr=0.5"])
    converted = to_json(values)
    assert (converted["lr"], converted["layers"]) == (0.5, ["1", "2"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "'x' is recorded as the text 'builtins.object', because it has no values to record"),
        ((number for number in range(3)), "'x' is left out: a generator can be read only once; pass a list"),
        (functools.partial(print), None),
        (list(range(60_000)), "'x' is left out: it has 60,000 items, which is too much for a configuration"),
        (range(10**12), "'x' is left out: it has 1,000,000,000,000 items, which is too much for a configuration"),
        (dict.fromkeys(range(10**6), 1), "and what follows is left out: the configuration has more than 50,000 values"),
        ("x" * (1 << 23), "'x' is left out: it has 8,388,608 characters, which is too much for a configuration"),
        (b"x" * (1 << 23), "'x' is left out: it has 8,388,608 bytes, which is too much for a configuration"),
        ({"k" * 5000: 1}, "is left out: the key is too long"),
    ],
    ids=["object", "generator", "partial", "long", "range", "wide", "text", "bytes", "key"],
)
def test_one_warning_names_what_cannot_be_kept(caplog, value, words):
    to_json({"x": value, "lr": 1})
    assert [words in record.getMessage() for record in caplog.records] == ([True] if words else [])


class Empty:
    def to_dict(self):
        raise RuntimeError("not ready")


@pytest.mark.parametrize(
    "config",
    [5, "config.yaml", [1], object(), Empty(), Color.RED, collections.UserString("a")],
    ids=lambda config: type(config).__name__,
)
def test_an_object_without_values_is_refused_with_a_warning(caplog, config):
    assert to_json(config) == {}
    (record,) = caplog.records
    assert f"a value of type {type(config).__name__} has no names; pass a dict" in record.getMessage()


def test_a_module_is_its_public_values(tmp_path, monkeypatch):
    (tmp_path / "settings_of_test.py").write_text(
        "import os\nfrom pathlib import Path\nlr = 0.1\n_x = 1\ndef f(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert to_json(importlib.import_module("settings_of_test")) == {"lr": 0.1}


def test_an_object_graph_that_leads_back_is_cut(caplog):
    first, second = Plain(), Plain()
    first.other, second.other = second, first
    assert to_json(first) == {"decay": 0.5, "lr": 0.1, "other": {"decay": 0.5, "lr": 0.1}}
    assert "'other'.'other' is left out: it contains itself" in caplog.text
