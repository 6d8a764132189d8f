"""The `experiment` destination: the experiment server, over OTLP/HTTP with Protobuf.

Bodies are gzip until the receiver's responses list other content codings (see `body_coding`). Any OTLP/HTTP receiver
accepts these requests. The experiment server deduplicates them by the header `Tensormeter-Batch-Id`. The response header
`Tensormeter-Commit` contains the number of the commit that stored the request. `Tensormeter-Durable` contains the number
up to which all commits have been synced to the server's disk. Other servers do not send these headers, so their
durability is unknown. `Tensormeter-Live` contains the interval, in seconds, at which the server wants new data while the
run has viewers.

If the endpoint comes from `OTEL_EXPORTER_OTLP_ENDPOINT`, the other OTLP exporter variables apply too: headers,
per-signal endpoints, compression, timeouts, certificates, and the protocol, which may be gRPC.
"""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlencode, urlsplit

from tensormeter.conventions.attempt_number import MAX_ATTEMPT
from tensormeter.environment.otlp import OtlpTarget, belongs_to_opentelemetry, read_targets, signal_url
from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import (
    Accepted,
    AttemptNumber,
    AttemptQuestion,
    Durability,
    Exporter,
    ExporterConfig,
    Outcome,
    Rejected,
    Request,
    Retry,
    Signal,
    TooLarge,
    Unauthorized,
)
from tensormeter_exporters.base import UNCHANGED
from tensormeter_exporters.body_coding import BodyCoding
from tensormeter_exporters.otlp.answers import Answer
from tensormeter_exporters.otlp.http import tls_context
from tensormeter_exporters.otlp.http_client import OtlpPost
from tensormeter_exporters.request_bodies import decompress

__all__ = ["ExperimentExporter"]

# The request itself is invalid, so a retry would fail too.
_PERMANENT: Final = frozenset({400, 409, 415, 422})

# Permanent errors that a single item may cause, so that other parts of the request may be valid.
_CONTENT: Final = frozenset({400, 422})

# Errors that an unknown content coding may cause.
_CODING_REFUSED: Final = frozenset({400, 406, 415, 422, 501})

_LEAST_TIMEOUT: Final = 0.1

_HEADERS: Final = ("tensormeter-commit", "tensormeter-durable")
_LIVE: Final = "tensormeter-live"
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
_POSITION: Final = re.compile(r"([0-9A-Za-z]{1,64})-([0-9]{1,18})", re.ASCII)
_DURABLE_PATH: Final = "/api/v1/durable"

# Statuses that come from a server other than an experiment server, or from a proxy that forwards only OTLP.
_NOT_THERE: Final = frozenset({404, 405, 410})


_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of temporary errors, for which `ask_attempt` returns `Retry`."""

_MOST_STEPS: Final = 1 << 62

_MOST_QUESTIONS: Final = 10
"""Maximum number of times that `ask_attempt` returns `Retry` for these statuses. Data may be accepted despite them."""


class ExperimentExporter:
    """The exporter of the `experiment` destination. It implements `tensormeter.exporter.Exporter`.

    Redirects are not followed, because they would send the token to another server.
    """

    independent_signals: Final = True
    media: ClassVar = dict.fromkeys(UNCHANGED, "shown on the page")

    def __init__(self, config: ExporterConfig) -> None:
        self._targets = {signal: target for signal, target in _targets(config).items() if signal in config.signals}
        self._unanswered = 0
        self._routes = {signal: _route(target) for signal, target in self._targets.items()}
        self._codings = {signal: BodyCoding.of(target.endpoint) for signal, target in self._targets.items()}
        self._has_no_durability = False

    def export(self, request: Request, timeout: float | None = None) -> Outcome:
        """Send one request, and return the outcome. `timeout`, in seconds, can shorten the configured timeout."""
        route = self._routes[request.signal]
        if not isinstance(route, OtlpPost):
            return route.export(request)
        try:
            answer = self._send(route, request, timeout)
        except EncodingError as error:
            return Rejected(str(error))
        if isinstance(answer, Retry):
            return answer
        if answer.ok:
            outcome = answer.accepted(request.signal, request.items)
            if isinstance(outcome, Accepted) and self._asks(request.signal):
                live = _read_interval(answer.headers)
                return dataclasses.replace(outcome, durability=_read_headers(answer.headers), live=live)
            return outcome
        if answer.status in _PERMANENT:
            return Rejected(answer.reason, divide=answer.status in _CONTENT)
        if answer.status in (401, 403):
            return Unauthorized(
                f"{answer.reason}; set TENSORMETER_TOKEN to a token for that server, or, if the endpoint comes from "
                "OpenTelemetry's variables, set OTEL_EXPORTER_OTLP_HEADERS"
            )
        if answer.status == 413:
            return TooLarge(answer.reason)
        return Retry(answer.reason, answer.retry_after)

    def _send(self, route: OtlpPost, request: Request, timeout: float | None) -> Answer | Retry:
        """Send a request in the best coding that the receiver accepts.

        A proxy or another server behind the same address may refuse this coding. The request is then sent as gzip.

        Raises:
            EncodingError: The request's body is damaged.
        """
        target, coding = self._targets[request.signal], self._codings[request.signal]
        headers = {"Tensormeter-Batch-Id": request.id}
        if not target.gzip:
            return route.send(target.endpoint, decompress(request), headers, timeout=timeout)
        seconds = target.timeout if timeout is None else min(timeout, target.timeout)
        deadline = time.monotonic() + seconds
        body, name = coding.encode(request)
        answer = route.send(target.endpoint, body, {**headers, "content-encoding": name}, timeout=seconds)
        if name != "gzip" and isinstance(answer, Answer) and answer.status in _CODING_REFUSED:
            left = max(deadline - time.monotonic(), _LEAST_TIMEOUT)
            answer = route.send(target.endpoint, request.body, {**headers, "content-encoding": "gzip"}, timeout=left)
            if isinstance(answer, Answer) and answer.ok:
                coding.refuse()
        if isinstance(answer, Answer) and answer.ok:
            coding.note_accepted(answer.headers.get("accept-encoding", ""))
        return answer

    def durability(self) -> Durability | Retry | None:
        """Ask the server which commits are durable. See `tensormeter.exporter.Exporter`."""
        signal, target = next(iter(self._targets.items()))
        route = self._routes[signal]
        if not isinstance(route, OtlpPost) or not self._asks(signal):
            return None
        answer = route.get(target.endpoint.removesuffix(_path(signal)) + _DURABLE_PATH)
        if isinstance(answer, Retry):
            return answer
        if not answer.ok and answer.status not in _NOT_THERE:
            return Retry(answer.reason, answer.retry_after)
        durability = _read_document(answer.body) if answer.ok else None
        self._has_no_durability = durability is None
        return durability

    def _asks(self, signal: Signal) -> bool:
        """Return whether the server for a signal reports durability.

        If it does not, durability headers in its responses are ignored.
        """
        return not self._has_no_durability and self._targets[signal].endpoint.endswith(_path(signal))

    def ask_attempt(self, question: AttemptQuestion) -> AttemptNumber | Retry | Unauthorized | None:
        """Ask the server for an attempt number. Return None if the receiver is not an experiment server."""
        signal, target = next(iter(self._targets.items()))
        route, url = self._routes[signal], _attempt_url(target, signal, question)
        if not isinstance(route, OtlpPost) or not url:
            return None
        answer = route.get(url)
        if isinstance(answer, Retry):
            return answer
        if answer.status in (401, 403):
            return Unauthorized(answer.reason)
        if answer.status in _BUSY and self._unanswered < _MOST_QUESTIONS:
            self._unanswered += 1
            return Retry(answer.reason, answer.retry_after)
        if not answer.ok:
            return None
        number = _attempt_number(answer.body)
        if number is not None:
            self._codings[signal].note_accepted(answer.headers.get("accept-encoding", ""))
        return number

    def abort(self) -> None:
        """Abort an `export` call on another thread. That call then returns `Retry`."""
        for route in self._routes.values():
            if isinstance(route, OtlpPost):
                route.abort()
            else:
                route.shutdown()  # aborts its current calls

    def shutdown(self) -> None:
        for route in self._routes.values():
            if isinstance(route, OtlpPost):
                route.close()
            else:
                route.shutdown()


def _path(signal: Signal) -> str:
    return f"/v1/{signal}"


def _read_headers(headers: Mapping[str, str]) -> Durability | None:
    """Parse the durability headers of a successful response; return None if they are missing or invalid."""
    commit, durable = (_POSITION.fullmatch(headers.get(name, "")) for name in _HEADERS)
    if commit is None or durable is None or commit[1] != durable[1]:
        return None
    return Durability(commit[1], int(commit[2]), int(durable[2]))


def _read_interval(headers: Mapping[str, str]) -> float | None:
    """Parse the header that requests live data; return None if it is missing or invalid."""
    value = headers.get(_LIVE, "")
    return float(value) if _SECONDS.fullmatch(value) else None


def _read_document(body: bytes) -> Durability | None:
    """Parse the response to a durability request; return None if it does not come from an experiment server."""
    try:
        document: Any = json.loads(body)
        epoch, committed, durable = (document[name] for name in ("epoch", "committed", "durable"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(epoch, str) or not isinstance(committed, int) or not isinstance(durable, int):
        return None
    return _read_headers(dict(zip(_HEADERS, (f"{epoch}-{committed}", f"{epoch}-{durable}"), strict=True)))


def _attempt_url(target: OtlpTarget, signal: Signal, question: AttemptQuestion) -> str:
    """Return the URL at which the experiment server assigns attempt numbers, or "" if it cannot be derived."""
    parts = urlsplit(target.endpoint)
    path = parts.path.removesuffix(f"/v1/{signal}")
    if parts.scheme not in ("http", "https") or path == parts.path:
        return ""
    member = question.member
    parameters = {
        "project": question.project,
        "process": member.process,
        "rank": member.rank,
        "world_size": member.world_size,
        "launch": member.launch,
        "least": question.least,
        "number": question.number,
        "resume": "true" if question.resume else "false",
    }
    query = urlencode({name: value for name, value in parameters.items() if value is not None}, errors="replace")
    path = f"{path}/api/v1/runs/{quote(question.run_id, safe='')}/attempt"
    return parts._replace(path=path, query=f"{parts.query}&{query}" if parts.query else query).geturl()


def _attempt_number(body: bytes) -> AttemptNumber | None:
    try:
        document = json.loads(body)
        number, last_step = document["attempt"], document["last_step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(number) is not int or not 1 <= number <= MAX_ATTEMPT:
        return None
    return AttemptNumber(number, last_step if type(last_step) is int and abs(last_step) < _MOST_STEPS else None)


def _targets(config: ExporterConfig) -> dict[Signal, OtlpTarget]:
    base = config.endpoint.rstrip("/")
    token = {"authorization": f"Bearer {config.token}"} if config.token else {}
    if not belongs_to_opentelemetry(base):
        secure = base.lower().startswith("https:")
        return {
            signal: OtlpTarget("http/protobuf", signal_url(base, signal), secure, token, timeout=config.timeout)
            for signal in config.signals
        }
    targets = read_targets(config.destination or "experiment", {}, config.timeout, default_endpoint=base)
    return {
        # The token belongs to the endpoint. If a signal has another server, that server must not receive the token.
        signal: dataclasses.replace(target, headers={**target.headers, **token}) if _is_at(target, base) else target
        for signal, target in targets.items()
    }


def _is_at(target: OtlpTarget, base: str) -> bool:
    scheme, netloc, *_ = urlsplit(base)
    if target.protocol == "grpc":
        return target.endpoint in (netloc, f"{netloc}:4317")
    return urlsplit(target.endpoint)[:2] == (scheme, netloc)


def _route(target: OtlpTarget) -> OtlpPost | Exporter:
    if target.protocol == "http/protobuf":
        encoding = {"content-encoding": "gzip"} if target.gzip else {}
        return OtlpPost(target.timeout, {**target.headers, **encoding}, tls_context(target))
    try:
        from tensormeter_exporters.otlp.grpc import OtlpGrpcSender  # imported only if used
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs the package {error.name!r}; run pip install "
            "'tensormeter[grpc]', or use http/protobuf and set OTEL_EXPORTER_OTLP_ENDPOINT to the server's OTLP/HTTP "
            "port"
        ) from None
    return OtlpGrpcSender(target, target.timeout)
