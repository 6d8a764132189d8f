"""Documents that are larger than their limit lose their largest values, and nothing else."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tensormeter.conventions.fitting import fit, json_bytes

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=9)
DOCUMENTS = st.dictionaries(
    st.text(max_size=9),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.text(max_size=9), inner, max_size=5), max_leaves=20),
    max_size=8,
)


def leaves(document, above=()):
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), repr(value)


@given(document=DOCUMENTS, limit=st.integers(2, 400))
def test_what_is_kept_fits_and_only_the_largest_are_left_out(document, limit):
    kept, left_out = fit(document, limit)
    assert json_bytes(kept) <= limit
    before, after = dict(leaves(document)), dict(leaves(kept))
    assert after.items() <= before.items()
    assert len(before) == len(after) + len(left_out)
    assert sorted((omission.size for omission in left_out), reverse=True) == [omission.size for omission in left_out]
    assert bool(left_out) == (json_bytes(document) > limit)
    assert fit(dict(reversed(document.items())), limit)[1] == left_out


def test_nested_values_are_left_out_one_by_one():
    document = {
        "lr": 0.1,
        "data": {"ids": list(range(300_000)), "name": "digits"},
        "only": {"in": {"here": "x" * 10**6}},
    }
    kept, left_out = fit(document, 1 << 19)
    assert kept == {"lr": 0.1, "data": {"name": "digits"}}
    assert [omission.name for omission in left_out] == ["data.ids", "only.in.here"]


@given(value=st.recursive(LEAVES, st.lists, max_leaves=9))
def test_sizes_are_those_of_what_a_server_keeps(value):
    assert json_bytes(value) >= len(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    )
