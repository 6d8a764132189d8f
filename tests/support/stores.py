"""Appends to stores, as their server does with the requests of a training process."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.number_blocks import decode_blocks
from tensormeter.server.store import Receipt, RunRef, Selection, Store

__all__ = ["StoreClient", "append_batches", "append_events", "append_values"]


T0 = 1_750_000_000 * 10**9


def append_batches(store: Store, *batches: Batch, batch_id: str | None = None, check: Check = no_check) -> Receipt:
    """Append one request of metrics."""
    payload = encode_metrics(batches)
    decoded = decode_blocks(payload) if store.takes_blocks else decode_metrics(payload)
    return store.append_metrics(decoded, payload=payload, batch_id=batch_id, check=check)


def append_events(store: Store, resource: Mapping[str, Any], *events: Event, batch_id: str | None = None) -> Receipt:
    """Append one request of events."""
    payload = encode_events(resource, events)
    return store.append_events(decode_events(payload), payload=payload, batch_id=batch_id)


def append_values(
    store: Store,
    times: Sequence[int],
    values: Sequence[float],
    *,
    name: str = "v",
    run: str = "r",
    batch_id: str | None = None,
) -> Receipt:
    """Append values of one gauge of the process `p`. Integers stay integers."""
    gauge = Gauge(name, np.asarray(times).astype(np.uint64), np.asarray(values))
    batch = Batch({"tensormeter.run.id": run, "service.instance.id": "p"}, [gauge])
    return append_batches(store, batch, batch_id=batch_id)


class StoreClient:
    """A sender and reader of one run of a store."""

    def __init__(self, store, run, project="contract"):
        self.store, self.run_id, self.project = store, run, project
        self.ref = RunRef(run, project)

    def resource(self, process="p", **more):
        return {"service.name": self.project, "tensormeter.run.id": self.run_id, "service.instance.id": process} | more

    def send(self, *series, process="p", batch_id=None, **more):
        return append_batches(self.store, Batch(self.resource(process, **more), series), batch_id=batch_id)

    def append(self, times, values, name="v", attributes=None, **more):
        column = np.asarray(values)
        gauge = Gauge(name, np.asarray(times).astype(np.uint64), column, attributes=attributes or {})
        return self.send(gauge, **more)

    def events(self, *events, process="p", batch_id=None, **more):
        return append_events(self.store, self.resource(process, **more), *events, batch_id=batch_id)

    def start(self, time=T0, **body):
        return self.events(Event("tensormeter.run.start", time, body))

    def read(self, name="v", **query):
        lines = self.store.read(self.ref, Selection([name], **query)).series
        assert len(lines) <= 1
        return [(int(t), value) for s in lines for t, value in zip(s.points.times, s.points.values(), strict=True)]

    def summary(self, name="v"):
        return self.store.run(self.ref).summary[name]
