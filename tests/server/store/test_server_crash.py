"""SIGKILL at any instant: what was answered 200 is there, and there once."""

import concurrent.futures
import os
import random
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import urllib3

from support.processes import run_python
from tensormeter.otlp.batch import Batch, Histogram, Sum
from tensormeter.otlp.encode import encode_metrics

T0 = 1_750_000_000_000_000_000
ROWS = 20


KILLS = int(os.environ.get("TENSORMETER_TEST_KILLS", "6"))  # `make chaos` asks for many more


def batch(make, index):
    rows = [(T0 + index * ROWS + i, index * ROWS + i, {"v": float(index * ROWS + i)}) for i in range(ROWS)]
    return make.rows("crash", rows)


def batch_of_kinds(make, index):
    """The same, and a counter and a histogram."""
    times = np.arange(T0 + index * ROWS, T0 + (index + 1) * ROWS).astype(np.uint64)
    starts, ones = np.full(ROWS, T0, np.uint64), np.ones(ROWS)
    counts = np.ones(ROWS, np.uint64)
    histogram = Histogram(
        "h",
        times,
        starts,
        counts,
        ones,
        ones,
        ones,
        bounds=np.array([1.0]),
        buckets=np.array([[1, 0]] * ROWS, np.uint64),
    )
    whole = batch(make, index)
    return Batch(whole.resource, [*whole.series, Sum("s", times, np.arange(ROWS), starts), histogram])


def test_kill_in_mid_ingest(start, make, eventually):
    chaos = random.Random(7)
    acknowledged: set[int] = set()
    sent = iter(range(100_000))
    lock = threading.Lock()
    retry: list[int] = []
    server = start()
    for kill in range(KILLS):
        stop = threading.Event()

        def send(server=server, stop=stop):
            while not stop.is_set():
                with lock:
                    index = retry.pop() if retry else next(sent)
                try:
                    answer = server.metrics(batch_of_kinds(make, index), batch_id=f"crash-{index}")
                except (urllib3.exceptions.HTTPError, OSError):
                    with lock:
                        retry.append(index)
                    return
                assert answer.status == 200
                with lock:
                    acknowledged.add(index)

        goal = len(acknowledged) + chaos.randrange(10, 50)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            sending = [pool.submit(send) for _ in range(4)]
            eventually(lambda goal=goal: len(acknowledged) >= goal)
            server.kill()
            stop.set()
            for future in sending:
                future.result()
        server = start()
        (series,) = server.get("/api/v1/runs/crash/series", metric="v")["series"]
        steps = series["step"]
        assert steps == sorted(set(steps))
        assert set(steps) >= {index * ROWS + i for index in acknowledged for i in range(ROWS)}
        assert series["value"] == [float(step) for step in steps]
        points = {metric["name"]: metric["points"] for metric in server.get("/api/v1/runs/crash/metrics")["metrics"]}
        assert points == dict.fromkeys(("tensormeter.step", "v", "s", "h"), len(steps))
        assert server.get("/api/v1/runs/crash/histograms", metric="h")["total"] == len(steps)
        if kill % 4 == 3:
            assert server.stop() == 0  # folds; the next one starts from chunks
            server = start()
    for index in [*retry, *acknowledged]:
        assert server.metrics(batch_of_kinds(make, index), batch_id=f"crash-{index}").status == 200
    (series,) = server.get("/api/v1/runs/crash/series", metric="v")["series"]
    assert series["step"] == [index * ROWS + i for index in sorted({*retry, *acknowledged}) for i in range(ROWS)]


def test_kill_between_commit_and_answer(start_on_each, make, eventually):
    server = start_on_each()
    body = encode_metrics([batch(make, 0)])
    head = (
        "POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
        f"Tensormeter-Batch-Id: between\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: server.has_batch("between"))
        server.kill()  # no client has read the answer, if it left at all
    server = start_on_each()
    assert server.metrics(batch(make, 0), batch_id="between").status == 200
    run = server.get("/api/v1/runs/crash")
    assert run["points"] == 2 * ROWS
    assert server.metrics(batch(make, 1), batch_id="between").status == 409


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.batch import Batch, Histogram, Sum
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.store.sqlite.store import SqliteStore

store = SqliteStore(Path(sys.argv[1]), flush_points=60, flush_interval=0.001)
index = int(sys.argv[2])
while True:
    times = np.arange(index * 20 + 1, index * 20 + 21)
    gauge = Gauge("v", times.astype(np.uint64), times.astype(np.float64))
    payload = encode_metrics([Batch({"tensormeter.run.id": "r"}, [gauge])])
    store.append_metrics(decode_metrics(payload), payload=payload, batch_id=str(index))
    print(index, flush=True)
    index += 1
"""


def test_kill_in_mid_fold(tmp_path):
    """The store alone, flushing all the time: kills land between and inside folds."""
    from tensormeter.server.store import RunRef, Selection
    from tensormeter.server.store.sqlite.store import SqliteStore

    chaos = random.Random(3)
    index = 0
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "s"), str(index)], stdout=subprocess.PIPE, text=True
        ) as writer:
            for _ in range(chaos.randrange(30, 150)):
                index = int(writer.stdout.readline()) + 1
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:  # what it had answered before it died
                if line.endswith("\n"):
                    index = int(line) + 1
        store = SqliteStore(tmp_path / "s")
        (series,) = store.read(RunRef("r"), Selection(["v"])).series
        times = series.points.times.tolist()
        assert len(times) in (index * 20, index * 20 + 20)  # the last one may have been stored and not answered
        assert times == list(range(1, len(times) + 1))
        assert series.points.values() == times
        assert store.run(RunRef("r")).points == len(times)
        store.close()


def test_second_server_on_one_folder(start):
    first = start()
    second = run_python("-m", "tensormeter", "serve", "--port", "0", "--data", first.folder)
    assert (second.returncode, second.stdout) == (1, "")
    assert f"in use by process {first.process.pid};" in second.stderr
    assert second.stderr.count("\n") == 1
    assert first.get("/healthz") == {"status": "ok"}
    first.kill()
    assert start().get("/healthz") == {"status": "ok"}


def test_port_in_use(start, tmp_path):
    port = start().url.rpartition(":")[2]
    second = run_python("-m", "tensormeter", "serve", "--port", port, "--data", tmp_path / "other")
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith(f"tensormeter: cannot listen on 127.0.0.1 port {port}:")
    assert second.stderr.count("\n") == 1


def test_interrupt_stops_with_success(start):
    server = start()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(300) == 0
    server.stop()
    assert server.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit, to fill and free a disk of another process")
def test_disk_full_and_free_again(start, make):
    server = start()
    assert server.metrics(batch(make, 0), batch_id="0").status == 200
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    answer = server.metrics(batch(make, 1), batch_id="1")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert len(server.get("/api/v1/runs/crash/series", metric="v")["series"][0]["value"]) == ROWS
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert server.metrics(batch(make, 1), batch_id="1").status == 200
    server.kill()
    (series,) = start().get("/api/v1/runs/crash/series", metric="v")["series"]
    assert series["step"] == list(range(2 * ROWS))
