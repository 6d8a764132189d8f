"""ClickHouse that stops, is killed, has a full disk or is damaged, under a server or its store."""

import concurrent.futures
import os
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from support.ports import reserve_port
from support.processes import module_command
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address

T0 = 1_750_000_000_000_000_000
KILLS = max(2, int(os.environ.get("TENSORMETER_TEST_KILLS", "8")) // 4)  # `make chaos` asks for many more
ROWS = 20


class Own:
    """A ClickHouse for one test, which may stop and damage it."""

    def __init__(self, folder):
        self.folder = folder
        self.port = str(reserve_port())
        self.begin()

    def begin(self):
        command = module_command("clickhouse_server", str(self.folder), self.port)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self.process.stdout.readline().strip()
        assert self.port, "ClickHouse did not start"

    def kill(self):
        self.process.kill()
        self.process.wait(300)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def own_clickhouse(tmp_path):
    clickhouse = Own(tmp_path / "chdb")
    yield clickhouse
    clickhouse.kill()


def test_clickhouse_goes_and_comes_back(start, make, eventually, own_clickhouse):
    server = start("--store", f"clickhouse://127.0.0.1:{own_clickhouse.port}/gone")
    assert server.metrics(make.rows("r", [(T0, 0, {"v": 1.0})]), batch_id="a").status == 200
    own_clickhouse.kill()
    answer = server.metrics(make.rows("r", [(T0 + 1, 1, {"v": 2.0})]), batch_id="b")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert server.ask("/api/v1/runs/r")[0] == 503
    eventually(lambda: server.ask("/healthz")[0] == 503)
    own_clickhouse.begin()
    for name, step in (("a", 0), ("b", 1)):
        assert server.metrics(make.rows("r", [(T0 + step, step, {"v": step + 1.0})]), batch_id=name).status == 200
    (series,) = server.get("/api/v1/runs/r/series", metric="v")["series"]
    assert (series["step"], series["value"]) == ([0, 1], [1.0, 2.0])
    eventually(lambda: server.ask("/healthz")[0] == 200)
    assert server.stop() == 0
    # No traceback, and one line of each thread for an outage of any length.
    lines = server.stderr.splitlines()
    assert all("WARNING tensormeter: tensormeter-" in line and "request failed" in line for line in lines), (
        server.stderr
    )
    assert len(lines) <= 4, server.stderr


def test_clickhouse_is_killed_under_load(own_clickhouse, eventually):
    """Counts equal the stored points, for every part of a commit that ClickHouse may have kept."""
    where = parse_address(f"clickhouse://127.0.0.1:{own_clickhouse.port}/dying", {})
    stores = [ClickHouseStore(where, commit_interval=0) for _ in range(2)]
    stop, gone, stored, sent = threading.Event(), threading.Event(), [], iter(range(100_000))

    def send(turn):
        while not stop.is_set():
            first = T0 + next(sent) * ROWS
            gauge = Gauge("v", np.arange(first, first + ROWS).astype(np.uint64), np.ones(ROWS))
            payload = encode_metrics([Batch({"tensormeter.run.id": "r", "service.instance.id": "p"}, [gauge])])
            while True:
                try:
                    stores[turn % 2].append_metrics(decode_metrics(payload), payload=payload, batch_id=str(first))
                except StoreUnavailableError:
                    turn += 1
                    if gone.wait(0.02):
                        raise
                else:
                    stored.append(first)
                    break

    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            sending = [pool.submit(send, turn) for turn in range(2)]
            try:
                for _ in range(KILLS):
                    goal = len(stored) + 3
                    eventually(lambda goal=goal: len(stored) >= goal)
                    own_clickhouse.kill()
                    own_clickhouse.begin()
            except BaseException:
                gone.set()  # it does not come back, so the senders must not wait for it
                raise
            finally:
                stop.set()
            for future in sending:
                future.result()
        (series,) = stores[0].read(RunRef("r"), Selection(["v"])).series
        assert len(series.points) == len(stored) * ROWS
        summary = stores[0].run(RunRef("r")).summary["v"]
        assert (summary.count, summary.mean) == (len(stored) * ROWS, 1.0)
    finally:
        for store in stores:
            store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit, to fill and free a disk of another process")
def test_clickhouse_with_a_full_disk(start, make, own_clickhouse):
    server = start("--store", f"clickhouse://127.0.0.1:{own_clickhouse.port}/full")
    rows = [make.rows("r", [(T0 + step, step, {"v": step + 1.0})]) for step in range(3)]
    assert server.metrics(rows[0], batch_id="0").status == 200
    pid = own_clickhouse.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for step in (1, 2):
        answer = server.metrics(rows[step], batch_id=str(step))
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
    assert server.get("/api/v1/runs/r/series", metric="v")["series"][0]["value"] == [1.0]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    for step in (0, 1, 2):
        assert server.metrics(rows[step], batch_id=str(step)).status == 200
    assert server.get("/api/v1/runs/r/series", metric="v")["series"][0]["value"] == [1.0, 2.0, 3.0]
    assert server.get("/api/v1/runs/r")["summary"]["v"]["count"] == 3


def test_damage_in_clickhouse_is_said_by_health_and_does_not_stop_ingest(start, make, own_clickhouse):
    server = start("--store", f"clickhouse://127.0.0.1:{own_clickhouse.port}/spoilt")
    assert server.metrics(make.rows("damaged", [(T0 + i, i, {"v": float(i)}) for i in range(10)])).status == 200
    assert server.get("/healthz") == {"status": "ok"}
    parts = [*(own_clickhouse.folder / "data" / "spoilt" / "points").glob("*/data.bin")]
    assert parts
    for part in parts:
        header, rest = (
            part.read_bytes()[:25],
            part.read_bytes()[25:],
        )  # checksum, codec, sizes; then what they are about
        part.write_bytes(header + bytes(byte ^ 0xFF for byte in rest))
    status, document = server.ask("/api/v1/runs/damaged/series", metric="v")
    assert (status, document["error"]["code"]) == (503, "unavailable")
    status, document = server.ask("/healthz")
    assert (status, "damage" in document["error"]["message"]) == (503, True)
    assert server.metrics(make.rows("other", [(T0, 0, {"v": 1.0})])).status == 200
    assert server.get("/api/v1/runs/other/series", metric="v")["series"][0]["value"] == [1.0]


def test_check_lets_clickhouse_verify_its_tables(start, make, own_clickhouse):
    store = f"clickhouse://127.0.0.1:{own_clickhouse.port}/checked"
    server = start("--store", store)
    assert server.metrics(make.rows("r", [(T0 + i, i, {"v": float(i)}) for i in range(10)])).status == 200
    command = [sys.executable, "-m", "tensormeter", "check", "--store", store]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr, "nothing is damaged" in done.stdout) == (0, "", True)
    for part in (own_clickhouse.folder / "data" / "checked" / "points").glob("*/data.bin"):
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert any(line.startswith("damaged: table points") for line in done.stdout.splitlines()), done.stdout


def test_a_server_without_clickhouse_says_so_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tensormeter", "serve", "--port", "0", "--data", str(tmp_path)]
    environment = os.environ | {"TENSORMETER_CLICKHOUSE_PASSWORD": "not to be seen"}
    for address, words in (
        ("clickhouse://someone@127.0.0.1:1/db", "cannot open the store: clickhouse://127.0.0.1:1/db"),
        ("clickhouse://127.0.0.1/a-b", "is not a database name"),
        ("clickhouse://u:seen@127.0.0.1/db", "contains a password; leave it out"),
    ):
        done = subprocess.run(
            [*command, "--store", address], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert words in done.stderr
        assert "seen" not in done.stderr
        assert done.stderr.count("\n") == 1
