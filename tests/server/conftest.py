"""A real server process, real sockets, real signals."""

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from support.otlp import Batches
from support.servers import Server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, by default all on one folder, and stops those that still run."""
    started: list[Server] = []

    def start(
        *arguments: str, folder: Path = tmp_path / "data", environment: Mapping[str, str] | None = None
    ) -> Server:
        started.append(Server(folder, *arguments, environment=environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module; at the end it must stop by itself and must have complained about nothing."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.fixture(scope="session")
def server_on_clickhouse(tmp_path_factory: pytest.TempPathFactory, clickhouse: int) -> Iterator[Server]:
    """One server on ClickHouse for all modules; as `server` else."""
    store = f"clickhouse://127.0.0.1:{clickhouse}/shared"
    server = Server(tmp_path_factory.mktemp("server") / "data", "--store", store)
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.fixture(scope="module", params=["sqlite", "clickhouse"])
def server_on_each(request: pytest.FixtureRequest) -> Server:
    """A server on one store, and then on the other."""
    selected_server: Server = request.getfixturevalue("server" if request.param == "sqlite" else "server_on_clickhouse")
    return selected_server


@pytest.fixture(params=["sqlite", "clickhouse"])
def start_on_each(
    request: pytest.FixtureRequest, start: Callable[..., Server], tmp_path: Path
) -> Callable[..., Server]:
    """As `start`, with one store, and then with the other."""
    if request.param == "sqlite":
        return start
    port = request.getfixturevalue("clickhouse")
    database = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    return functools.partial(start, "--store", f"clickhouse://127.0.0.1:{port}/each_{database}")


@pytest.fixture(scope="session", autouse=True)
def store_of_all_servers(request: pytest.FixtureRequest) -> None:
    if os.environ.get("TENSORMETER_TEST_STORE") == "clickhouse":
        Server.clickhouse_port = request.getfixturevalue("clickhouse")


@pytest.fixture(scope="session")
def server_class() -> type[Server]:
    return Server


@pytest.fixture(scope="session")
def make() -> type[Batches]:
    return Batches


def number(value: float | str) -> float:
    """A value of the API as the number that it stands for."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    return value


@pytest.fixture
def decode_number() -> Callable[[float | str], float]:
    return number
