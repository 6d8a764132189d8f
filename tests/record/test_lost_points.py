"""Losses are counted in points, for rows of any size."""

import numpy as np
import pytest

from tensormeter import Histogram

pytestmark = pytest.mark.usefixtures("writers")

NAMES = [f"m{number}" for number in range(10)]


@pytest.mark.parametrize(
    "row",
    [
        dict.fromkeys(NAMES, 1.0),
        dict.fromkeys(NAMES, 2**60),
        dict.fromkeys(NAMES, np.float64(1.0)),
        {name: Histogram(np.ones(4)) for name in NAMES[:3]} | {"x": 1.0},
        {"x": 1.0},
    ],
    ids=["floats", "integers", "NumPy", "distributions", "one"],
)
def test_a_full_ring_counts_lost_points_and_not_rows(new_recording, row):
    recording = new_recording(buffer_bytes=1 << 18 if len(row) == 4 else 1 << 16)
    for step in range(2000):
        recording.log(row, step)
    arrived = sum(len(values) for values in recording.values())
    assert arrived + recording.dropped("ring_full") == 2000 * len(row)
    assert recording.dropped("ring_full") > 0
