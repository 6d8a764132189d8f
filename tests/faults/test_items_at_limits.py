"""The server accepts what the client accepts: items at their limits arrive whole. The client counts larger ones by reason."""

import json
import math

import numpy as np
import pytest
import urllib3

import tensormeter
from tensormeter import Image, Table, Text
from tensormeter.conventions.fitting import json_bytes
from tensormeter.conventions.limits import CONFIG_BYTES, TABLE_BYTES, TABLE_CELLS, TEXT_BYTES


@pytest.fixture
def settings(run_settings, server):
    server.start()
    return run_settings(endpoint=server.url, run_id="limits", media_buffer_bytes=256 << 20)


@pytest.fixture
def get(server):
    with urllib3.PoolManager(retries=False) as pool:

        def get(path="", **query):
            answer = pool.request("GET", f"{server.url}/api/v1/runs/limits{path}", fields=query)
            assert answer.status == 200, answer.data[:500]
            return json.loads(answer.data)

        yield get


def test_fault_163_items_at_their_limits_arrive_whole(settings, get):
    text = "x" * (TEXT_BYTES - json_bytes({"text": "", "content_type": "text/plain"}))
    wide = [[math.nan] * 10] * (TABLE_CELLS // 11 - 1)
    narrow = [[number] for number in range(TABLE_CELLS // 2 - 1)]
    long = [["é" * 500, "b" * 24]] * (TABLE_BYTES // 1033)
    config = {"lr": 0.1, "text": ""}
    config["text"] = "c" * (CONFIG_BYTES - json_bytes(config))
    picture = np.random.default_rng(0).integers(0, 255, (2300, 2400, 3), dtype=np.uint8)  # its PNG has 15.8 MiB
    with tensormeter.init("faults", config=config, tags=["t"], notes="n" * 65_536, settings=settings) as run:
        run.log({"text": Text(text), "image": Image(picture)}, 1)
        run.log({"wide": Table(list("abcdefghij"), wide), "narrow": Table(["a"], narrow)}, 2)
        run.log({"long": Table(["a", "b"], long), "loss": 1.0}, 3)
    run_document = get()
    assert (run_document["config"], run_document["tags"], len(run_document["notes"])) == (config, ["t"], 65_536)
    assert (run_document["lost"], run_document["losses"]) == (0, {})

    def body(key):
        (event,) = get("/events", key=key)["events"]
        return event["body"]

    assert body("text")["text"] == text
    assert body("wide")["rows"] == [["NaN"] * 10] * (TABLE_CELLS // 11 - 1)
    assert body("narrow")["rows"] == narrow
    assert body("long")["rows"] == long
    assert body("image")["size"] > 15 << 20


def test_fault_162_items_over_their_limits_are_counted_by_the_run(settings, get, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), dtype=np.uint8)
    config = {"lr": 0.1, "data": {"ids": list(range(300_000)), "name": "digits"}}
    with tensormeter.init("faults", config=config, tags=["t"], notes="n", settings=settings) as run:
        run.log({"samples/noise": Image(noise), "loss": 1.0}, 1)
        run.log({"answers": Text("x" * (5 << 20)), "loss": 1.0}, 2)
        run.log({"rows": Table(["a"], [["x" * 1000]] * 13_000), "bad": 1j, "loss": 1.0}, 3)
        run.update_config({"more": list(range(300_000)), "classes": 10})
    run_document = get()
    assert run_document["config"] == {"lr": 0.1, "data": {"name": "digits"}, "classes": 10}
    assert (run_document["tags"], run_document["notes"]) == (["t"], "n")
    assert run_document["losses"] == {
        "image_too_large": 1,
        "text_too_large": 1,
        "table_too_large": 1,
        "config_too_large": 2,
        "unsupported_value": 1,
    }
    assert run_document["lost"] == 6
    assert run_document["summary"]["loss"]["count"] == 3
    warnings = caplog.text
    for name in ("samples/noise", "answers", "rows", "'data'.'ids'", "'more'", "'bad'"):
        assert name in warnings
    assert "1 text ('answers'): larger than 4 MiB; log it in parts" in warnings


def test_a_configuration_of_a_megabyte_can_be_updated_again_and_again(settings, get):
    config = {"text": "c" * 900_000}
    with tensormeter.init("faults", config=config, settings=settings) as run:
        for number in range(20):
            run.update_config({"number": number})
        run.log({"loss": 1.0}, 1)
        run.finish("failed")
    assert get()["config"] == config | {"number": 19}
