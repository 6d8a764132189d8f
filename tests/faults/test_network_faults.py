"""Faults between us and the receiver: TLS, names, and connections that are cut. Faults 15, 16, 20, 51, 56."""

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import urllib3

from support.ports import reserve_port
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics

ONE = gzip.compress(b"")
KEY_USAGE = "critical,digitalSignature,keyCertSign"
"""Python 3.13 takes no authority whose certificate does not say that it may sign certificates."""


def certificate(folder, name, days):
    """A self-signed certificate and its key; it has run out if `days` is negative."""
    key, file = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=x",
        ]
        + ["-addext", f"subjectAltName={name}", "-addext", f"keyUsage={KEY_USAGE}"]
        + ["-days", str(max(days, 1)), "-keyout", str(key), "-out", str(file)],
        check=True,
        capture_output=True,
    )
    if days < 0:
        request = folder / "request.pem"
        subprocess.run(
            ["openssl", "req", "-new", "-key", str(key), "-subj", "/CN=x", "-out", str(request)],
            check=True,
            capture_output=True,
        )
        extensions = folder / "extensions"
        extensions.write_text(f"subjectAltName={name}\nkeyUsage={KEY_USAGE}\n")
        (folder / "database").mkdir()
        (folder / "index").touch()
        (folder / "config").write_text(
            f"[ca]\ndefault_ca=c\n[c]\ndatabase={folder}/index\nnew_certs_dir={folder}/database\nrand_serial=yes\n"
            "default_md=sha256\npolicy=p\n[p]\nCN=supplied\n"
        )
        subprocess.run(
            ["openssl", "ca", "-config", str(folder / "config"), "-selfsign", "-batch", "-notext", "-keyfile", str(key)]
            + ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-extfile", str(extensions)]
            + ["-in", str(request), "-out", str(file)],
            check=True,
            capture_output=True,
        )
    return file, key


class Accepting(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class SecureServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, file, key):
        super().__init__(("127.0.0.1", 0), Accepting)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(file, key)
        self.bodies = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, request, client_address):
        copy = request.dup()
        try:
            wrapped = self.context.wrap_socket(copy, server_side=True)
        except OSError:
            copy.close()
            return
        with wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, *_):
        pass  # the other side has left


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
@pytest.mark.parametrize(
    ("name", "days", "words"),
    [("IP:127.0.0.1", 10, ""), ("DNS:elsewhere", 10, "doesn't match"), ("IP:127.0.0.1", -1, "expired")],
)
def test_fault_15_tls_fails_closed(put, deliver, spool, tmp_path, wait_for, monkeypatch, name, days, words):
    file, key = certificate(tmp_path, name, days)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    put(ONE)
    if not words:  # the way in which it works, so that the others fail for the reason that is meant
        server = SecureServer(file, key)
        deliver(endpoint=f"https://127.0.0.1:{server.server_address[1]}")
        wait_for(lambda: spool.pending() == 0, "everything is delivered")
        assert server.bodies == [ONE]
        server.shutdown()
        server.server_close()
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
    return Counter(value for one in series for value in one["value"])


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
    found = Counter(value for (_, _, _, value), times in receiver.points().items() for _ in range(times))
    assert found == Counter({float(n): 1 for n in range(1, 2001)}), "every one once, and none invented"
    assert proxy.connections > len(bodies) / 10, "the network did flap"
    assert len(receiver.received) > len(receiver.accepted())
    put(gzip.compress(batch([5000])))
    delivery.wake()
    wait_for(lambda: any(value == 5000.0 for *_, value in receiver.points()), "a fresh one lands")
