"""A server that the runs of each test module deliver to, and an empty working folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.recorded_runs import RecordedRuns, record_runs
from tensormeter.session import open_runs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedRuns]:
    """Reads the runs of a test back from a real server."""
    with record_runs(tmp_path_factory.mktemp("recorded")) as recorded:
        yield recorded


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writers make folders; runs that a failed test has left open would last until the end of the next ones."""
    monkeypatch.chdir(tmp_path)
    yield
    open_runs.finish_all()
