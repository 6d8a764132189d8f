"""Reading of an MLflow tracking server over its REST API.

MLflow's client sends the requests, so its variables for credentials, certificates and retries apply. The responses are
parsed here: the client needs about twice as long for a metric's history.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from tensormeter.importers.bounded_parsing import MOST_VALUES, has_too_many_values
from tensormeter.importers.confined_folder import FileEntry, FileTooLargeError
from tensormeter.importers.mlflow.store import PARENT_TAG, MetricBlock, Relation, TrackedRun, restore_infinities
from tensormeter.importers.registry import SourceError
from tensormeter.importers.tally import Tally
from tensormeter.redaction import mask_address, mask_addresses

__all__ = ["ServerStore"]

_API: Final = "/api/2.0/mlflow/"
_ARTIFACT: Final = "/get-artifact"
_POINTS: Final = 25_000
"""Points of a page of a metric's history. MLflow's server permits no more."""
_RUNS: Final = 100
_EXPERIMENTS: Final = 1000
_LARGEST_PAGE: Final = 64 << 20
_CHUNK: Final = 1 << 20
_REQUESTS: Final = 4
"""Number of metrics that are requested at once."""
_DEEPEST: Final = 32
_MOST_FOLDERS: Final = 10_000
"""Maximum number of folders of a run that are listed."""

_Json = dict[str, Any]


class ServerStore:
    """A tracking server. It implements `TrackingStore`."""

    def __init__(self, address: str, tally: Tally) -> None:
        """
        Raises:
            SourceError: MLflow's client is not installed, or the server cannot be reached.
        """
        try:
            from mlflow.utils.credentials import get_default_host_creds
        except ModuleNotFoundError:
            raise SourceError(
                "importing from an MLflow server needs MLflow's client; run pip install 'tensormeter[mlflow]'"
            ) from None
        self._address = address
        self._shown = mask_address(address)
        self._credentials = get_default_host_creds(address)  # type: ignore[no-untyped-call]
        self._tally = tally
        self._pool = ThreadPoolExecutor(_REQUESTS, "tensormeter-mlflow")
        self._experiments = {
            str(experiment["experiment_id"]): str(experiment.get("name") or experiment["experiment_id"])
            for experiment in self.pages("experiments/search", "experiments", {"max_results": _EXPERIMENTS})
            if isinstance(experiment, dict) and "experiment_id" in experiment
        }

    def relations(self) -> Iterator[Relation]:
        for document in self._search():
            run = self._run(document)
            if run is not None:
                yield Relation(run.run_id, run.name, run.tags.get(PARENT_TAG, ""))

    def runs(self) -> Iterator[TrackedRun]:
        for document in self._search():
            run = self._run(document)
            if run is not None:
                yield run
            else:
                self._tally.report(f"{self._shown}: a run is damaged and was skipped")
                self._tally.leave_out("damaged runs")

    def metrics(self, run: TrackedRun) -> Iterator[MetricBlock]:
        first: deque[tuple[str, Future[_Json]]] = deque()
        names = iter(run.metrics)
        while True:
            while len(first) < _REQUESTS and (name := next(names, None)) is not None:
                first.append((name, self._pool.submit(self._history, run.run_id, name, "")))
            if not first:
                return
            name, future = first.popleft()
            page, token = future.result(), ""
            while True:
                yield self._block(name, page.get("metrics") or [])
                token, previous = str(page.get("next_page_token") or ""), token
                if not token or token == previous:  # a server that ignores tokens would repeat its page for ever
                    break
                page = self._history(run.run_id, name, token)

    def artifacts(self, run: TrackedRun) -> "ServerArtifacts":
        return ServerArtifacts(self, run)

    def left_out(self) -> Mapping[str, int]:
        try:
            deleted = sum(1 for _ in self._search("DELETED_ONLY"))
        except SourceError:
            return {}
        return {"deleted runs": deleted}

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, endpoint: str, parameters: Mapping[str, Any], limit: int) -> bytes:
        """Return the body of a response.

        Raises:
            FileTooLargeError: The body has more bytes than `limit`.
            SourceError: The server refused the request or did not respond.
        """
        return self._request(endpoint, "GET", limit, params=parameters)

    def call(self, name: str, parameters: Mapping[str, Any], method: str = "GET") -> _Json:
        """Return the response of a method of the REST API.

        Raises:
            SourceError: The server refused the request, did not respond, or is not MLflow.
        """
        fields: _Json = {"params": parameters} if method == "GET" else {"json": parameters}
        body = self._request(f"{_API}{name}", method, _LARGEST_PAGE, **fields)
        if has_too_many_values(body):
            raise SourceError(f"{self._shown}: a response has more than {MOST_VALUES:,} values")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise SourceError(f"{self._shown} did not respond as an MLflow server does")
        return document

    def pages(self, name: str, key: str, parameters: _Json, method: str = "POST") -> Iterator[Any]:
        """Yield the items of the list `key` in a response and in the pages that follow it. Raises SourceError."""
        token = ""
        while True:
            document = self.call(name, parameters | ({"page_token": token} if token else {}), method)
            items = document.get(key)
            yield from items if isinstance(items, list) else ()
            token, previous = str(document.get("next_page_token") or ""), token
            if not token or token == previous:  # a server that ignores tokens would repeat its page for ever
                return

    def _request(self, endpoint: str, method: str, limit: int, **fields: Any) -> bytes:
        from mlflow.exceptions import MlflowException
        from mlflow.utils.rest_utils import http_request

        try:
            response = http_request(  # type: ignore[no-untyped-call]
                self._credentials, endpoint, method, stream=True, allow_redirects=False, **fields
            )
            with response:
                chunks, size = [], 0
                for chunk in response.iter_content(_CHUNK):
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        raise FileTooLargeError(f"{self._shown}: a response has more than {limit:,} bytes")
        except (MlflowException, OSError) as error:
            cause = mask_addresses(str(error))[:300]
            raise SourceError(
                f"{self._shown}: no response; start the tracking server or check the address ({cause})"
            ) from None
        body = b"".join(chunks)
        if response.is_redirect:  # to any address, even one that only this machine can reach
            place = mask_addresses(str(response.headers["location"]))[:300]
            raise SourceError(f"{self._shown} redirects to {place}; if it is right, import from that address")
        if response.status_code != 200:
            hint = " (set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            raise SourceError(
                f"{self._shown}: the server responded with status {response.status_code}"
                f"{hint if response.status_code in (401, 403) else ''}: {_message_of(body)}"
            )
        return body

    def _search(self, view: str = "ACTIVE_ONLY") -> Iterator[_Json]:
        for experiment in self._experiments:
            parameters = {
                "experiment_ids": [experiment],
                "max_results": _RUNS,
                "run_view_type": view,
                "order_by": ["attributes.start_time ASC"],
            }
            yield from self.pages("runs/search", "runs", parameters)

    def _run(self, document: _Json) -> TrackedRun | None:
        """Return a run; None if the document is damaged."""
        try:
            info, data = document["info"], document.get("data") or {}
            tags = _pairs(data.get("tags"))
            inputs, outputs = document.get("inputs") or {}, document.get("outputs") or {}
            return TrackedRun(
                str(info["run_id"]),
                str(info.get("run_name") or tags.get("mlflow.runName") or ""),
                self._experiments.get(str(info["experiment_id"]), str(info["experiment_id"])),
                str(info.get("status") or ""),
                _integer(info.get("start_time")),
                _integer(info.get("end_time")),
                _pairs(data.get("params")),
                tags,
                str(info.get("artifact_uri") or ""),
                [str(metric["key"]) for metric in data.get("metrics") or []],
                {
                    "datasets": len(inputs.get("dataset_inputs") or []),
                    "logged models": len(outputs.get("model_outputs") or []),
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _history(self, run_id: str, name: str, token: str) -> _Json:
        parameters = {"run_id": run_id, "metric_key": name, "max_results": _POINTS}
        return self.call("metrics/get-history", parameters | ({"page_token": token} if token else {}))

    def _block(self, name: str, points: Sequence[_Json]) -> MetricBlock:
        try:
            return _block_of(name, points)
        except (KeyError, TypeError, ValueError, OverflowError):
            intact = [point for point in points if _is_intact(point)]
            self._tally.leave_out("damaged points", len(points) - len(intact))
            return _block_of(name, intact)


class ServerArtifacts:
    """The artifacts of a run on a server. It implements `ArtifactSource`."""

    def __init__(self, server: ServerStore, run: TrackedRun) -> None:
        self._server = server
        self._run_id = run.run_id
        self.uri = run.artifact_uri

    def files(self, at_most: int) -> Iterator[FileEntry]:
        folders, count, listings = deque([""]), 0, 0
        while folders and count < at_most and listings < _MOST_FOLDERS:
            listings += 1
            folder = folders.popleft()
            parameters = {"run_id": self._run_id} | ({"path": folder} if folder else {})
            for entry in self._server.pages("artifacts/list", "files", parameters, "GET"):
                path = entry.get("path") if isinstance(entry, dict) else None
                if not isinstance(path, str):
                    continue
                if entry.get("is_dir"):
                    if path.count("/") < _DEEPEST:
                        folders.append(path)
                elif count < at_most:
                    count += 1
                    size = str(entry.get("file_size"))
                    yield FileEntry(path, int(size) if size.isdecimal() else 0)

    def read(self, path: str, limit: int) -> bytes:
        return self._server.get(_ARTIFACT, {"run_uuid": self._run_id, "path": path}, limit)


def _block_of(name: str, points: Sequence[_Json]) -> MetricBlock:
    values = np.array([float(point["value"]) for point in points], np.float64)
    return MetricBlock(
        [name],
        np.zeros(len(points), np.int64),
        np.array([int(point.get("step") or 0) for point in points], np.int64),
        np.array([int(point["timestamp"]) for point in points], np.int64),
        restore_infinities(values),
    )


def _is_intact(point: object) -> bool:
    try:
        return len(_block_of("", [point]).values) == 1  # type: ignore[list-item]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return False


def _pairs(items: object) -> dict[str, str]:
    if not isinstance(items, list):
        return {}
    return {str(item["key"]): str(item.get("value") or "") for item in items}


def _integer(value: object) -> int | None:
    return None if value is None else int(value)  # type: ignore[call-overload]


def _message_of(body: bytes) -> str:
    try:
        document = json.loads(body)
        message = document["message"] if isinstance(document, dict) else ""
    except (ValueError, KeyError, RecursionError):
        message = body[:200].decode("utf-8", "replace")
    return mask_addresses(str(message))[:300]
