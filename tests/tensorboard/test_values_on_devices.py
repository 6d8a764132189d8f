"""Media that are made of arrays on a device: they are made once the copies have arrived, and nothing waits."""

import json

import numpy as np
import pytest

from tensormeter.record.media import arriving
from tensormeter.record.values.outcomes import Refused
from tensormeter.tensorboard.values import curve_of, image_with_boxes


@pytest.fixture
def arrived(monkeypatch):
    """Delays the copies of all data until the test adds an item to the list."""
    arrived = []
    monkeypatch.setattr(arriving, "_copies_of", lambda data: (data, lambda: bool(arrived)))
    return arrived


def test_a_curve_is_counted_after_its_data_has_arrived(arrived):
    curve = curve_of("curve", np.array([0, 1, 1]), np.array([0.1, 0.6, 0.9]), 11, None)
    assert not curve.is_ready()
    with pytest.raises(Refused, match="still on the device"):
        curve.pack()
    arrived.append(True)
    assert curve.is_ready()
    table = json.loads(curve.pack().body)
    assert table["chart"] == {"kind": "pr_curve", "x": "recall", "y": "precision", "title": "curve"}
    assert table["rows"][5] == [0.5, 2, 0, 1, 0, 1, 1]


def test_boxes_are_drawn_after_the_image_has_arrived(arrived, monkeypatch):
    image = image_with_boxes(np.zeros((3, 9, 9), np.uint8), np.array([[1, 1, 7, 7]]), "CHW", 1, None)
    assert not image.is_ready()
    monkeypatch.undo()  # the drawn image itself is on the host
    arrived.append(True)
    assert image.is_ready()
    assert json.loads(image.pack().body)["shape"] == [9, 9, 3]


def test_data_that_does_not_fit_is_refused_when_it_arrives(arrived):
    curve = curve_of("curve", np.array([0, 1]), np.array([0.5]), 11, None)
    arrived.append(True)
    assert curve.is_ready()
    with pytest.raises(Refused):
        curve.pack()
