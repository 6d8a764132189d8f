"""The store in ClickHouse: any number of servers without state of their own, on one server or one cluster of it.

What ClickHouse does not have is transactions over tables. So every row that is written is true by itself and may be written
twice: points and events are told apart by what they are, sums are written after the points they are about, and a batch's id last.
"""

from tensormeter.server.store.clickhouse.address import Address, parse_address
from tensormeter.server.store.clickhouse.store import ClickHouseStore

__all__ = ["Address", "ClickHouseStore", "parse_address"]
