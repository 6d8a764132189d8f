"""The ClickHouse store, with which any number of stateless servers share one ClickHouse server or cluster.

ClickHouse has no transactions across tables, so every row is valid without other rows and safe to write twice. The key
of a point or event is derived from its content. Repeated rows do not change aggregates. The batch ID of a request is
written last.
"""

from tensormeter.server.store.clickhouse.address import Address, parse_address
from tensormeter.server.store.clickhouse.store import ClickHouseStore

__all__ = ["Address", "ClickHouseStore", "parse_address"]
