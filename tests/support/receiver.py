"""A receiver of OTLP that fails on demand."""

import contextlib
import gzip
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from support.ports import reserve_port
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event
from tensormeter.otlp.decode import decode_events, decode_metrics

__all__ = ["Behaviour", "Received", "Receiver", "answer"]

Behaviour = Callable[[BaseHTTPRequestHandler], None]
"""Answers a request. It accepts it if it has an attribute `accepts` that is true."""


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    accepted: bool

    @property
    def id(self) -> str:
        return self.headers["tensormeter-batch-id"]


def answer(status: int, body: bytes = b"", content_type: str = "application/x-protobuf", **headers: str) -> Behaviour:
    """The behaviour that gives one answer."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    behave.accepts = status == 200 and content_type == "application/x-protobuf"  # type: ignore[attr-defined]
    return behave


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Close with RST, no answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Begin an answer and never end it: a byte now and then, until the other side leaves."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/x-protobuf")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x")
            threading.Event().wait(0.02)
    handler.close_connection = True


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    """A header line that never ends, a byte now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x")
            threading.Event().wait(0.02)
    handler.close_connection = True


def partial_success() -> bytes:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = 3
    response.partial_success.error_message = "three were bad"
    return response.SerializeToString()


ok = answer(200)
BEHAVIOURS = {
    "ok": ok,
    "reset": reset,
    "drip": drip,
    "drip_headers": drip_headers,
    "partial": answer(200, partial_success()),
}


class Receiver:
    """An OTLP receiver on a reserved port, which can go away and come back."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.questions: list[str] = []
        """The paths by which agents have asked for numbers of attempts."""
        self.numbers = answer(404)
        """The behaviour for these questions."""
        self.connections = 0
        self.token: str | None = None
        """The bearer token that is accepted; any if None."""
        self.limit: int | None = None
        """Bytes of a decompressed body, at most."""
        self.routes: dict[str, Behaviour] = {}
        """The behaviour for requests of a path. It takes precedence over all others."""
        self.refuses: Callable[[bytes], bool] = lambda body: False
        """Whether a decompressed request of metrics gets 400."""
        self.epoch: str | None = None
        """If not None, answers say what is durable, and questions for that are answered."""
        self.commits = self.durable = 0
        """Number of the last request that was accepted in the epoch, and of the last one that is durable."""
        self.syncs = True
        """Whether a question makes everything durable."""
        self._script: list[Behaviour] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = reserve_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def script(self, *behaviours: Behaviour | str | None) -> None:
        """Set the behaviour for the next requests. Later ones are accepted if they fit. None: forget earlier behaviours."""
        if None in behaviours:
            self._script.clear()
            return
        self._script += [BEHAVIOURS[item] if isinstance(item, str) else item for item in behaviours]

    def start(self) -> "Receiver":
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", -1))
                body = self.rfile.read(length) if length >= 0 else b""
                if len(body) != length:  # the connection was cut in the middle of the request
                    self.close_connection = True
                    return
                behave = receiver._behaviour(self.path, self.headers.get("Authorization"), body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                accepted = getattr(behave, "accepts", False)
                receiver.received.append(Received(self.path, headers, body, accepted))  # before anybody can know
                behave(self)

            def do_GET(self) -> None:
                if self.path.startswith(
                    "/api/v1/runs/"
                ):  # an agent asks for a number: a receiver of OTLP does not know it
                    receiver.questions.append(self.path)
                    receiver.numbers(self)
                    return
                receiver.received.append(Received(self.path, dict(self.headers.items()), b"", accepted=False))
                if self.path == "/api/v1/durable" and receiver.epoch is not None:
                    receiver.durable = receiver.commits if receiver.syncs else receiver.durable
                    document = {"epoch": receiver.epoch, "committed": receiver.commits, "durable": receiver.durable}
                    answer(200, json.dumps(document).encode(), "application/json")(self)
                    return
                answer(200)(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # the other side has left

        self._server = Server(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def _behaviour(self, path: str, authorization: str | None, body: bytes) -> Behaviour:
        if path in self.routes:
            return self.routes[path]
        if self._script:
            return self._script.pop(0)
        if self.token is not None and authorization != f"Bearer {self.token}":
            return answer(401)
        if self.limit is not None and len(gzip.decompress(body)) > self.limit:
            return answer(413)
        if path == "/v1/metrics" and self.refuses(gzip.decompress(body)):
            return answer(400)
        if self.epoch is None:
            return ok
        self.commits += 1
        headers = {
            "Tensormeter_Commit": f"{self.epoch}-{self.commits}",
            "Tensormeter_Durable": f"{self.epoch}-{self.durable}",
        }
        return answer(200, **headers)

    def restart(self, epoch: str) -> None:
        """A new epoch: what was not durable may be lost."""
        self.epoch, self.commits, self.durable = epoch, 0, 0

    def asked_for_durable(self) -> int:
        """The number of questions for what is durable."""
        return sum(request.path == "/api/v1/durable" for request in self.received)

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def accepted(self) -> dict[str, Received]:
        """By batch id, as the experiment server keeps them."""
        return {request.id: request for request in self.received if request.accepted}

    def batches(self) -> list[Batch]:
        """Every accepted batch of metrics, in order of the requests."""
        return [
            batch
            for request in self.accepted().values()
            if request.path == "/v1/metrics"
            for batch in decode_metrics(gzip.decompress(request.body))
        ]

    def points(self) -> Counter[tuple[str, str, int, int | float]]:
        """(process, metric, time, value) of every accepted point."""
        points: Counter[tuple[str, str, int, int | float]] = Counter()
        for batch in self.batches():
            process = str(batch.resource["service.instance.id"])
            for gauge in batch.gauges:
                pairs = zip(gauge.times.tolist(), gauge.values.tolist(), strict=True)
                points.update((process, gauge.name, at, value) for at, value in pairs)
        return points

    def rows(self) -> Counter[tuple[int, tuple[tuple[str, float], ...]]]:
        """(step, sorted values) of every accepted row, put together again by process and time."""
        rows: dict[tuple[str, int], dict[str, float]] = {}
        for (process, name, at, value), number in self.points().items():
            assert number == 1, f"{name} of {process} at {at} came {number} times"
            rows.setdefault((process, at), {})[name] = value
        return Counter((int(row.pop(STEP_METRIC)), tuple(sorted(row.items()))) for row in rows.values())

    def output(self) -> list[Event]:
        """Every accepted log record without an event name, in order of the requests."""
        return [
            event
            for request in self.accepted().values()
            if request.path == "/v1/logs"
            for _, events in decode_events(gzip.decompress(request.body))
            for event in events
            if not event.name
        ]

    def events(self) -> list[tuple[str, dict]]:
        """(name, body) of every accepted event."""
        return [
            (event.name, event.body)  # type: ignore[misc]
            for request in self.accepted().values()
            if request.path == "/v1/logs"
            for _, events in decode_events(gzip.decompress(request.body))
            for event in events
            if event.name
        ]
