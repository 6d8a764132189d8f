"""Delivery of alerts to a webhook, at least once and in order, even across server restarts."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3

from tensormeter.errors import StoreError
from tensormeter.retrying import exponential_delays, retry_delay
from tensormeter.server.alerts.config import MAX_AGE
from tensormeter.server.store import RunRef, Store, StoredEvent

__all__ = ["Webhook"]

_TIMEOUT: Final = urllib3.Timeout(connect=5, read=10, total=15)
_POLL: Final = 2.0
_MAX_DELAY: Final = 60
_MAX_RETRY_AFTER: Final = 3600.0
_RETRIED: Final = frozenset({408, 425, 429})

_log = logging.getLogger(__name__)


class Webhook:
    """Sender that posts alerts to one URL. It runs on a daemon thread from construction until `stop`.

    The store keeps the position of the last acknowledged alert. Redirects are not followed. The URL is a secret and is
    not logged.
    """

    def __init__(self, store: Store, url: str) -> None:
        """Start the thread."""
        self._store = store
        self._url = url
        self._host = urlsplit(url).hostname or ""
        self._watermark = f"webhook:{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)
        self._stopping = threading.Event()
        self._skipped_old = False
        with suppress(StoreError):  # for example, a full disk; the thread will try again
            self._skip_old_alerts()
        self._thread = threading.Thread(target=self._loop, name="tensormeter-webhook", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait until it ends. A request in progress can take up to 15 s."""
        self._stopping.set()
        self._thread.join()
        self._pool.clear()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._skip_old_alerts()
                self._deliver()
            except StoreError as error:
                _log.warning("tensormeter: webhook %s: %s; will retry", self._host, error)
            self._stopping.wait(_POLL)

    def _deliver(self) -> None:
        next_id = self._store.mark(self._watermark)
        for ref, event in self._store.alerts(next_id - 1, 100):
            if event.time < time.time_ns() - MAX_AGE:
                _log.info(
                    "tensormeter: webhook %s: skipped alert %d of run %r: it is older than a day",
                    self._host,
                    event.id,
                    ref.run_id,
                )
            elif not self._send(ref, event):
                return
            self._store.mark(self._watermark, event.id + 1)

    def _skip_old_alerts(self) -> None:
        """Skip all existing alerts if the URL is new."""
        if self._skipped_old:
            return
        if self._store.mark(self._watermark) == 0:
            last = 0
            while page := self._store.alerts(last, 1000):
                last = page[-1][1].id
            self._store.mark(self._watermark, last + 1)
        self._skipped_old = True

    def _send(self, ref: RunRef, event: StoredEvent) -> bool:
        """Send one alert, with retries, until it is accepted or permanently refused.

        Return False if `stop` is called first.
        """
        body = json.dumps(_document(ref, event), ensure_ascii=False).encode(errors="replace")
        waits = exponential_delays(1, _MAX_DELAY)
        while not self._stopping.is_set():
            floor = 0.0
            try:
                response = self._pool.request(
                    "POST", self._url, body=body, headers={"Content-Type": "application/json"}, redirect=False
                )
            except urllib3.exceptions.HTTPError as error:
                problem = type(error).__name__
            else:
                if 200 <= response.status < 300:
                    return True
                problem = f"status {response.status}"
                if response.status < 500 and response.status not in _RETRIED:
                    _log.warning(
                        "tensormeter: webhook %s refused alert %d: %s; the alert is not sent again, so check the "
                        "webhook's URL",
                        self._host,
                        event.id,
                        problem,
                    )
                    return True
                floor = _retry_after(response.headers.get("Retry-After"))
            delay = retry_delay(next(waits), floor)
            _log.info("tensormeter: webhook %s: %s; retry in %.1f s", self._host, problem, delay)
            self._stopping.wait(delay)
        return False


def _document(ref: RunRef, event: StoredEvent) -> Mapping[str, Any]:
    body = event.body if isinstance(event.body, Mapping) else {"message": event.body}
    message = str(body.get("message") or body.get("text") or body.get("title") or event.name)[:2000]
    return {
        "text": f"{ref.project}/{ref.run_id}: {message}",  # chat services show this field
        "project": ref.project,
        "run": ref.run_id,
        "process": event.process,
        "time": str(event.time),
        "step": event.step,
        "attributes": event.attributes,
        "alert": body,
    }


def _retry_after(text: str | None) -> float:
    """Convert a `Retry-After` header (seconds or a date; RFC 9110) to seconds; 0 if it is missing or invalid."""
    if not text:
        return 0.0
    if text.strip().isascii() and text.strip().isdecimal() and len(text) < 12:
        return min(float(text), _MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max((date - datetime.now(UTC)).total_seconds(), 0.0), _MAX_RETRY_AFTER)
