"""Every exporter rejects a body that cannot be read, because nothing can make it readable."""

import gzip
import random
import zlib

import pytest

from tensormeter.errors import EncodingError
from tensormeter.exporter import Accepted, Rejected, Request, load_exporter
from tensormeter_exporters import request_bodies
from tensormeter_exporters.otlp_series import read_events, read_metrics


def damaged(good):
    """Bodies that cannot be read, by their damage."""
    packed = gzip.compress(good, mtime=0)
    middle = len(packed) // 2
    return {
        "empty": b"",
        "no gzip": b"plainly not compressed",
        "a header alone": packed[:10],
        "an incomplete header": packed[:5],
        "noise behind the header": packed[:10] + b"\xff" * 20,
        "cut in the middle": packed[:middle],
        "cut before the checksum": packed[:-8],
        "a wrong checksum": packed[:-8] + bytes(8),
        "noise behind the end": packed + b"noise",
        "zlib without gzip": zlib.compress(good),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
        "gzip of noise": gzip.compress(b"\xff\xfe\xfd" * 50),
        "gzip of half a message": gzip.compress(good[: len(good) // 2]),
        "gzip of text": gzip.compress(b"{}"),
        "a field longer than the message": gzip.compress(b"\x0a\xff\xff\xff\xff\x07"),
    }


EXPORTERS = {
    "console": {},
    "jsonl": {"directory": "{}"},
    "mlflow": {"tracking_uri": "http://127.0.0.1:1"},
    "otel:console": {},
    "otlp:http": {"endpoint": "http://127.0.0.1:1", "compression": "none"},
    "otlp:sums": {"endpoint": "http://127.0.0.1:1", "temporality": "cumulative"},
    "otlp:grpc": {"endpoint": "http://127.0.0.1:1", "protocol": "grpc"},
    "prometheus": {"port": "0"},
    "tensorboard": {"directory": "{}"},
    "wandb": {"directory": "{}"},
}
NO_LOGS = {"prometheus", "otel:console"}


@pytest.fixture(scope="module")
def good(make):
    series = [*make.rows({1: {"loss": 0.5}, 2: {"loss": 0.25}}), make.histogram("grad", make.T0)]
    return {"metrics": make.logged(1, series), "logs": make.logs(2, make.start({"lr": 1.0}), make.end())}


@pytest.mark.usefixtures("only_our_variables")
@pytest.mark.parametrize("destination", EXPORTERS)
def test_every_exporter_rejects_what_it_cannot_read(destination, config, good, tmp_path):
    if destination == "otlp:grpc":
        pytest.importorskip("grpc")
    options = {name: value.format(tmp_path / "out") for name, value in EXPORTERS[destination].items()}
    exporter = load_exporter(destination)(config(destination, timeout=1, **options))
    try:
        for signal, request in good.items():
            if signal == "logs" and (destination in NO_LOGS or destination == "otlp:sums"):
                continue
            for kind, body in damaged(gzip.decompress(request.body)).items():
                if destination.startswith("otlp:") and destination != "otlp:sums" and kind.startswith("gzip of"):
                    continue  # what is in it is the receiver's business
                if destination.startswith("otlp:") and destination != "otlp:sums" and kind.startswith("a field"):
                    continue
                outcome = exporter.export(Request("id", signal, body, 4))
                assert isinstance(outcome, Rejected), f"{signal}, {kind}: {outcome}"
                assert "cannot read" in outcome.reason, (signal, kind)
    finally:
        exporter.shutdown()


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_flipped_bits_are_read_or_refused(good, signal):
    """Damage inside of a message may be readable by chance; nothing but an EncodingError may come of it."""
    rng, read = random.Random(7), {"metrics": read_metrics, "logs": read_events}[signal]
    body = gzip.decompress(good[signal].body)
    for _ in range(3000):
        flipped = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        try:
            read(Request("id", signal, gzip.compress(bytes(flipped), 1), 4))
        except EncodingError as error:
            assert "cannot read" in str(error)  # noqa: PT017


def test_a_body_is_not_decompressed_without_a_limit(monkeypatch):
    monkeypatch.setattr(request_bodies, "_LARGEST", 1000)
    with pytest.raises(EncodingError, match="more than 1000 bytes"):
        request_bodies.decompress(Request("id", "metrics", gzip.compress(bytes(1001)), 1))
    assert request_bodies.decompress(Request("id", "metrics", gzip.compress(bytes(1000)), 1)) == bytes(1000)


def test_one_unreadable_event_costs_itself_alone(make, config, tmp_path):
    from tensormeter.otlp.batch import Event
    from tensormeter.otlp.media import Text

    odd = [
        Event("tensormeter.table", make.T0, {"columns": 5, "rows": 7}, {"tensormeter.key": "t"}),
        Event("tensormeter.image", make.T0, "a text", {"tensormeter.key": "i"}),
        Event("tensormeter.text", make.T0, {}, {}),
    ]
    request = make.logs(1, odd[0], Text("note", "hello").event(make.T0, 1), *odd[1:])
    exporter = load_exporter("tensorboard")(config("tensorboard", directory=str(tmp_path / "runs")))
    outcome = exporter.export(request)
    assert isinstance(outcome, Accepted)
    assert outcome.rejected == 3
