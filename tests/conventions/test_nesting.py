"""Nested mappings become names with slashes, within bounds."""

import time

from tensormeter.conventions.nesting import flatten
from tensormeter.server.store.models.results import MAX_RESULTS, valid_values


def test_keys_are_joined_by_slashes_and_empty_mappings_are_left_out():
    values = {"a": {"b": 1, "c": {"d": [2]}}, "e": None, 3: {4: 5}, "empty": {"inner": {}}}
    assert flatten(values) == {"a/b": 1, "a/c/d": [2], "e": None, "3/4": 5}


def test_bounds():
    values = {"a": {"b": {"c": 1}}, "long": {"x" * 9: 2}, "last": 3}
    assert flatten(values, levels=1) == {"a/b": {"c": 1}, "long/xxxxxxxxx": 2, "last": 3}
    assert flatten(values, longest=5) == {"a/b/c": 1, "last": 3}
    assert flatten(values, most=1) == {"a/b/c": 1}


def test_results_of_a_hostile_sender_take_little_time():
    deep: dict = {"leaf": 1}
    for _ in range(90):
        deep = {"d": deep}
    hostile = {"": 0, "x" * (2 << 20): {str(number): number for number in range(100_000)}, "deep": deep}
    hostile |= {f"n{number}": number for number in range(2 * MAX_RESULTS)}
    before = time.process_time()
    results = valid_values(hostile)
    assert time.process_time() - before < 5  # joining each key with the long one would take longer
    assert len(results) == MAX_RESULTS - 1
    (name,) = (name for name in results if name.startswith("deep/"))
    assert results[name].endswith('{"leaf":1}' + "}" * (90 - 20))
    assert results["n0"] == 0
