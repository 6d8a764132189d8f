"""The server process, which binds the port, serves the application with uvicorn, and closes the store."""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import uvicorn

from tensormeter.errors import SettingsError
from tensormeter.server.alerts import AlertService
from tensormeter.server.api import Shutdown
from tensormeter.server.app import create_app
from tensormeter.server.config import ServerConfig
from tensormeter.server.http.tls import Certificate
from tensormeter.server.limits.connections import limited_protocol
from tensormeter.server.limits.handshakes import Handshakes
from tensormeter.server.limits.heap import return_freed_memory, return_large_blocks
from tensormeter.server.slow_disk import exit_if_stalled, warn_if_slow
from tensormeter.server.store import Store
from tensormeter.server.store.background import Background
from tensormeter.server.store.sqlite.private_folder import protect_folder
from tensormeter.server.store.sqlite.retention import Retention
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.settings import is_loopback

if TYPE_CHECKING:
    from tensormeter.server.self_metrics import ServerMetrics

__all__ = ["serve"]

_log: Final = logging.getLogger(__name__)

_SHUTDOWN_SECONDS: Final = 5
_KEEP_ALIVE_SECONDS: Final = 75
"""Idle timeout of connections in seconds.

It exceeds the one-minute idle timeout of SDKs and many proxies. Otherwise, a request might arrive on a connection that
the server is closing.
"""

_OTHER_FILES: Final = 512

_MEMORY_INTERVAL: Final = 10.0
"""Seconds between two returns of freed memory. A return takes 0.1 to some milliseconds."""

_GC_THRESHOLDS: Final = (50_000, 20, 100)
"""Garbage collector thresholds.

A request allocates hundreds of thousands of objects, but hardly any reference cycles. With the default
thresholds of Python 3.11 (700, 10, 10), garbage collection would take a third of the request's time.
"""


def serve(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish requests in progress and close the store. Main thread only.

    Requests that are still in progress five seconds after the signal are cancelled.

    Args:
        config: Server settings.
        on_ready: Function that is called with the base URL once the server accepts connections. It runs on the event
            loop's thread and must return immediately; use another thread for slow work or for requests to the server.

    Raises:
        SettingsError: The address cannot be bound, or `self_metrics` needs a package that is not installed.
        StoreError: The store cannot be opened, for example because another server is using the folder.
    """
    listener = _bind(config)
    return_large_blocks()
    gc.set_threshold(*_GC_THRESHOLDS)
    connections = _raise_file_limit(config.max_connections)
    with listener:
        with warn_if_slow(config.directory):
            protect_folder(config.directory)
            store = _open(config)
        memory = Background("tensormeter-memory", return_freed_memory, _MEMORY_INTERVAL)
        alerts = AlertService(store, config.alerts, config.alert_interval)
        metrics = None
        try:
            metrics = _metrics(store, config)
            url = _url(config, listener.getsockname()[1])
            shutdown = Shutdown()
            protocol = limited_protocol(connections, config.header_timeout, config.send_timeout)
            uvicorn_config = uvicorn.Config(
                create_app(store, config, shutdown, metrics),
                http=protocol,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                log_config=None,
                proxy_headers=bool(config.forwarded_allow_ips),
                forwarded_allow_ips=config.forwarded_allow_ips,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
            uvicorn_config.load()
            handshakes = None
            if uvicorn_config.ssl is not None and config.tls_cert is not None and config.tls_key is not None:
                Certificate(config.tls_cert, config.tls_key).attach(uvicorn_config.ssl)
                handshakes = Handshakes(uvicorn_config.ssl, protocol.limits.admission, config.header_timeout, protocol)
                # asyncio's own handshakes would not count towards the connection limit.
                uvicorn_config.http_protocol_class, uvicorn_config.ssl = handshakes, None  # type: ignore[assignment]
            server = _Server(uvicorn_config, lambda: on_ready(url), shutdown, handshakes, store.stalled)
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            if metrics is not None:
                metrics.stop()
            alerts.stop()
            memory.stop()
            store.close()


def _metrics(store: Store, config: ServerConfig) -> "ServerMetrics | None":
    if not config.self_metrics:
        return None
    from tensormeter.server.self_metrics import ServerMetrics

    return ServerMetrics(store, config.directory, config.self_metrics)


def _open(config: ServerConfig) -> Store:
    days = config.retention_days
    if config.clickhouse is not None:
        from tensormeter.server.store.clickhouse import ClickHouseStore

        return ClickHouseStore(config.clickhouse, stall_after=config.stall_after, retention_days=days)
    retention = Retention(None if days is None else days * 86400, config.retention_bytes)
    return SqliteStore(
        config.directory, stall_after=config.stall_after, retention=retention, durability=config.durability
    )


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        shutdown: Shutdown,
        handshakes: Handshakes | None,
        stalled: Callable[[], str | None],
    ) -> None:
        super().__init__(config)
        self._stalled = stalled
        self._handshakes = handshakes
        self._on_started = on_started
        self._shutdown = shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._shutdown.started = True
        exit_if_stalled(self._stalled, 2 * _SHUTDOWN_SECONDS)
        if self._handshakes is not None:
            self._handshakes.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but do not raise them again, so that a requested stop exits with status 0."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _bind(config: ServerConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host,
            config.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        if config.token is None and is_loopback(config.host) and not is_loopback(str(address[0])):
            # A host name can resolve to any address.
            raise SettingsError(
                f"host: {config.host!r} resolves to {address[0]}, which is not loopback; bind 127.0.0.1"
            )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            # Listen before uvicorn does, because on Linux two sockets may bind the same port, but only one may listen.
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; "
            "stop the process that is using it, or choose another port with --port",
        ) from error
    return listener


def _raise_file_limit(connections: int) -> int:
    """Raise the file descriptor limit for `connections` connections and the store, as far as the system allows.

    Return the number of connections that the limit allows. Without free descriptors, the server could not even refuse a
    new connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES  # twice as many, because an evicted connection is closed a moment later
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    room = max(soft - _OTHER_FILES, soft // 2)
    if soft == resource.RLIM_INFINITY or connections <= room:
        return connections
    _log.warning(
        "tensormeter: the system allows %d open files; the server accepts %d connections instead of %d. Raise the "
        "limit with `ulimit -n`",
        soft,
        room,
        connections,
    )
    return room


def _url(config: ServerConfig, port: int) -> str:
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://[{config.host}]:{port}" if ":" in config.host else f"{scheme}://{config.host}:{port}"
