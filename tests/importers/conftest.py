"""A server per module, and the import command."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from support.import_server import ImportServer
from tensormeter.cli.import_ import import_


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImportServer]:
    folder = tmp_path_factory.mktemp("server")
    server = ImportServer(folder / "data")
    yield server
    server.stop()


@pytest.fixture
def run_import(server: ImportServer) -> Callable[..., Result]:
    """Runs the import command in this process."""

    def run_import(*arguments: str | Path, status: int = 0) -> Result:
        result = CliRunner().invoke(
            import_, [*map(os.fspath, arguments), "--endpoint", server.url], env={"COLUMNS": "200"}
        )
        assert result.exit_code == status, result.output + repr(result.exception)
        return result

    return run_import
