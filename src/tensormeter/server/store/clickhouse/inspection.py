"""Inspection of the ClickHouse tables, in which ClickHouse verifies their checksums."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final

from tensormeter.server.store.clickhouse.address import Address
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.schema import TABLES
from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["check_tables"]

_MOST: Final = 100
"""Maximum number of damaged parts to report for one table."""


def check_tables(address: Address) -> Iterator[tuple[str, str]]:
    """Run `CHECK TABLE` on each table, and yield each problem as a pair (table, message).

    On a cluster, only the server at the address is checked.

    Raises:
        StoreUnavailableError: ClickHouse is unreachable or rejected a statement.
    """
    with closing(Connection(address, address.database)) as connection:
        rows = connection.rows("SELECT name FROM system.tables WHERE database = {name:String}", name=address.database)
        names = {str(row[0]) for row in rows}
        for table in TABLES:
            name = f"{table.name}_local" if f"{table.name}_local" in names else table.name
            if name not in names:
                yield f"table {name}", "it does not exist"
                continue
            try:
                parts = connection.rows(f"CHECK TABLE {name} SETTINGS check_query_single_value_result = 0")
            except StoreUnavailableError as error:
                if connection.damage is None:
                    raise
                yield f"table {name}", str(error)
                continue
            for part, _, message in [row for row in parts if not row[1]][:_MOST]:
                yield f"table {name}, part {part}", str(message) or "the checksum does not match"
