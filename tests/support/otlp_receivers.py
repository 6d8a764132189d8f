"""Receivers of OTLP that answer as a test tells them, by HTTP, by gRPC, and by HTTP/2 without gRPC."""

import contextlib
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from tensormeter_exporters.otlp.exporter import OtlpExporter

PARTIAL = ExportMetricsServiceResponse(
    partial_success={"rejected_data_points": 2, "error_message": "two were bad"}
).SerializeToString()


class Http:
    """A receiver by HTTP that answers as it is told, else 200."""

    def __init__(self, context=None):
        self.received = []
        self.accepted = []
        """The bodies that were answered with 200."""
        self.answers = []
        self.limit = sys.maxsize
        """Size of the largest body; larger ones are answered with 413."""
        http = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                http.received.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                usual = 200 if len(body) <= http.limit else 413
                status, headers, answer = http.answers.pop(0) if http.answers else (usual, {}, b"")
                if status == 200:
                    http.accepted.append(body)
                self.send_response(status)
                for key, value in ({"Content-Type": "application/x-protobuf"} | headers).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class Grpc:
    """A metrics service that answers as it is told."""

    def __init__(self, credentials=None):
        self.received = []
        self.fail = None
        self.answer = b""

        def export(body, context):
            self.received.append((body, dict(context.invocation_metadata())))
            if self.fail is not None:
                code, details, metadata = self.fail
                context.set_trailing_metadata(metadata)
                context.abort(code, details)
            return self.answer

        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", 100_000)])
        handler = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = "127.0.0.1:0"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    def stop(self):
        self._server.stop(None).wait(60)
        self._pool.shutdown()


@contextlib.contextmanager
def exporting(config):
    exporter = OtlpExporter(config)
    try:
        yield exporter
    finally:
        exporter.shutdown()


@contextlib.contextmanager
def speaking_http2(frames):
    """A server at which no gRPC listens: it answers each request with frames of HTTP/2, (type, flags, content)."""
    listener = socket.create_server(("127.0.0.1", 0))

    def frame(kind, flags, stream, content=b""):
        return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as incoming:
            connection.sendall(frame(4, 0, 0))  # SETTINGS
            incoming.read(24)  # the preface
            while head := incoming.read(9):
                incoming.read(int.from_bytes(head[:3], "big"))
                if head[3] in (0, 1) and head[4] & 1:  # the end of a request
                    stream = int.from_bytes(head[5:], "big")
                    connection.sendall(b"".join(frame(kind, flags, stream, content) for kind, flags, content in frames))

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()
