"""A store file with changed bits: what cannot be read is refused with the store's own error, never with another."""

import os
import random

import pytest

from support.stores import append_batches, append_events
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Event
from tensormeter.server.store import RunRef, Selection
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000


def test_damaged_stores_raise_store_errors_only(tmp_path, make):
    store = SqliteStore(tmp_path / "whole")
    batch = make.rows("r", [(T0 + i, i, {"loss": i / 7}) for i in range(500)])
    append_batches(store, batch)
    append_events(store, batch.resource, Event("tensormeter.run.start", T0, {"config": {"lr": 0.5}}))
    store.close()
    content = (tmp_path / "whole" / "tensormeter.db").read_bytes()
    many = bool(os.environ.get("TENSORMETER_TEST_KILLS"))
    seed = random.SystemRandom().randrange(1 << 32) if many else 1
    print(f"seed {seed}")
    instants = random.Random(seed)
    ref = RunRef("r")
    for number in range(2000 if many else 40):
        flipped = bytearray(content)
        for _ in range(instants.randrange(1, 9)):
            flipped[instants.randrange(len(flipped))] ^= 1 << instants.randrange(8)
        folder = tmp_path / f"flipped-{number}"
        folder.mkdir()
        (folder / "tensormeter.db").write_bytes(flipped)
        try:
            damaged = SqliteStore(folder)
        except StoreError:
            continue
        for call in (damaged.run, damaged.processes, damaged.metrics, damaged.losses, damaged.events):
            check_only_store_errors(call, ref)
        check_only_store_errors(damaged.read, ref, Selection(["loss"]))
        check_only_store_errors(damaged.flush)
        damaged.close()


def check_only_store_errors(call, *arguments):
    try:
        call(*arguments)
    except StoreError:
        pass
    except Exception as error:
        pytest.fail(f"{call.__name__}: {type(error).__name__}: {error}")
