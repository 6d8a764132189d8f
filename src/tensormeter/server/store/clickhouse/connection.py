"""A connection to ClickHouse, which returns small results as JSON rows and large ones as arrays of fixed-size rows."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import clickhouse_connect
import numpy as np
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httputil import get_pool_manager
from numpy.typing import NDArray
from urllib3.exceptions import HTTPError

from tensormeter.server.store.clickhouse.address import Address
from tensormeter.server.store.clickhouse.native import NativeBlock, decode_columns
from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Connection", "numbers"]

_CONNECTIONS: Final = 16
_MAX_ERROR: Final = 400
_ADDRESS: Final = re.compile(r"/\?\S+")
"""Pattern for the path and parameters of a request's URL."""

_CODE: Final = re.compile(r"\bCode: (\d+)\. DB::Exception")
_DAMAGE: Final = {
    33,  # CANNOT_READ_ALL_DATA
    40,  # CHECKSUM_DOESNT_MATCH
    226,  # NO_FILE_IN_DATA_PART
    228,  # BAD_SIZE_OF_FILE_IN_DATA_PART
    246,  # CORRUPTED_DATA
    271,  # CANNOT_DECOMPRESS
    432,  # UNKNOWN_CODEC
}
"""ClickHouse error codes that indicate damaged files."""

_WHOLE: Final = 1 << 24
"""Maximum number of rows in a block. ClickHouse stores each block of an insert completely or not at all."""

_FIELD: Final = 100_000
"""Maximum number of bytes in a parameter. ClickHouse accepts 128 KiB (`http_max_field_value_size`)."""

_SEPARATOR: Final = 4
"""Number of bytes that a text in a list takes up in addition to its own."""

_SETTINGS: Final[Mapping[str, str | int]] = {
    "max_execution_time": 60,
    "max_memory_usage": 8 << 30,
    "max_query_size": 64 << 20,  # statements may contain the keys of many series
    "prefer_column_name_to_alias": 1,  # so that an aggregate can have the same name as its column
    "output_format_json_quote_64bit_integers": 0,
    "max_insert_block_size": _WHOLE,
    "min_insert_block_size_rows": _WHOLE,
    "min_insert_block_size_bytes": 1 << 30,
    "input_format_parallel_parsing": 0,
    "async_insert": 0,  # the inserts of a commit must keep their order
    "distributed_foreground_insert": 1,  # otherwise, ClickHouse responds before the shards receive the rows
}

# These libraries log complete requests; their exceptions contain enough information.
for _name in ("clickhouse_connect", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Connection:
    """A pool of HTTP connections to ClickHouse. Any thread may use it.

    Calls block until ClickHouse responds. ClickHouse stops a statement after 60 seconds, and a call fails if ClickHouse
    sends nothing for 120 seconds. Statements contain values only as bound parameters or plain integers.

    Raises:
        StoreUnavailableError: From any method: ClickHouse is unreachable or rejected the statement. The caller may
            retry.

    Attributes:
        damage: Error message from a read that found damaged files, or None.
    """

    damage: str | None = None

    def __init__(self, address: Address, database: str | None = None) -> None:
        """Connect to ClickHouse.

        Args:
            address: Address of ClickHouse.
            database: Database for unqualified table names; None for the user's default database.
        """
        self._where = str(address)
        try:
            self._client = clickhouse_connect.get_client(
                host=address.host,
                port=address.port,
                username=address.user,
                password=address.password,
                interface="https" if address.secure else "http",
                database=database or "__default__",
                settings={**_SETTINGS, **address.settings},
                autogenerate_session_id=False,  # a session would run only one statement at a time
                pool_mgr=get_pool_manager(maxsize=_CONNECTIONS, num_pools=1),
                connect_timeout=10,
                send_receive_timeout=120,
                client_name="tensormeter",
            )
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._error(error) from None

    def rows(self, statement: str, **parameters: Any) -> list[list[Any]]:
        """Return the rows of a SELECT as JSON values, with exact integers. Floats must be finite."""
        answer = self._ask(statement, "JSONCompactEachRow", parameters)
        return [json.loads(line) for line in answer.splitlines()] if answer else []

    def columns(self, statement: str, dtype: np.dtype[Any], **parameters: Any) -> NDArray[Any]:
        """Return the rows of a SELECT as an array of `dtype`, an unpadded type that matches the fixed-size columns."""
        return np.frombuffer(self._ask(statement, "RowBinary", parameters), dtype)

    def arrays(self, statement: str, dtypes: Sequence[str], **parameters: Any) -> list[NDArray[Any]]:
        """Return the columns of a SELECT as arrays. Their values have fixed sizes. For many rows, this is the fastest way."""
        return decode_columns(self._ask(statement, "Native", parameters), dtypes)

    def raw(self, statement: str, **parameters: Any) -> bytes:
        """Return the rows of a SELECT as RowBinary."""
        return self._ask(statement, "RowBinary", parameters)

    def insert(self, table: str, columns: Iterable[str], rows: bytes) -> None:
        """Insert rows in RowBinary format, or a `NativeBlock`. Up to 16 million rows are inserted completely or not at all."""
        # Do not use `raw_insert`, because it retries when a connection breaks; retries are up to the sender.
        form = "Native" if isinstance(rows, NativeBlock) else "RowBinary"
        statement = f"INSERT INTO {table} ({', '.join(columns)}) FORMAT {form}"
        try:
            self._client.command(statement, data=rows)
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._error(error) from None

    def execute(self, statement: str) -> None:
        """Run a statement that returns no rows."""
        try:
            self._client.command(statement)
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close all connections."""
        with suppress(ClickHouseError, HTTPError, OSError):
            self._client.close()

    def _ask(self, statement: str, form: str, parameters: Mapping[str, Any]) -> bytes:
        statement, parameters = _divide(statement, parameters)
        try:
            return self._client.raw_query(statement, parameters=dict(parameters), fmt=form)
        except (ClickHouseError, HTTPError, OSError) as error:
            code = _CODE.search(str(error))
            unavailable = self._error(error)
            if code is not None and int(code[1]) in _DAMAGE:
                self.damage = f"ClickHouse found damage: {unavailable}"
            raise unavailable from None

    def _error(self, error: Exception) -> StoreUnavailableError:
        text = _ADDRESS.sub("", " ".join(str(error).split()))[:_MAX_ERROR]
        return StoreUnavailableError(f"{self._where}: request failed: {text}")


def _divide(statement: str, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Divide long lists of texts into several parameters, because ClickHouse limits the size of each."""
    divided = dict(parameters)
    for name, value in parameters.items():
        if not isinstance(value, list) or sum(map(len, value)) + _SEPARATOR * len(value) <= _FIELD:
            continue
        pieces: list[list[str]] = []
        size = _FIELD
        for text in value:
            size += 2 * len(text.encode("utf-8", "replace")) + _SEPARATOR  # each character may need an escape
            if size > _FIELD:
                pieces.append([])
                size = 2 * len(text.encode("utf-8", "replace")) + _SEPARATOR
            pieces[-1].append(text)
        del divided[name]
        divided |= {f"{name}_{number}": piece for number, piece in enumerate(pieces)}
        arrays = ", ".join(f"{{{name}_{number}:Array(String)}}" for number in range(len(pieces)))
        statement = statement.replace(f"{{{name}:Array(String)}}", f"arrayConcat({arrays})")
    return statement, divided


def numbers(values: Iterable[int]) -> str:
    """Format integers for use in a statement."""
    return ", ".join(map(str, sorted(values)))
