"""The OpenAPI document, tried out: Schemathesis makes requests from the OpenAPI document, fitting and not fitting, always
the same, and looks whether status, headers and body are what the document says.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tensormeter.server.api.openapi import openapi_document
from tensormeter.server.api.params import parse_position

T0 = 1_750_000_000_000_000_000
METHODS = {"get", "post", "put", "patch", "delete"}
EXAMPLES = os.environ.get("TENSORMETER_TEST_EXAMPLES", "8")


@pytest.mark.parametrize(("run_id", "phases"), [("curves", "coverage,fuzzing"), ("unknown", "fuzzing")])
def test_the_server_does_what_its_document_says(start, make, tmp_path, run_id, phases):
    server = start()
    for run in ("curves", "sacrificed"):
        assert server.metrics(make.rows(run, [(T0 + i, i, {"v": i / 7}) for i in range(50)])).status == 200
    config = (Path(__file__).parent / "schemathesis.toml").read_text().replace('"curves"', f'"{run_id}"')
    (tmp_path / "schemathesis.toml").write_text(config)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", tmp_path / "schemathesis.toml"),
        *("run", f"{server.url}/api/v1/openapi.json", "--url", server.url, "--phases", phases),
        *("--exclude-path", "/api/v1/stream"),  # it has no end
        *("--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure", "--warnings", "off", "--no-color"),
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    paths = server.get("/api/v1/openapi.json")["paths"]
    operations = sum(len(path.keys() & METHODS) for path in paths.values())
    assert f"Tested: {operations - 2}" in done.stdout, done.stdout  # all but the stream and the document
    assert server.get("/healthz") == {"status": "ok"}
    assert server.stop() == 0
    # Schemathesis tries first whether a header may have a NUL in it.
    warnings = {line.partition(" WARNING ")[2].partition(" from ")[0] for line in server.stderr.splitlines()}
    assert warnings <= {"tensormeter: invalid HTTP request"}


@pytest.mark.parametrize(
    "number", ["9223372036854775808", "-9223372036854775809", "9" * 19, "9" * 5000, "1.0", "\u0663"]
)
def test_numbers_that_no_store_can_look_for(server, make, number):
    server.metrics(make.rows("numbers", [(T0, 0, {"v": 1.0})]))
    for path in ("events", "series", "distributions"):
        status, document = server.ask(f"/api/v1/runs/numbers/{path}", metric="v", start=number)
        assert (status, document["error"]["message"][:32]) == (400, "start: expected a 64-bit integer")
    for end in ("-9223372036854775808", "9223372036854775807"):
        assert server.ask("/api/v1/runs/numbers/events", start=end)[0] == 200


@pytest.mark.parametrize("path", ["events", "logs"])
def test_positions_that_the_server_returns_match_their_pattern(path):
    parameters = openapi_document()["paths"][f"/api/v1/runs/{{run_id}}/{path}"]["get"]["parameters"]
    (schema,) = (parameter["schema"] for parameter in parameters if parameter["name"] == "before")
    (pattern,) = {part["pattern"] for part in (schema, *schema.get("anyOf", ())) if "pattern" in part}
    highest = (1 << 63) - 1
    for position in ((0, 0), (1_750_000_000_000_000_000, 7), (highest, highest)):
        assert re.search(pattern, f"{position[0]}-{position[1]}")
        assert parse_position(f"{position[0]}-{position[1]}") == position
    for text in (f"{highest + 1}-0", "9999999999999999999-0", "1", "-1-2"):
        assert not re.search(pattern, text)
        assert parse_position(text) is None


def test_a_method_that_a_run_does_not_have(server):
    answer = server.http.request("OPTIONS", f"{server.url}/api/v1/runs/any")
    assert (answer.status, sorted(answer.headers["Allow"].split(", "))) == (405, ["DELETE", "GET", "HEAD", "PATCH"])
