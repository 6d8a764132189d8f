"""Every fault that has a side of the server's has a test, and the documentation names it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WANTED = {*range(6, 15), 17, 19, 20, 22, 27, *range(36, 56)}


def test_no_fault_is_without_its_test_at_the_server():
    text = (ROOT / "docs/reliability.md").read_text()
    table = text.partition("<!-- server faults -->")[2].partition("<!-- /server faults -->")[0]
    rows = re.findall(r"^\| (\d+) \| .+ \| `(.+?)` \|$", table, re.MULTILINE)
    assert {int(number) for number, _ in rows} == WANTED
    assert len(rows) == len(WANTED)
    for number, tests in rows:
        for test in tests.split("`, `"):
            name, _, function = test.partition("::")
            parsed = ast.parse((ROOT / "tests" / f"{name}.py").read_text()).body
            assert function in {node.name for node in parsed if isinstance(node, ast.FunctionDef)}, f"fault {number}"
