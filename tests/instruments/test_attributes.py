"""Attribute values and keys of other types than the plain ones: they are recorded as what they contain, like in the SDK."""

import enum
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics as encode_by_sdk
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from tensormeter.otlp.decode import decode_metrics


class Optimizer(str, enum.Enum):  # noqa: UP042 - whose `str()` is "Optimizer.ADAM"
    ADAM = "adam"
    SGD = "sgd"


class Stage(enum.StrEnum):
    WARMUP = "warmup"


class Priority(enum.IntEnum):
    HIGH = 3


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Share(float, enum.Enum):
    HALF = 0.5


class Shouting(str):
    """A mapping whose texts and comparisons have nothing to do with its content."""

    __slots__ = ()

    def __str__(self):
        return "STR"

    def __repr__(self):
        return "REPR"

    def __format__(self, spec):
        return "FORMAT"

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 7

    def __len__(self):
        return 0


class Number(int):
    __slots__ = ()

    def __int__(self):
        return 99

    def __index__(self):
        return 99

    def __str__(self):
        return "ninety-nine"


class Real(float):
    __slots__ = ()

    def __float__(self):
        return 99.0


VALUES = [
    (Optimizer.ADAM, "adam"),
    (Stage.WARMUP, "warmup"),
    (Priority.HIGH, 3),
    (Access.READ | Access.WRITE, 3),
    (Share.HALF, 0.5),
    (Shouting("quiet"), "quiet"),
    (Number(5), 5),
    (Real(1.5), 1.5),
    (np.str_("text"), "text"),
    (np.float64(2.5), 2.5),
    (np.float32(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.longdouble(1.5), 1.5),
    (np.int64(7), 7),
    (np.uint8(7), 7),
    (np.bool_(True), True),
    (np.array(4), 4),
    ([Optimizer.ADAM, "sgd"], ["adam", "sgd"]),
    ((Priority.HIGH, 4), [3, 4]),
    ([np.float64(1.0), Share.HALF], [1.0, 0.5]),
    (range(3), [0, 1, 2]),
    ([True, 1, 1.0, "1"], [True, 1, 1.0, "1"]),
]
INSTRUMENTS = {"counter": "add", "up_down_counter": "add", "gauge": "set", "histogram": "record"}


def same(recorded_value, expected):
    """Equal, and of the same types: True is not 1."""
    return (type(recorded_value), json.dumps(recorded_value)) == (type(expected), json.dumps(expected))


@pytest.mark.parametrize(("value", "content"), VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("kind", [*INSTRUMENTS, "observable_gauge"])
def test_the_content_of_a_value_counts(measured, warnings_logged, kind, value, content):
    if kind in INSTRUMENTS:
        measure = getattr(getattr(measured.meter, f"create_{kind}")("a"), INSTRUMENTS[kind])
        for _ in range(3):
            measure(1, {"k": value})
    else:
        measured.meter.create_observable_gauge("a", [lambda options: [Observation(1, {"k": value})]])
        assert measured.provider._observer.flush(300)
    (series,) = measured.series()
    assert same(series.attributes["k"], content)
    assert warnings_logged() == []


@pytest.mark.parametrize(("value", "content"), VALUES, ids=lambda value: type(value).__name__)
def test_the_content_counts_in_scopes_and_resources(new_measured, value, content):
    measured = new_measured(resource=Resource({"k": value}))
    measured.provider.get_meter("m", attributes={"k": value}).create_counter("a").add(1)
    (series,) = measured.series()
    assert same(series.scope.attributes["k"], content)
    if not isinstance(value, (np.generic, np.ndarray)):  # of which the SDK's resource makes texts
        assert same(measured.resource["k"], content)


def test_names_units_and_descriptions_may_be_of_a_subclass(measured):
    meter = measured.provider.get_meter(Optimizer.ADAM, Optimizer.SGD, Shouting("schema"))
    meter.create_counter(Optimizer.ADAM, Optimizer.SGD, Shouting("seen")).add(1)
    assert meter.create_counter("adam", "sgd", "seen") is meter.create_counter(Optimizer.ADAM, Optimizer.SGD, "seen")
    (series,) = measured.series()
    assert (series.name, series.unit, series.description) == ("adam", "sgd", "seen")
    assert (series.scope.name, series.scope.version, series.scope.schema_url) == ("adam", "sgd", "schema")


def test_keys_may_be_of_a_subclass(measured):
    gauge = measured.meter.create_gauge("a")
    for key in (Stage.WARMUP, Shouting("warmup"), np.str_("warmup"), "warmup"):
        gauge.set(1.0, {key: "x"})
    (series,) = measured.series()
    assert series.attributes == {"warmup": "x"}
    assert len(series.times) == 4


def test_equal_contents_are_one_stream_in_any_order(measured):
    counter = measured.meter.create_counter("a")
    for values in (("adam", Optimizer.ADAM), (Optimizer.SGD, "sgd")):
        for value in 2 * values:
            counter.add(1, {"optimizer": value})
    for value in (1, Priority(3), True, 1.0, 3, np.float64(1.0), np.bool_(True)):
        counter.add(1, {"number": value})
    totals = {json.dumps(series.attributes): series.values.tolist()[-1] for series in measured.series()}
    assert totals == {
        '{"optimizer": "adam"}': 4,
        '{"optimizer": "sgd"}': 4,
        '{"number": 1}': 1,
        '{"number": 3}': 2,
        '{"number": true}': 2,
        '{"number": 1.0}': 2,
    }


def test_values_that_compare_oddly_stay_apart(measured):
    """As a key or a value that was seen first, it is not remembered for others that it calls equal."""
    counter = measured.meter.create_counter("a")
    for _ in range(2):
        for word in ("a", "b"):
            counter.add(1, {"k": Shouting(word)})
            counter.add(1, {Shouting(word): "v"})
    totals = {json.dumps(series.attributes): series.values.tolist()[-1] for series in measured.series()}
    assert totals == {'{"k": "a"}': 2, '{"k": "b"}': 2, '{"a": "v"}': 2, '{"b": "v"}': 2}


class Hostile:
    @property
    def __class__(self):
        raise RuntimeError("class")


def itself():
    cycle = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    "make", [object, Hostile, itself, lambda: 1j, lambda: np.complex64(1), lambda: np.clongdouble(1)]
)
def test_attributes_that_cannot_be_recorded_are_left_out_alone(measured, warnings_logged, make):
    counter = measured.meter.create_counter("a")
    for _ in range(2):
        counter.add(1, {"before": "x", "bad": make(), "list": [1, make()], "after": 2})
    (series,) = measured.series()
    assert series.attributes == {"before": "x", "after": 2}
    assert len(warnings_logged()) == 2


PLAIN = st.text(max_size=3) | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, width=16)
OTHERS = st.sampled_from([*Optimizer, *Stage, *Priority, Access.READ, Share.HALF, Number(5), Real(1.5)])


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from("abc"), PLAIN | OTHERS, max_size=2), min_size=1, max_size=8))
def test_a_gauge_has_the_attributes_that_the_sdk_sends(shared, attribute_sets):
    """One attribute set at a time: of equal ones the SDK keeps the first, where True equals 1."""
    for attributes in attribute_sets:
        reader = InMemoryMetricReader()
        provider = SDKMeterProvider([reader], shutdown_on_exit=False)
        provider.get_meter("test").create_gauge("g").set(1.0, attributes)
        (batch,) = decode_metrics(encode_by_sdk(reader.get_metrics_data()).SerializeToString())
        shared.meter.create_gauge("g").set(1.0, attributes)
        (series,) = shared.series()
        assert same(dict(sorted(series.attributes.items())), dict(sorted(batch.series[0].attributes.items())))


@pytest.fixture
def shared(new_measured):
    return new_measured()
