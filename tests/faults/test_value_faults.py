"""Values and names that are out of the ordinary: faults 36 to 39."""

import json
import math
import struct

import numpy as np
import pytest
import urllib3

import tensormeter

TINY = 5e-324


@pytest.fixture
def settings(run_settings):
    return run_settings(run_id="values")


def values(receiver, name):
    """The values of a metric, in order of time."""
    timed_values = sorted((at, value) for (_, metric, at, value) in receiver.points() if metric == name)
    return [value for _, value in timed_values]


def test_fault_36_nan_infinities_and_their_kin_are_kept_and_json_is_valid(settings, server):
    odd = [math.nan, math.inf, -math.inf, -0.0, 0.0, TINY, -TINY, 2.2250738585072014e-308, 1.7976931348623157e308]
    server.start()
    with tensormeter.init("faults", settings=settings.replace(endpoint=server.url)) as run:
        for step, value in enumerate(odd):
            run.log({"odd": value}, step)
    url = f"{server.url}/api/v1/runs/values/series?metric=odd&x=step"
    with urllib3.PoolManager(retries=False) as pool:
        text = pool.request("GET", url).data.decode()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (series,) = json.loads(text, parse_constant=refuse)["series"]
    shown = [float(value) for value in series["value"]]
    assert [struct.pack("<d", value) for value in shown[1:]] == [struct.pack("<d", value) for value in odd[1:]]
    assert math.isnan(shown[0])


def test_fault_37_large_integers_small_floats_and_arrays_without_dimension(settings, receiver):
    exact = [2**53 + 1, -(2**63), 2**63 - 1, np.int64(2**62 + 1), np.array(2**60 + 7)]
    floats = [np.float16(0.1), np.float32(0.1), np.array(0.25), np.array([[1.5]])]
    with tensormeter.init("faults", settings=settings) as run:
        for step, value in enumerate(exact):
            run.log({"exact": value}, step)
        for step, value in enumerate(floats):
            run.log({"float": value}, step)
        run.log({"exact": 2**64}, 100)  # does not fit 64 bits
    assert values(receiver, "exact")[: len(exact)] == [int(value) for value in exact]
    assert values(receiver, "float") == [float(value.item()) for value in floats]
    (end,) = [body for name, body in receiver.events() if name == "tensormeter.run.end"]
    beyond = values(receiver, "exact")[len(exact) :]
    assert beyond == [float(2**64)] or end["dropped"] == {"unsupported_value": 1}


def test_fault_38_a_huge_string_and_a_huge_name_are_refused_and_counted(settings, receiver, caplog):
    with tensormeter.init("faults", settings=settings) as run:
        run.log({"text": "x" * 100_000_000, "loss": 1.0}, 0)
        run.log({"n" * 1_000_000: 1.0, "loss": 2.0}, 1)
        run.log({"loss": 3.0}, 2)
    assert {1.0, 3.0} <= set(values(receiver, "loss"))
    assert max(map(len, caplog.messages)) < 2000, "no message repeats what was too long"
    (end,) = [body for name, body in receiver.events() if name == "tensormeter.run.end"]
    assert end["dropped"] == {"unsupported_value": 1, "text_too_large": 1}
    assert not any(len(name) > 10_000 for _, name, *_ in receiver.points())


def test_fault_39_names_beyond_the_cap_are_counted_with_one_warning(settings, receiver, caplog):
    with tensormeter.init("faults", settings=settings.replace(max_metric_names=50_000)) as run:
        run.log({"loss": 1.0}, 0)
        for start in range(0, 150_000, 1000):
            run.log({f"metric-{number}": 1.0 for number in range(start, start + 1000)}, 1)
        run.log({"loss": 2.0}, 2)
    assert {1.0, 2.0} <= set(values(receiver, "loss"))
    (end,) = [body for name, body in receiver.events() if name == "tensormeter.run.end"]
    names = {name for _, name, *_ in receiver.points() if name.startswith("metric-")}
    assert len(names) >= 49_000
    assert end["dropped"] == {"too_many_names": 150_000 - len(names)}
    assert sum("layout" in message or "names" in message for message in caplog.messages) <= 2
