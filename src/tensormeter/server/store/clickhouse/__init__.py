"""The ClickHouse store, with which any number of stateless servers share one ClickHouse server or cluster.

ClickHouse has no transactions across tables, so every row is valid on its own and safe to write twice. Keys of points
and events are derived from their contents, and repeated rows do not change aggregates. The batch ID is written last.
"""

from tensormeter.server.store.clickhouse.address import Address, parse_address
from tensormeter.server.store.clickhouse.store import ClickHouseStore

__all__ = ["Address", "ClickHouseStore", "parse_address"]
