"""Any order of puts, answers, syncs, restarts and kills: everything arrives once, and no id is used for two bodies."""

import gzip
import os
import random
from collections import Counter

import numpy as np
import pytest

from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.exporter import Durability
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics

SEEDS = 150 if "CHAOS_KILLS" in os.environ else 15


class Server:
    """Deduplicates by id, and loses at a restart what is not durable."""

    def __init__(self, chance, *, limit, refused):
        self._chance, self._limit, self._refused = chance, limit, refused
        self.stored: list[tuple[str, bytes]] = []
        self._durable = self._epochs = 0
        self._first = 0
        """Requests that earlier epochs had stored; numbers of this one begin behind them."""

    def answer(self, request):
        body = gzip.decompress(request.body)
        if len(body) > self._limit:
            return "too large"
        if any(gauge.name == self._refused for batch in decode_metrics(body) for gauge in batch.gauges):
            return "refused"
        known = dict(self.stored)
        assert known.get(request.id, body) == body, "an id has two bodies"
        if request.id not in known:
            self.stored.append((request.id, body))
        if self._chance.random() < 0.2:
            self.sync()
        return self.durability()

    def durability(self):
        return Durability(f"e{self._epochs}", len(self.stored), self._durable)

    def sync(self):
        self._durable = len(self.stored)

    def restart(self, *, lose):
        if lose:
            del self.stored[self._chance.randint(self._durable, len(self.stored)) :]
        self._durable = len(self.stored)
        self._epochs += 1

    def points(self):
        return Counter(
            (gauge.name, at)
            for _, body in self.stored
            for batch in decode_metrics(body)
            for gauge in batch.gauges
            for at in gauge.times.tolist()
        )


def act(pieces, spool, server, chance):
    """One thing that delivery does. Returns whether there was anything to do."""
    request = pieces.next(spool)
    if request is None:
        if not pieces.keeps(spool):
            return False
        if chance.random() < 0.5:
            server.sync()
        pieces.settle(spool, server.durability())
        return True
    match server.answer(request):
        case "too large":
            pieces.halved(spool, "too large")
        case "refused":
            pieces.rejected(spool, "refused", divide=True)
        case durability:
            if chance.random() > 0.1:  # else the answer is lost
                pieces.accepted(spool, 0, durability)
    return True


@pytest.mark.parametrize("seed", range(SEEDS))
def test_everything_arrives_once(tmp_path, seed):
    chance = random.Random(seed)
    server = Server(chance, limit=chance.choice([600, 1200, 1 << 20]), refused=chance.choice(["b", "none of them"]))
    spool = Spool(tmp_path / "spool.sqlite")
    pieces, now = RequestPieces("experiment"), 0
    for _ in range(150):
        match chance.choices(["put", "act", "restart", "kill"], [3, 12, 1, 1])[0]:
            case "put":
                rows = chance.randrange(1, 12)
                times = np.arange(now + 1, now + 1 + rows).astype(np.uint64)
                now += rows
                series = [Gauge(name, times, np.arange(rows) * 1.0) for name in ("a", "b", "c")]
                body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, series)]))
                spool.put([Encoded("metrics", body, 3 * rows)], ["experiment"], "p", {}, started=True, ended=False)
            case "act":
                act(pieces, spool, server, chance)
            case "restart":
                server.restart(lose=chance.random() < 0.7)
            case "kill":
                pieces = RequestPieces("experiment")
    for _ in range(10_000):
        if not act(pieces, spool, server, chance):
            break
    else:
        pytest.fail("delivery does not come to an end")
    assert (spool.pending(), spool.kept()) == (0, 0)
    names = [name for name in ("a", "b", "c") if name != server._refused]
    expected = {(name, at) for name in names for at in range(1, now + 1)}
    assert {*server.points()} == expected
    refused = now if server._refused == "b" else 0
    assert spool.losses() == {}
    assert spool.quarantined_items() == refused
    assert {*server.points().values()} <= {1}
    assert not spool._database.execute("SELECT * FROM request").fetchall()
    assert not spool._database.execute("SELECT * FROM kept").fetchall()
    spool.close()
