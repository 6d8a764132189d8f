"""Faults between us and the receiver: TLS, names, and connections that are cut. Faults 15, 16, 20, 51, 56."""

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter

import numpy as np
import pytest
import urllib3

from support.certificates import write_certificate
from support.otlp_receivers import Http
from support.ports import reserve_port
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

ONE = gzip.compress(b"")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl as a server")
@pytest.mark.parametrize(
    ("host", "days", "words"), [("localhost", 10, ""), ("elsewhere", 10, "doesn't match"), ("localhost", -1, "expired")]
)
def test_fault_15_tls_fails_closed(put, deliver, spool, tmp_path, wait_for, monkeypatch, host, days, words):
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_certificate(file, key, host=host, days=days)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    put(ONE)
    if not words:  # the way in which it works, so that the others fail for the reason that is meant
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, key)
        server = Http(context)
        deliver(endpoint=f"https://127.0.0.1:{server.port}")
        wait_for(lambda: spool.pending() == 0, "everything is delivered")
        assert server.accepted == [ONE]
        server.stop()
        return
    port = reserve_port()
    command = ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{port}", "-cert", str(file), "-key", str(key)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        delivery = deliver(endpoint=f"https://127.0.0.1:{port}")
        wait_for(lambda: "certificate" in delivery.error, "a failure that is about the certificate")
        assert words in delivery.error or "mismatch" in delivery.error, delivery.error
        assert spool.pending() == 1
        delivery.stop(30)
    finally:
        server.kill()
        sent, _ = server.communicate()
    assert sent == b"", "nothing went over the connection"


def test_fault_16_dns_fails_then_heals(put, deliver, receiver, spool, wait_for, monkeypatch):
    healed = threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **more):
        if host == "telemetry.invalid" and healed.is_set():
            return resolve("127.0.0.1", *arguments, **more)
        return resolve(host, *arguments, **more)  # the resolver's own answer: no such name

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    put(ONE)
    delivery = deliver(endpoint=f"http://telemetry.invalid:{receiver.url.rpartition(':')[2]}")
    wait_for(lambda: delivery.failures >= 2, "two failures")
    assert spool.pending() == 1
    healed.set()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert len(receiver.accepted()) == 1


def batch(numbers):
    times = np.array(numbers, np.uint64) + np.uint64(10**18)
    resource = {
        "service.name": "faults",
        "service.instance.id": "p",
        "tensormeter.run.id": "r",
        "tensormeter.run.name": "r",
    }
    return encode_metrics([Batch(resource, [Gauge("n", times, np.array(numbers, np.float64))])])


def stored(server):
    series = server.get("/runs/r/series", metric="n", x="time").get("series", [])
    return Counter(value for line in series for value in line["value"])


def test_fault_20_server_killed_between_commit_and_answer(put, deliver, new_proxy, spool, server, wait_for):
    """The proxy sees the answer, so the request is committed; then the server is killed, and the answer is lost."""
    server.start()
    proxy = new_proxy(server.url)
    killed = threading.Event()

    def kill(answer):
        if killed.is_set():
            return False
        server.kill()
        killed.set()
        return True

    proxy.on_answer = kill
    put(*(gzip.compress(batch(range(start, start + 10))) for start in range(1, 50, 10)))
    deliver(endpoint=proxy.url)
    wait_for(killed.is_set, "the server is killed")
    server.start()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert stored(server) == Counter({float(n): 1 for n in range(1, 51)})


def test_fault_51_one_batch_ten_times_reordered_and_concurrently(server):
    server.start()
    batches = {f"b{start}": gzip.compress(batch(range(start, start + 10))) for start in range(1, 50, 10)}
    work = list(batches.items()) * 10
    answers = []

    def send(part):
        with urllib3.PoolManager(retries=False) as pool:
            for name, body in part:
                headers = {
                    "Content-Type": "application/x-protobuf",
                    "Content-Encoding": "gzip",
                    "Tensormeter-Batch-Id": name,
                }
                answers.append(pool.request("POST", f"{server.url}/v1/metrics", body=body, headers=headers).status)

    parts = [work[k::4] if k % 2 else work[k::4][::-1] for k in range(4)]
    threads = [threading.Thread(target=send, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 50
    assert stored(server) == Counter({float(n): 1 for n in range(1, 51)})


def test_fault_56_a_flapping_network(put, deliver, receiver, new_proxy, spool, instants, wait_for):
    """Hours of it, in as many connections: each may be cut anywhere, up or down, softly or hard, or be refused."""
    proxy = new_proxy(receiver.url)

    def cut(number):
        hard = instants.random() < 0.5
        return (
            (instants.randrange(1, 3000), None, hard)
            if instants.random() < 0.5
            else (None, instants.randrange(1, 500), hard)
        )

    proxy.cut = cut
    bodies = [gzip.compress(batch(range(start, start + 10))) for start in range(1, 2000, 10)]
    put(*bodies)
    delivery = deliver(endpoint=proxy.url, export_timeout=5)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    proxy.heal()
    values = Counter(value for (_, _, _, value), times in receiver.points().items() for _ in range(times))
    assert values == Counter({float(n): 1 for n in range(1, 2001)}), "every one once, and none invented"
    assert proxy.connections > len(bodies) / 10, "the network did flap"
    assert len(receiver.received) > len(receiver.accepted())
    put(gzip.compress(batch([5000])))
    delivery.wake()
    wait_for(lambda: any(value == 5000.0 for *_, value in receiver.points()), "a fresh one lands")
