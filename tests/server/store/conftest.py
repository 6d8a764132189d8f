"""Stores in this process, whole and damaged."""

import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from damaged_stores import make_image

from support.stores import StoreClient
from tensormeter.server.query.points import sampled as points_query
from tensormeter.server.store import Store
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.sqlite.points import segments
from tensormeter.server.store.sqlite.store import SqliteStore


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., SqliteStore]]:
    """Opens stores that fold only when told to, and closes them at the end. Options are those of `SqliteStore`."""
    opened: list[SqliteStore] = []

    def open_store(folder: str = "store", **options: Any) -> SqliteStore:
        opened.append(SqliteStore(tmp_path / folder, **{"flush_points": 1 << 60, "flush_interval": 3600} | options))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def query(tmp_path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """Executes statements in the file of a store, which may be open. Returns the rows of the last statement."""

    def query(*statements: str, folder: str = "store") -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / folder / "tensormeter.db", isolation_level=None)) as connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]

    return query


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Makes chunks small, so that a store of a few thousand points has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_POINTS", 2048)
        patch.setattr(points_query, "WHOLE_POINTS", 5000)
        yield


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, small_chunks: None) -> Path:
    """The file of a store with something of everything."""
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def damaged_copy(tmp_path: Path, image: Path) -> Callable[..., Path]:
    """A folder with the store, after some statements of SQL have changed it behind the server's back."""

    def damaged_copy(*statements: str) -> Path:
        folder = tmp_path / "damaged"
        folder.mkdir()
        shutil.copy(image, folder / "tensormeter.db")
        with closing(sqlite3.connect(folder / "tensormeter.db", isolation_level=None)) as database:
            for statement in statements:
                assert database.execute(statement).rowcount > 0
        return folder

    return damaged_copy


@pytest.fixture(scope="module", params=["sqlite", "clickhouse"])
def open_each_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """Opens the store of the module, on SQLite and then on ClickHouse, again after it was closed."""
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("store")
        return lambda: SqliteStore(folder, flush_points=1 << 60, flush_interval=3600)
    port = request.getfixturevalue("clickhouse")
    address = parse_address(f"clickhouse://127.0.0.1:{port}/contract", {})
    return lambda: ClickHouseStore(address, commit_interval=0)


@pytest.fixture(scope="module")
def each_store(open_each_store: Callable[[], Store]) -> Iterator[list[Store]]:
    """The open store of the module, as the only item of a list, so that a test can replace it."""
    stores = [open_each_store()]
    yield stores
    stores[0].close()


@pytest.fixture
def client(each_store: list[Store], request: pytest.FixtureRequest) -> StoreClient:
    """A client of a new run."""
    name = request.node.name
    return StoreClient(each_store[0], f"{name.partition('[')[0][:80]}-{zlib.crc32(name.encode())}")
