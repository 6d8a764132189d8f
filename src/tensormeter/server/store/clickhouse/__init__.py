"""The store in ClickHouse: any number of stateless servers, on one server or one cluster of it.

ClickHouse has no transactions over tables. So every row is true by itself and may be written twice: the keys of points and events are
made of their contents, aggregates do not change when a row is repeated, and a batch's id is written last.
"""

from tensormeter.server.store.clickhouse.address import Address, parse_address
from tensormeter.server.store.clickhouse.store import ClickHouseStore

__all__ = ["Address", "ClickHouseStore", "parse_address"]
