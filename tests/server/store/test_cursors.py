"""Cursors of each store: a chain of queries returns each point once, also those that arrive during a query."""

import threading
from collections import Counter
from itertools import count

import numpy as np
import pytest

from support.stores import StoreClient
from support.waiting import wait_for
from tensormeter.otlp.batch import Summary
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import query_points
from tensormeter.server.store import Selection
from tensormeter.server.store.sqlite.store import SqliteStore

SECONDS = 60
"""Time after which a test fails."""


def flush(store):
    if isinstance(store, SqliteStore):
        store.flush()


class Chain:
    """A reader of the metric `v` of some runs, which passes the cursor of each answer to the next query."""

    def __init__(self, *clients, max_points=0):
        self.store, self.refs = clients[0].store, [client.ref for client in clients]
        self.max_points = max_points
        self.cursor = None
        self.found = Counter()
        self.total = 0

    def poll(self):
        query = RunQuery(("v",), Axis.parse("time"), after=self.cursor, max_points=self.max_points)
        answer = query_points(self.store, self.refs, query)
        assert answer.complete == (self.cursor is None)
        self.cursor = answer.cursor
        for series in answer.series:
            self.total += series.total
            self.found.update((series.run, value) for value in series.y.tolist())


def pair(client):
    return client, StoreClient(client.store, f"{client.run_id}-other")


@pytest.mark.parametrize("is_flushed", [False, True])
def test_read_ends_at_the_given_cursor(client, is_flushed):
    """Points after the cursor are in memory, or were flushed after the cursor."""
    cursors = []
    for time in (1, 2, 3):
        client.append([time], [float(time)])
        times, sums = np.array([time], np.uint64), np.array([1.0])
        client.send(Summary("h", times, times, times, sums, np.array([0.5]), np.array([[2.0]])))
        cursors.append(client.store.changes(None).cursor)
    if is_flushed:
        flush(client.store)
    first, second, third = cursors
    for name, numeric in (("v", True), ("h", False)):

        def read(name=name, numeric=numeric, **bounds):
            reading = client.store.read(client.ref, Selection([name], numeric=numeric, **bounds))
            assert reading.cursor == bounds.get("upto", reading.cursor)
            return [series.points.times.tolist() for series in reading.series]

        assert read(upto=first) == [[1]]
        assert read(upto=second) == [[1, 2]]
        assert read(after=first, upto=second) == [[2]]
        assert read(after=first, upto=third) == [[2, 3]]
        assert read(after=second, upto=second) == []
        assert read(after=second) == [[3]]
        assert read() == read(upto="nonsense") == [[1, 2, 3]]


@pytest.mark.parametrize("is_flushed", [False, True])
def test_points_that_arrive_between_the_reads_of_a_query_are_left_to_the_next(client, monkeypatch, is_flushed):
    clients = pair(client)
    numbers, reads = count(), count()

    def send():
        number = next(numbers)
        for each in clients:
            each.append([number + 1], [float(number)])

    send()
    chain, read = Chain(*clients), client.store.read

    def send_and_read(*arguments):
        send()
        if is_flushed and next(reads) % 4 == 0:  # before the first read of every other query
            flush(client.store)
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(client.store, "read", send_and_read)
        for _ in range(4):
            chain.poll()
    chain.poll()
    sent = next(numbers)
    assert sent == 9
    assert chain.found == {(each.run_id, float(number)): 1 for each in clients for number in range(sent)}


@pytest.mark.usefixtures("small_chunks")
def test_points_that_arrive_before_rollups_are_read_are_left_to_the_next(open_store, monkeypatch):
    n = 20_000
    client = StoreClient(open_store(), "long")
    client.append(np.arange(1, n + 1).tolist(), np.arange(float(n)).tolist())
    client.store.flush()
    client.append([n + 1], [float(n)])
    read, calls = client.store.read_rollups, []

    def send_and_read(*arguments):
        client.append([n + 2], [float(n + 1)])
        calls.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(client.store, "read_rollups", send_and_read)
    chain = Chain(client, max_points=4)
    chain.poll()
    assert (len(calls), chain.total) == (1, n + 1)
    chain.poll()
    assert (chain.total, chain.found["long", float(n + 1)]) == (n + 2, 1)


def test_chain_of_queries_returns_each_point_once_while_points_arrive(client):
    clients = pair(client)
    sent, chains = [0] * len(clients), 15 if isinstance(client.store, SqliteStore) else 2
    done = threading.Event()

    def send(index):
        while not done.is_set():
            times = np.arange(sent[index], sent[index] + 3)
            clients[index].append((times + 1).tolist(), times.astype(float).tolist())
            sent[index] += 3

    senders = [threading.Thread(target=send, args=(index,)) for index in range(len(clients))]
    for sender in senders:
        sender.start()
    try:
        wait_for(lambda: all(sent), "both runs have points", SECONDS)
        for _ in range(chains):
            chain = Chain(*clients)
            for is_flushed in (True, False, True, False):
                before = [*sent]
                flusher = threading.Thread(target=flush, args=(client.store,) if is_flushed else (None,))
                flusher.start()
                chain.poll()
                flusher.join()
                for each, n in zip(clients, before, strict=True):
                    found = [value for run, value in chain.found.elements() if run == each.run_id]
                    assert sorted(found) == [*range(len(found))]
                    assert len(found) >= n
                wait_for(lambda before=before: sent[0] > before[0], "points arrive", SECONDS)
    finally:
        done.set()
        for sender in senders:
            sender.join()
