"""Event files, read back by TensorBoard's own loader."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS, EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from support.processes import run_python
from tensormeter.exporter import Accepted, Retry
from tensormeter.otlp.media import Alert, Html, Image, Table, Text, Video
from tensormeter_exporters.tensorboard import TensorBoardExporter

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def load(folder):
    loaded = EventAccumulator(str(folder), {TENSORS: 0})
    loaded.Reload()
    return loaded


def scalar_values(loaded, tag):
    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in loaded.Tensors(tag)]


def texts(loaded, tag):
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in loaded.Tensors(tag)]


@pytest.fixture
def written(make, config, tmp_path):
    exporter = TensorBoardExporter(config(directory=str(tmp_path / "tb")))
    rows = {3: {"train/loss": 0.5, "acc": 1}, 1: {"train/loss": float("nan")}, 2: {"train/loss": 0.25}}
    at = make.T0 + 2_000_000_000
    series = [*make.rows(rows), make.histogram("explicit", at), make.exponential_histogram("exponential", at)]
    media = [
        Image("sample", PIXEL, "image/png", 1, 1).event(at, 2),
        Text("note", "**bold**").event(at, 2),
        Table("rows", ["a", "b"], [[1, "x|y"]]).event(at, 2),
        Alert("spike", "loss rose", "WARN").event(at, 2),
        make.code(at),
        make.artifact("a.pt", 2, at),
    ]
    assert exporter.export(make.logs(1, make.start({"lr": 0.1, "net": {"depth": 2}}))) == Accepted()
    assert exporter.export(make.logged(2, series)) == Accepted()
    assert exporter.export(make.logged(3, make.rows({9: {"train/loss": 4.0}}), process="q0123456789")) == Accepted()
    assert exporter.export(make.logs(4, *media, make.end("failed"))) == Accepted()
    exporter.shutdown()
    return tmp_path / "tb" / "demo" / "run1"


def test_tensorboard_reads_scalars_and_media(written):
    loaded = load(written / "p0123456")
    loss = scalar_values(loaded, "train/loss")
    assert [step for step, _ in loss] == [3, 1, 2]
    assert loss[0][1] == 0.5
    assert np.isnan(loss[1][1])
    ((step, code),) = texts(loaded, "code")
    assert (step, f"| commit | {'c' * 40} |" in code, "| uncommitted changes | yes |" in code) == (0, True, True)
    ((step, artifact),) = texts(loaded, "artifacts")
    assert (step, "| place | /w/a.pt |" in artifact, "| digest | sha256:ab |" in artifact) == (2, True, True)
    assert scalar_values(loaded, "acc") == [(3, 1.0)]
    assert [event.wall_time for event in loaded.Tensors("acc")] == [1_790_000_000.0]
    assert scalar_values(load(written / "q0123456"), "train/loss") == [(9, 4.0)]
    assert texts(loaded, "note") == [(2, "**bold**")]
    assert texts(loaded, "rows") == [(2, "| a | b |\n| --- | --- |\n| 1 | x\\|y |")]
    assert texts(loaded, "alerts") == [(2, "**WARN: spike**\n\nloss rose")]
    assert "| net.depth | 2 |" in texts(loaded, "config")[0][1]
    assert texts(loaded, "state")[0][1] == "failed"
    (image,) = loaded.Tensors("sample")
    assert image.step == 2
    assert image.tensor_proto.string_val[2] == PIXEL


SMALLEST = float(np.finfo(np.float32).tiny)


def test_each_kind_of_media_is_shown_or_refused_with_one_warning(make, config, tmp_path, caplog):
    exporter = TensorBoardExporter(config("tensorboard", directory=str(tmp_path / "tb")))
    for number in range(20):
        outcome = exporter.export(make.logs(number, *make.media()))
        assert outcome.rejected == 3
    loaded = load(tmp_path / "tb/demo/run1/p0123456")
    tags = set(loaded.Tags()["tensors"])
    assert tags == {"text", "table", "image", "images/0", "images/1", "audio"}
    assert set(exporter.media) == {"text", "table", "image", "images", "audio", "video"}  # videos: GIFs only
    sound = loaded.Tensors("audio")[0].tensor_proto.string_val[0]
    assert sound[:4] == b"RIFF"
    warnings = [record.getMessage() for record in caplog.records]
    assert [message.split(",")[0] for message in warnings] == [
        "tensorboard cannot show videos that are not GIFs",
        "tensorboard cannot show Plotly figures",
        "tensorboard cannot show HTML documents",
    ]
    gif = make.logs(99, Video("gif", b"GIF89a", "image/gif", 1, 1).event(make.T0, 1))
    assert exporter.export(gif) == Accepted()
    only_html = make.logs(100, *[Html("html", "<p>").event(make.T0 + number, 1) for number in range(20)])
    assert exporter.export(only_html) == Accepted(20, "tensorboard cannot show HTML documents, such as 'html'")
    assert len(caplog.records) == 3


def test_histograms_keep_their_counts(written):
    loaded = load(written / "p0123456")
    for tag, edges, counts in (
        ("explicit", [-1, 0, 1, 2, 30], [1, 1, 2, 1]),
        ("exponential", [-4, -2, -SMALLEST, 0, 1, 2, 4], [1, 0, 2, 0, 3, 4]),
    ):
        (event,) = loaded.Tensors(tag)
        buckets = make_ndarray(event.tensor_proto)
        assert buckets[:, 2].tolist() == counts
        assert buckets[:, 0].tolist() == edges[:-1]
        assert buckets[:, 1].tolist() == edges[1:]
        assert event.step == 2


def test_a_request_that_comes_again_is_there_once(make, config, tmp_path):
    request = make.logged(1, make.rows({1: {"loss": 1.0}, 2: {"loss": 2.0}}))
    for _ in range(2):  # killed before delivery knew
        TensorBoardExporter(config(directory=str(tmp_path / "tb"))).export(request)
    assert scalar_values(load(tmp_path / "tb/demo/run1/p0123456"), "loss") == [(1, 1.0), (2, 2.0)]


def test_names_make_no_paths(make, config, tmp_path):
    exporter = TensorBoardExporter(config(directory=str(tmp_path / "tb")))
    exporter.export(make.logged(1, make.rows({1: {"a": 1.0}}), run="../../../evil", project="..", process="/etc"))
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*tfevents*")]
    assert len(files) == 1
    assert files[0].parts[0] == "tb"
    assert ".." not in files[0].parts


def test_a_full_disk_is_an_outcome(make, config, tmp_path):
    (tmp_path / "file").write_text("")
    exporter = TensorBoardExporter(config(directory=str(tmp_path / "file")))
    assert isinstance(exporter.export(make.logged(1, make.rows({1: {"a": 1.0}}))), Retry)


def test_neither_torch_nor_tensorflow_is_loaded():
    code = "import sys, tensormeter_exporters.tensorboard; print({'torch', 'tensorflow'} & set(sys.modules))"
    done = run_python("-c", code, check=True)
    assert done.stdout.strip() == "set()"
