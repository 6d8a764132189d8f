"""A real MLflow tracking server as a source, and runs that tensormeter's own destination `mlflow` has written."""

import gzip
import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from support.imported_runs import exported_points, import_all, only_run, read_all
from support.mlflow_server import serve_mlflow
from support.servers import Server
from tensormeter.exporter import Accepted, ExporterConfig, Request, load_exporter
from tensormeter.importers.mlflow.server import ServerStore
from tensormeter.importers.registry import SourceError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tally import Tally
from tensormeter.otlp.media import Image

PIXEL = b"\x89PNG\r\n\x1a\nnot looked into"
T0 = 1_750_000_000_000_000_000
"""A whole number of milliseconds."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server.url
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def variables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


class MlflowDestination:
    """A sender that gives requests to the destination `mlflow`."""

    def __init__(self, uri):
        self.exporter = load_exporter("mlflow")(
            ExporterConfig(endpoint="", token="", timeout=30, destination="mlflow", options={"tracking_uri": uri})
        )

    def send(self, signal, body, items):
        outcome = self.exporter.export(Request(f"{signal}-{items}", signal, gzip.compress(body), items))
        assert isinstance(outcome, Accepted), outcome

    def flush(self): ...

    def close(self): ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder `mlruns` that the destination has written."""
    folder = tmp_path_factory.mktemp("destination") / "mlruns"
    requests = RunRequests(MlflowDestination(f"file://{folder}"), Tally())
    config = {"lr": 0.1, "model": {"layers": 3, "names": ["a"]}, "on": True, "text": "1.0x"}
    requests.start("project", "run-1", "named", started=T0, config=config, group="group", tags=["x y"], notes="note")
    steps = np.arange(100)
    requests.points("train/loss", steps, T0 + steps * 1_000_000, np.linspace(1, math.pi, 100))
    requests.points("odd", steps[:3], T0 + steps[:3] * 1_000_000, np.array([math.nan, math.inf, -math.inf]))
    images = {"data": PIXEL, "content_type": "image/png", "width": 1, "height": 1}
    requests.item("image", "samples/one", 5, T0 + 7, **images)
    requests.item("images", "grid", 6, T0 + 8, images=[Image("", **images), Image("", **images)])
    rows = [[1, "x", None], [2.5, "y", Image("", **images)]]
    requests.item("table", "table", 7, T0 + 9, columns=["a", "b", "c"], rows=rows)
    requests.item("text", "answer", None, T0 + 10, text="hello")
    requests.item("figure", "figure", 8, T0 + 11, figure='{"data":[],"layout":{}}')
    requests.item("html", "page", 9, T0 + 12, html="<p>x</p>")
    requests.item("alert", "slow", 9, T0 + 13, text="look", level="WARN")
    requests.summary({"best": 0.5}, T0 + 14)
    requests.finish("failed", T0 + 2_000_000_000)
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Address of an MLflow server with that folder."""
    options = ["--backend-store-uri", f"file://{folder}", "--no-serve-artifacts"]
    with serve_mlflow(tmp_path_factory.mktemp("server"), *options) as address:
        yield address


@pytest.fixture(scope="module", params=["folder", "server"])
def run(request, url):
    """The run after its import from the folder, or from the server."""
    tally = import_all(url, request.getfixturevalue(request.param), project=request.param)
    assert tally.faults == []
    assert (tally.runs, tally.points, tally.media) == (1, 103, 7)
    assert dict(tally.left_out) == {}
    return only_run(url, request.param, "named")


def test_a_run_of_the_destination_is_equal_after_its_import(run, tmp_path):
    points = exported_points(run, tmp_path)
    values = np.linspace(1, math.pi, 100).tolist()
    assert points["train/loss"] == [(step, T0 + step * 10**6, value.hex()) for step, value in enumerate(values)]
    largest = sys.float_info.max  # the destination stores it for infinities, and the import reads it as such
    assert {value for _, _, value in points["odd"]} <= {"nan", "inf", "-inf", largest.hex(), (-largest).hex()}
    assert {"lr": 0.1, "model.layers": 3, "on": True, "text": "1.0x"}.items() <= run.config.items()
    assert (run.group, run.tags, run.notes, run.state) == ("group", ["x y"], "note", "failed")
    assert run.summary["best"].value == 0.5


def test_media_of_the_destination_keep_their_keys_and_steps(run):
    assert {(image.key, image.step) for image in run.images()} == {("samples/one", 5), ("grid", 6)}
    (table,) = run.tables()
    assert (table.key, table.step, table.columns) == ("table", 7, ["a", "b", "c"])
    assert [row[:2] for row in table.rows] == [[1, "x"], [2.5, "y"]]
    assert table.rows[1][2]["content_type"] == "image/png"
    assert [(text.key, text.step, text.time, text.text) for text in run.texts()] == [("answer", None, T0 + 10, "hello")]
    assert [(figure.key, figure.step) for figure in run.figures()] == [("figure", 8)]
    assert [(page.key, page.step) for page in run.html()] == [("page", 9)]
    (alert,) = run.alerts()
    assert (alert.body["title"], alert.body["level"], alert.step, alert.time) == ("slow", "WARN", 9, T0 + 13)


@pytest.fixture
def odd_server():
    """A server that answers every request with what the test has chosen. Yields its address, and a list of answers."""
    answers, seen = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers)
            status, body = answers[min(len(seen), len(answers)) - 1]
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "http://user:secret@127.0.0.1:1/inner")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *arguments): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, seen
        server.shutdown()
        thread.join()


def test_a_refused_token_is_reported_without_the_token(odd_server, monkeypatch):
    address, answers, seen = odd_server
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-token")
    answers.append((401, b"who are you"))
    with pytest.raises(SourceError, match=r"status 401 \(set MLFLOW_TRACKING_TOKEN.*who are you") as error:
        read_all(address)
    assert seen[0]["Authorization"] == "Bearer secret-token"
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000])
def test_answers_of_other_servers_are_reported(odd_server, body):
    address, answers, _ = odd_server
    answers.append((200, body))
    with pytest.raises(SourceError, match="did not respond as an MLflow server does"):
        read_all(address)


def test_damaged_runs_and_points_of_a_server_are_skipped_and_counted(odd_server):
    address, answers, _ = odd_server
    info = {"run_id": "r", "experiment_id": "1", "status": "FINISHED", "start_time": 1, "end_time": 2}
    good = {"info": info, "data": {"metrics": [{"key": "m"}]}}
    runs = {"runs": [{"info": {}}, good, {"info": info | {"start_time": "soon"}}]}
    points = [
        {"key": "m", "value": "NaN", "timestamp": 5, "step": "3"},
        {"value": 1},
        7,
        {"value": "x", "timestamp": 1},
    ]
    documents = [{"experiments": [{"experiment_id": "1", "name": "e"}]}, runs, runs, {"metrics": points}, {}, {}]
    answers += [(200, json.dumps(document).encode()) for document in documents]
    tally = read_all(address)
    assert (tally.runs, tally.points, len(tally.faults)) == (1, 1, 2)
    assert (tally.left_out["damaged points"], tally.left_out["damaged runs"]) == (3, 2)


def test_a_server_that_repeats_its_page_does_not_keep_the_import(odd_server):
    address, answers, seen = odd_server
    page = {"experiments": [{"experiment_id": "1"}, 7], "runs": 7, "next_page_token": "again"}
    answers.append((200, json.dumps(page).encode()))
    assert read_all(address).runs == 0
    assert len(seen) < 20


def test_a_redirect_is_named_but_not_followed(odd_server, monkeypatch):
    address, answers, seen = odd_server
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-token")
    answers.append((307, b""))
    with pytest.raises(SourceError, match=r"redirects to http://\*\*\*@127.0.0.1:1/inner; .* import from that address"):
        read_all(address)
    assert len(seen) == 1


def test_pages_that_repeat_end_the_listing(odd_server):
    address, answers, seen = odd_server
    experiments = {"experiments": [{"experiment_id": "1", "name": "e"}]}
    runs = {"runs": [], "next_page_token": "same"}
    answers += [(200, json.dumps(document).encode()) for document in (experiments, runs)]
    assert read_all(address).runs == 0
    assert len(seen) == 7


def test_documents_with_too_many_values_are_refused(odd_server):
    address, answers, _ = odd_server
    answers.append((200, b'{"experiments": [' + b"[]," * 1_000_001 + b"1]}"))
    with pytest.raises(SourceError, match="more than 2,000,000 values"):
        read_all(address)


def test_responses_beyond_the_limit_are_not_read_to_the_end(odd_server):
    address, answers, _ = odd_server
    answers += [(200, b"{}"), (200, b"x" * 5_000_000)]
    store = ServerStore(address, Tally())
    with pytest.raises(SourceError, match="more than 1,000,000 bytes"):
        store.get("/get-artifact", {}, 1_000_000)
    store.close()
