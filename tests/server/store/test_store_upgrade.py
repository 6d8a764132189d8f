"""A store of the version before the reorganisation of November 2026 (commit 4c6b853), read by this one.

`old_store.tar.xz` was made with that version, whose server was killed: its last commits are only in the log of SQLite. It has a
finished run with points, an image, a table, a text and a distribution, an archived run and a deleted one. `answers.json` has the
answers of that version's server to requests about them.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from support.servers import Server


@pytest.fixture
def old(tmp_path):
    """The folder of the data, and the answers by path."""
    with tarfile.open(Path(__file__).with_name("old_store.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store", json.loads((tmp_path / "answers.json").read_text())


def contains(answer, former):
    """Whether an answer has all that a former one has, except for new fields."""
    if isinstance(former, dict):
        return isinstance(answer, dict) and all(
            name in answer and contains(answer[name], value) for name, value in former.items()
        )
    if isinstance(former, list):
        return isinstance(answer, list) and len(answer) == len(former) and all(map(contains, answer, former))
    return answer == former


def test_a_server_gives_the_same_answers_about_an_old_store(old, start):
    folder, answers = old
    if Server.clickhouse_port:
        pytest.skip("the store is one of SQLite")
    server = start(folder=folder)
    for path, document in answers.items():
        answer = server.get(f"{path}&fields=config,summary" if "/runs?" in path else path)
        if path.endswith("/metrics"):
            assert answer["total"] == len(document["metrics"])
        for name, value in document.items():
            assert contains(answer[name], value), (path, name)
        # The lists of that version had no pages, and its runs had neither results nor parents.
        assert {*answer} - {*document} <= {"next", "total", "definitions", "parent", "results", "job_type"}
    events = answers["/api/v1/runs/whole/events?limit=1000"]["events"]
    (digest,) = [event["body"]["digest"] for event in events if event["name"] == "tensormeter.image"]
    image = server.http.request("GET", f"{server.url}/api/v1/runs/whole/media/{digest}")
    assert (image.status, hashlib.sha256(image.data).hexdigest()) == (200, digest)
    assert "doomed" not in {run["id"] for run in answers["/api/v1/runs?project=upgrade&archived=true"]["runs"]}
    assert server.ask("/api/v1/runs/doomed")[0] == 404
