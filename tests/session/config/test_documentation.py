"""The table of configuration values in the documentation is true."""

import argparse
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import re

import numpy as np
import pytest
import torch

from support.processes import ROOT
from tensormeter.session.config.conversion import to_json


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Optimizer:
    lr: float


TEXT = (ROOT / "docs/configuration.md").read_text()
ROWS = re.findall(
    r"^\| `(.+)` \| `(.+)` \|$", TEXT[TEXT.index("<!-- values -->") : TEXT.index("<!-- end -->")], re.MULTILINE
)
NAMES = {
    "argparse": argparse,
    "datetime": dt,
    "decimal": decimal,
    "fractions": fractions,
    "pathlib": pathlib,
    "np": np,
    "torch": torch,
    "Color": Color,
    "Optimizer": Optimizer,
}


@pytest.mark.parametrize(("value", "recorded"), ROWS)
def test_each_value_is_recorded_as_documented(value, recorded):
    assert json.dumps(to_json({"x": eval(value, dict(NAMES))})["x"]) == recorded


def test_the_table_has_rows():
    assert len(ROWS) > 20
