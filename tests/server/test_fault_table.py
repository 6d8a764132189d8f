"""Every fault that has a side of the server's has a test, on each store or with a reason, and the documentation names it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WANTED = {*range(6, 15), 17, 19, 20, 22, 27, *range(36, 56), *range(78, 95), *range(165, 193), *range(195, 198)}

BOTH = {"sqlite", "clickhouse"}
OF_MODULE = {
    "server/api/test_server_distributions": BOTH,
    "server/store/test_store": BOTH,
    "server/store/test_store_runs": BOTH,
    "server/store/test_store_sqlite": {"sqlite"},
    "server/store/test_store_upkeep": {"sqlite"},
    "server/store/test_store_clickhouse": {"clickhouse"},
    "server/store/test_clickhouse_outages": {"clickhouse"},
    "server/store/test_clickhouse_tables": {"clickhouse"},
}
OF_FIXTURE = {"filled": BOTH, "server_on_each": BOTH, "start_on_each": BOTH, "server": {"sqlite"}, "start": {"sqlite"}}


def stores_of(module, function):
    """The stores on which a test runs, by its module or its fixtures."""
    if module in OF_MODULE:
        return OF_MODULE[module]
    return set().union(*(OF_FIXTURE.get(argument.arg, set()) for argument in function.args.args))


def test_no_fault_is_without_its_test_at_the_server():
    text = (ROOT / "docs/reliability.md").read_text()
    table = text.partition("<!-- server faults -->")[2].partition("<!-- /server faults -->")[0]
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \| `(.+?)` \|$", table, re.MULTILINE)
    assert {int(number) for number, _, _ in rows} == WANTED
    assert len(rows) == len(WANTED)
    for number, remark, tests in rows:
        stores = set()
        for test in tests.split("`, `"):
            name, _, function = test.partition("::")
            parsed = ast.parse((ROOT / "tests" / f"{name}.py").read_text()).body
            functions = {node.name: node for node in parsed if isinstance(node, ast.FunctionDef)}
            assert function in functions, f"fault {number}"
            stores |= stores_of(name, functions[function])
        if stores == BOTH:
            assert remark == "both", f"fault {number}"
        else:
            assert re.match(r"(neither|SQLite only), because .", remark), (
                f"fault {number} runs on {stores or 'no store'}"
            )
            assert "clickhouse" not in stores, f"fault {number}"
