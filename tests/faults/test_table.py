"""Every fault that is the client's has a test, and the documentation names it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WANTED = {*range(1, 19), 20, 21, *range(23, 27), *range(28, 40), 51, *range(56, 78), *range(95, 165), 193, 194, 198}


def test_every_fault_has_its_test():
    text = (ROOT / "docs/reliability.md").read_text()
    table = text.partition("<!-- faults -->")[2].partition("<!-- /faults -->")[0]
    rows = re.findall(r"^\| (\d+) \| .+ \| `(.+?)::(\w+)` \|$", table, re.MULTILINE)
    assert {int(number) for number, _, _ in rows} == WANTED
    assert len(rows) == len(WANTED)
    for number, path, name in rows:
        functions = {
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"fault {number}"
        if path.startswith("tests/faults"):
            assert f"_{int(number):02}_" in name, f"fault {number} is not what {name} tests"
