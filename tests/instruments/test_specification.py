"""The rules of OpenTelemetry's metrics API and SDK for providers, meters and instruments (1.50), by section."""

import signal
import threading

import pytest
from opentelemetry import context, metrics
from opentelemetry.metrics import Observation

from tensormeter.otlp.batch import Gauge, Histogram, Sum, Temporality

KINDS = (
    "counter",
    "up_down_counter",
    "gauge",
    "histogram",
    "observable_counter",
    "observable_up_down_counter",
    "observable_gauge",
)
API = {
    "counter": metrics.Counter,
    "up_down_counter": metrics.UpDownCounter,
    "gauge": metrics._Gauge,
    "histogram": metrics.Histogram,
    "observable_counter": metrics.ObservableCounter,
    "observable_up_down_counter": metrics.ObservableUpDownCounter,
    "observable_gauge": metrics.ObservableGauge,
}


def create(meter, kind, name, **options):
    return getattr(meter, f"create_{kind}")(name, **options)


def measure(instrument, *arguments, **options):
    for method in ("add", "set", "record"):
        if hasattr(instrument, method):
            getattr(instrument, method)(*arguments, **options)
            return
    raise AssertionError(f"{instrument} measures nothing")


# "Get a Meter"


def test_a_meter_is_of_its_scope(measured):
    meter = measured.provider.get_meter("lib", "1.2", "https://example.org/1", {"a": True, "b": ("x", "y")})
    meter.create_gauge("g").set(1.0)
    assert (meter.name, meter.version, meter.schema_url) == ("lib", "1.2", "https://example.org/1")
    scope = measured.one("g").scope
    assert (scope.name, scope.version, scope.schema_url) == ("lib", "1.2", "https://example.org/1")
    assert scope.attributes == {"a": True, "b": ["x", "y"]}


@pytest.mark.parametrize("name", ["", None])
def test_a_meter_without_a_name_works_and_is_reported(measured, warnings_logged, name):
    meter = measured.provider.get_meter(name)
    assert meter.name == ""
    meter.create_gauge("g").set(1.0)
    assert measured.one("g").values.tolist() == [1.0]
    assert any("get_meter" in line for line in warnings_logged())


def test_identical_meters_are_one_and_distinct_ones_are_not(measured):
    get = measured.provider.get_meter
    assert get("a", "1") is get("a", "1")
    assert len({id(get("a")), id(get("a", "1")), id(get("a", None, "s")), id(get("b")), id(get("a", None, None, {"k": 1})),
                id(get("a", None, None, {"k": True}))}) == 6  # fmt: skip


def test_distinct_meters_are_separate_namespaces(measured, warnings_logged):
    measured.provider.get_meter("a").create_counter("x", unit="s").add(1)
    measured.provider.get_meter("b").create_gauge("x", unit="m").set(2)
    assert {(series.scope.name, type(series)) for series in measured.series()} == {("a", Sum), ("b", Gauge)}
    assert warnings_logged() == []


# "Instrument name syntax", "Instrument unit", "Instrument description"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "Train/loss", "a.b-c_d/e", "z" * 255])
def test_valid_names_are_accepted(measured, warnings_logged, kind, name):
    assert isinstance(create(measured.meter, kind, name), API[kind])
    assert warnings_logged() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["", "1a", "_a", "a b", "ä", "a" * 256, "a\n", None, 7])
def test_invalid_names_are_reported_and_do_not_raise(measured, warnings_logged, kind, name):
    instrument = create(measured.meter, kind, name)
    assert isinstance(instrument, API[kind])
    if not kind.startswith("observable"):
        measure(instrument, 1.0)
    (line,) = warnings_logged()
    assert repr(name) in line
    assert measured.series() == []


@pytest.mark.parametrize("kind", KINDS)
def test_unit_and_description_are_opaque(measured, warnings_logged, kind):
    description = "ß" * 1023
    options = {"callbacks": [lambda options: [Observation(1)]]} if kind.startswith("observable") else {}
    instrument = create(measured.meter, kind, "a", unit="µ" * 63, description=description, **options)
    if options:
        measured.provider._observer.flush(300)
    else:
        measure(instrument, 1)
    series = measured.one("a")
    assert (series.unit, series.description) == ("µ" * 63, description)
    assert warnings_logged() == []


def test_no_unit_is_the_empty_one_and_units_have_a_case(measured):
    meter = measured.meter
    assert meter.create_counter("a", unit=None, description=None) is meter.create_counter("a")
    assert meter.create_counter("b", unit="kb") is not meter.create_counter("b", unit="kB")


# "Duplicate instrument registration", "Name conflict", "Instrument advisory parameters"


@pytest.mark.parametrize("kind", KINDS)
def test_identical_instruments_are_aggregated_together(measured, warnings_logged, kind):
    instrument = create(measured.meter, kind, "a", unit="s", description="d")
    assert create(measured.meter, kind, "a", unit="s", description="d") is instrument
    assert warnings_logged() == []


@pytest.mark.parametrize(
    "change", [{"unit": "m"}, {"description": "other"}, {"kind": "histogram"}], ids=["unit", "description", "kind"]
)
def test_duplicates_work_and_are_reported_with_a_remedy(measured, warnings_logged, change):
    first = {"kind": "counter", "unit": "s", "description": "d"}
    for options in (first, first | change):
        measure(create(measured.meter, name="a", **options), 1.0)
    (line,) = warnings_logged()
    assert "View(" in line
    assert len(measured.series()) == 2


def test_the_case_of_a_name_is_the_first_seen(measured, warnings_logged):
    measured.meter.create_counter("requestCount").add(1)
    measured.meter.create_counter("RequestCount").add(2)
    assert measured.one("requestCount").values.tolist() == [3]
    assert len(warnings_logged()) == 1


def test_advised_boundaries_are_used_and_the_first_ones_stay(measured, warnings_logged):
    histogram = measured.meter.create_histogram("a", explicit_bucket_boundaries_advisory=[1, 2.5])
    again = measured.meter.create_histogram("a", explicit_bucket_boundaries_advisory=[3])
    assert again is histogram
    assert "already has" in warnings_logged()[0]
    for value in (1, 1.5, 2.5, 2.6):
        again.record(value)
    series = measured.one("a")
    assert series.bounds.tolist() == [1.0, 2.5]
    assert series.buckets.tolist() == [[1, 2, 1]]


def test_no_boundaries_make_one_bucket(measured):
    measured.meter.create_histogram("a", explicit_bucket_boundaries_advisory=[]).record(-7.0)
    series = measured.one("a")
    assert (series.bounds.tolist(), series.buckets.tolist()) == ([], [[1]])


@pytest.mark.parametrize("bounds", [[2, 1], [1, 1], [float("nan")], [float("inf")], "ab", 7])
def test_advice_that_is_invalid_is_reported_and_not_taken(measured, warnings_logged, bounds):
    measured.meter.create_histogram("a", explicit_bucket_boundaries_advisory=bounds).record(7)
    assert "advisory" in warnings_logged()[0]
    assert measured.one("a").bounds.tolist() == [
        0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000
    ]  # fmt: skip


# The instruments


def test_each_instrument_makes_its_kind_of_points(measured):
    meter = measured.meter
    meter.create_counter("c", unit="1").add(2)
    meter.create_up_down_counter("u").add(-2)
    meter.create_gauge("g").set(3)
    meter.create_histogram("h").record(4)
    meter.create_observable_counter("oc", [lambda options: [Observation(5)]])
    meter.create_observable_up_down_counter("ou", [lambda options: [Observation(-6)]])
    meter.create_observable_gauge("og", [lambda options: [Observation(7)]])
    measured.provider._observer.flush(300)
    by_name = {series.name: series for series in measured.series()}
    assert {name: type(series) for name, series in by_name.items()} == {
        "c": Sum, "u": Sum, "g": Gauge, "h": Histogram, "oc": Sum, "ou": Sum, "og": Gauge,
    }  # fmt: skip
    assert {name: by_name[name].monotonic for name in ("c", "u", "oc", "ou")} == {
        "c": True, "u": False, "oc": True, "ou": False,
    }  # fmt: skip
    values = {name: series.values.tolist() for name, series in by_name.items() if name != "h"}
    assert values == {"c": [2], "u": [-2], "g": [3], "oc": [5], "ou": [-6], "og": [7]}
    assert all(by_name[name].values.dtype.kind == "i" for name in values)
    assert all(by_name[name].temporality is Temporality.CUMULATIVE for name in ("c", "u", "h", "oc", "ou"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("observable")])
def test_attributes_and_context_may_be_given_by_name_or_by_position_or_not_at_all(measured, kind):
    instrument = create(measured.meter, kind, "a")
    measure(instrument, 1)
    measure(instrument, 1, {"k": "v"})
    measure(instrument, 1, attributes={"k": "w"}, context=context.get_current())
    measure(instrument, 1, {}, context.get_current())
    assert set(measured.by_attributes()) == {(), (("k", "v"),), (("k", "w"),)}


@pytest.mark.parametrize("amount", [-1, -0.5, float("nan"), float("inf"), -float("inf")])
def test_a_counter_refuses_once_aloud_and_counts(measured, warnings_logged, amount):
    counter = measured.meter.create_counter("a")
    for _ in range(3):
        counter.add(amount)
    counter.add(2)
    assert len(warnings_logged()) == 1
    assert measured.run._process.ring.drops() == {"unsupported_value": 3}
    assert measured.one("a").values.tolist() == [2]


def test_values_that_are_no_numbers_do_not_raise(measured, warnings_logged):
    instruments = [create(measured.meter, kind, kind) for kind in KINDS if not kind.startswith("observable")]

    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __bool__(self):
            raise RuntimeError("bool")

    for instrument in instruments:
        for amount in (None, "1", [1], object(), Hostile(), 1j):
            measure(instrument, amount)
        measure(instrument, 1, Hostile())
        measure(instrument, 1, [("k", "v")])
        measure(instrument, 1, {"k": Hostile(), 7: 1, "": 2})
    assert measured.run._process.ring.drops() == {"unsupported_value": 6 * len(instruments)}
    assert all(series.attributes == {} for series in measured.series())


def test_instruments_are_safe_for_concurrent_use(new_measured):
    measured = new_measured({"buffer_bytes": 1 << 24})
    counter = measured.meter.create_counter("a")
    histogram = measured.meter.create_histogram("h")

    def work(number):
        for i in range(500):
            counter.add(1, {"k": str(i % 7)})
            histogram.record(float(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]  # more than there are lanes
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    all_series = measured.series()
    assert sum(series.values[0] for series in all_series if series.name == "a") == 12 * 500
    (series,) = [series for series in all_series if series.name == "h"]
    assert series.counts.tolist() == [12 * 500]


# "Cardinality limits"


def test_attribute_sets_beyond_the_limit_overflow(new_measured, warnings_logged):
    measured = new_measured({"cardinality_limit": 3})
    counter = measured.meter.create_counter("a")
    for i in range(5):
        counter.add(1, {"k": i})
        counter.add(1, {"k": i})
    for i in range(5):  # known ones stay as they are
        counter.add(1, {"k": i})
    measured.meter.create_counter("b").add(1, {"k": 9})
    values = {(series.name, tuple(series.attributes.items())): series.values.tolist() for series in measured.series()}
    assert values == {
        ("a", (("k", 0),)): [3],
        ("a", (("k", 1),)): [3],
        ("a", (("k", 2),)): [3],
        ("a", (("otel.metric.overflow", True),)): [6],
        ("b", (("k", 9),)): [1],
    }
    assert len(warnings_logged()) == 1


def test_however_many_attribute_sets_there_are_rows_can_be_logged(new_measured, warnings_logged):
    """The number of streams is bounded, and what instruments may take of it as well."""
    measured = new_measured({"max_metric_names": 4000})
    for i in range(5):
        counter = measured.meter.create_counter(f"a{i}", description="d" * 200)
        for k in range(1000):
            counter.add(1, {"k": k})
    dropped = measured.run._process.ring.drops()["too_many_names"]
    assert 0 < dropped < 5000
    for i in range(100):
        measured.run.log({f"loss{i}": 1.0}, i)
    all_series = measured.series()
    assert sum(int(series.values[0]) for series in all_series if series.name.startswith("a")) == 5000 - dropped
    assert len([series for series in all_series if series.name.startswith("loss")]) == 100
    assert len(warnings_logged()) == 1


def test_equal_values_of_different_types_are_different_attributes(measured):
    gauge = measured.meter.create_gauge("g")
    for value in (True, 1, 1.0, "1", (1,), (True,)):
        for _ in range(2):
            gauge.set(1.0, {"k": value})
    kinds = [(type(series.attributes["k"]), len(series.times)) for series in measured.series()]
    assert sorted(str(kind) for kind, _ in kinds) == sorted(map(str, (bool, int, float, str, list, list)))
    assert {number for _, number in kinds} == {2}


def test_the_order_of_attributes_does_not_matter_and_changing_them_later_neither(measured):
    counter = measured.meter.create_counter("a")
    attributes = {"x": "1", "y": ["2"]}
    counter.add(1, attributes)
    counter.add(1, {"y": ["2"], "x": "1"})
    attributes["x"] = "other"
    assert measured.one("a").values.tolist() == [2]


# "Shutdown", "ForceFlush"


def test_after_shutdown_nothing_is_recorded_and_it_is_said_once(measured, warnings_logged):
    counter = measured.meter.create_counter("a")
    counter.add(1)
    measured.provider.shutdown(timeout_millis=0)
    for _ in range(3):
        counter.add(1)
        counter.add(1.5, {"k": "v"})
    assert len([line for line in warnings_logged() if "after shutdown()" in line]) == 1
    assert isinstance(measured.provider.get_meter("other"), metrics.NoOpMeter)
    assert measured.provider.force_flush() is False
    assert measured.provider.shutdown() is False
    assert measured.one("a").values.tolist() == [1]
    assert not measured.run._finished  # it is the program's
    measured.run.log({"loss": 1.0})


def test_the_end_of_the_run_ends_measurements(measured, warnings_logged):
    counter = measured.meter.create_counter("a")
    counter.add(1)
    measured.run.finish()
    for _ in range(3):
        counter.add(1)
    assert len([line for line in warnings_logged() if "after the run was finished" in line]) == 1
    assert measured.one("a").values.tolist() == [1]


def test_a_signal_handler_may_measure(new_measured):
    """Also new attribute sets, in the middle of another measurement."""
    measured = new_measured({"buffer_bytes": 1 << 24})
    counter = measured.meter.create_counter("a")
    handled = 0

    def handle(number, frame):
        nonlocal handled
        counter.add(1, {"k": str(handled % 50)})
        handled += 1

    before = signal.signal(signal.SIGALRM, handle)
    added = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while handled < 200:
            counter.add(2, {"k": str(added % 70)})
            added += 1
            if added % 5000 == 0:
                measured.series()  # makes room
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for k in range(70):  # so that each stream is in the last batch
        counter.add(0, {"k": str(k)})
    assert sum(int(series.values[0]) for series in measured.series()) == 2 * added + handled
