"""Media of `SummaryWriter` compared with the pixels, counts and curves that torch's writer stores."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter as TorchWriter

from tensormeter.tensorboard import SummaryWriter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GUIDANCE = {"images": 0, "histograms": 0, "audio": 0, "tensors": 0}


@pytest.fixture
def both(recorded, tmp_path, monkeypatch):
    """Calls a function with torch's writer and with ours. Returns what both have stored."""
    monkeypatch.chdir(tmp_path)

    def both(write):
        with TorchWriter("torch") as writer:
            write(writer)
        with SummaryWriter(f"runs/{tmp_path.name}") as writer:
            write(writer)
        return EventAccumulator("torch", GUIDANCE).Reload(), recorded.run(tmp_path.name)

    return both


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_images_have_the_pixels_that_torch_stores(both):
    generator = np.random.default_rng(0)
    images = {
        "float": (torch.from_numpy(generator.random((3, 9, 10), np.float32)), "CHW"),
        "out of range": (generator.normal(size=(3, 9, 10)) * 2, "CHW"),
        "uint8": (generator.integers(0, 256, (9, 10, 3), np.uint8), "HWC"),
        "gray": (torch.rand(9, 10), "HW"),
        "one channel": (torch.rand(1, 9, 10, dtype=torch.float64), "CHW"),
        "bool": (generator.random((9, 10)) > 0.5, "HW"),
        "mask": (torch.randint(0, 3, (9, 10)), "HW"),
        "gradient": (torch.rand(3, 9, 10, requires_grad=True), "CHW"),
        "brighter than 2": (torch.rand(3, 9, 10) * 100, "CHW"),
        "turned": (torch.rand(10, 9), "WH"),
        "lower case": (torch.rand(9, 10, 3), "hwc"),
    }

    def write(writer):
        for tag, (image, dataformats) in images.items():
            writer.add_image(tag, image, 4, dataformats=dataformats)

    torchs, run = both(write)
    ours = {image.key: image for image in run.images()}
    assert ours.keys() == images.keys()
    for tag, image in ours.items():
        (event,) = torchs.Images(tag)
        assert image.step == event.step == 4
        np.testing.assert_array_equal(pixels(image.read()), pixels(event.encoded_image_string), err_msg=tag)


def test_a_batch_of_images_is_the_grid_that_torch_draws(both):
    batch = torch.rand(5, 3, 8, 10)

    def write(writer):
        writer.add_images("batch", batch, 1)
        writer.add_images("last", batch.permute(0, 2, 3, 1), 2, dataformats="NHWC")

    torchs, run = both(write)
    for key in ("batch", "last"):
        (event,) = torchs.Images(key)
        tiles = [pixels(image.read()) for image in run.images(key)]
        np.testing.assert_array_equal(np.hstack(tiles), pixels(event.encoded_image_string))


def test_of_a_large_batch_the_first_images_are_recorded(both, caplog):
    _, run = both(lambda writer: writer.add_images("large", torch.zeros(1, 300, 2, 2), 0, dataformats="CNHW"))
    assert len(run.images("large")) == 256
    assert "only the first 256 of 300 images are recorded" in caplog.text


def test_boxes_are_drawn_like_torchs(both):
    image, boxes = torch.rand(3, 60, 60), torch.tensor([[2.0, 3, 30, 40], [10, 10, 50, 50]])

    def write(writer):
        writer.add_image_with_boxes("boxes", image, boxes, 0)
        writer.add_image_with_boxes("labels", image, boxes, 0, labels=["cat", "dog"])
        writer.add_image_with_boxes("half", image, boxes, 0, rescale=0.5)

    torchs, run = both(write)
    for recorded_image in run.images():
        (event,) = torchs.Images(recorded_image.key)
        np.testing.assert_array_equal(pixels(recorded_image.read()), pixels(event.encoded_image_string))


def test_figures_are_rendered_and_closed(both):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    def write(writer):
        figures = [plt.subplots(figsize=(2, 1))[0] for _ in range(3)]
        writer.add_figure("one", figures[0], 0)
        writer.add_figure("two", figures[1:], 0)
        assert not plt.get_fignums()
        kept = plt.figure(figsize=(2, 1))
        writer.add_figure("kept", kept, 0, close=False)
        assert plt.get_fignums()
        plt.close(kept)

    torchs, run = both(write)
    for key, number in {"one": 1, "two": 2, "kept": 1}.items():
        tiles = [pixels(image.read()) for image in run.images(key)]
        assert len(tiles) == number
        (event,) = torchs.Images(key)
        np.testing.assert_array_equal(np.hstack(tiles), pixels(event.encoded_image_string))


def test_histograms_have_the_counts_that_torch_stores(both):
    values = np.random.default_rng(1).normal(size=1000)

    def write(writer):
        writer.add_histogram("exponential", torch.from_numpy(values), 0)
        writer.add_histogram("auto", values, 1, bins="auto")
        writer.add_histogram("edges", torch.from_numpy(values), 2, bins=np.array([-10.0, -1, 0, 1, 10]))
        writer.add_histogram("merged", values, 3, bins=100, max_bins=7)
        counts, limits = np.histogram(values, bins=20)
        writer.add_histogram_raw(
            "raw",
            values.min(),
            values.max(),
            1000,
            values.sum(),
            values @ values,
            limits[1:].tolist(),
            counts.tolist(),
            4,
        )

        writer.add_histogram_raw("no minimum", math.nan, 3.0, 6, 0.0, 0.0, [1.0, 2.0, 3.0], [3, 2, 1], 5)

    torchs, run = both(write)
    assert run.histograms("no minimum").count[0] == 6
    for step, key in enumerate(("exponential", "auto", "edges", "merged", "raw")):
        ours = run.histograms(key)
        (event,) = torchs.Histograms(key)
        assert ours.x.tolist() == [step]
        assert ours.count[0] == event.histogram_value.num == 1000
        if key == "exponential":
            np.testing.assert_allclose([ours.min[0], ours.max[0]], [values.min(), values.max()])
            np.testing.assert_allclose(ours.sum[0], values.sum())
        else:
            theirs = [int(count) for count in event.histogram_value.bucket if count]
            assert [count for count in ours.counts[0].tolist() if count] == theirs, key


def test_videos_and_audio_clips(both, recorded):
    video = torch.randint(0, 256, (2, 3, 3, 8, 10), dtype=torch.uint8)
    sound = torch.sin(torch.arange(800) / 5)[None]

    def write(writer):
        writer.add_audio("sound", sound, 2, sample_rate=8000)
        if isinstance(writer, SummaryWriter):  # torch needs a version of moviepy that is not available any more
            writer.add_video("video", video, 1, fps=8)
            writer.add_video("floats", torch.rand(1, 3, 1, 8, 10), 1)

    torchs, run = both(write)
    import wave

    (clip,), (event,) = run.audio(), torchs.Audio("sound")
    with wave.open(io.BytesIO(clip.read())) as ours, wave.open(io.BytesIO(event.encoded_audio_string)) as theirs:
        assert ours.getparams() == theirs.getparams()
        difference = np.frombuffer(ours.readframes(800), "<i2").astype(int) - np.frombuffer(
            theirs.readframes(800), "<i2"
        )
        assert np.abs(difference).max() <= 1  # rounded here, truncated there
    videos = {clip.key: clip.body for clip in run.videos()}
    assert (videos["video"]["width"], videos["video"]["height"], videos["video"]["frames"]) == (20, 8, 3)
    assert videos["floats"]["frames"] == 3


def test_texts_are_markdown(both):
    torchs, run = both(lambda writer: writer.add_text("hyper/parameters", "|a|b|\n|-|-|\n|1|2|", 3))
    (text,) = run.texts()
    (event,) = torchs.Tensors("hyper/parameters/text_summary")
    assert (text.key, text.step, text.text) == ("hyper/parameters", 3, event.tensor_proto.string_val[0].decode())
    assert text.body["content_type"] == "text/markdown"


def test_pr_curves_are_tables_with_torchs_numbers(both):
    generator = np.random.default_rng(2)
    labels, predictions = generator.integers(0, 2, 100), generator.random(100)
    counts = np.arange(60).reshape(6, 10)

    def write(writer):
        writer.add_pr_curve("curve", labels, torch.from_numpy(predictions), 1)
        writer.add_pr_curve(
            "weighted", torch.from_numpy(labels) > 0, predictions, 1, num_thresholds=11, weights=predictions
        )
        writer.add_pr_curve_raw("raw", *counts, global_step=2, num_thresholds=10)

    torchs, run = both(write)
    for key in ("curve", "weighted", "raw"):
        (table,), (event,) = run.tables(key), torchs.Tensors(key)
        proto = event.tensor_proto
        expected = np.array(proto.float_val).reshape([dim.size for dim in proto.tensor_shape.dim])
        rows = np.array(table.rows)
        assert table.columns[1:] == [
            "true_positives", "false_positives", "true_negatives", "false_negatives", "precision", "recall",
        ]  # fmt: skip
        np.testing.assert_allclose(rows[:, 1:].T, expected, rtol=1e-6)
        assert (rows[0, 0], rows[-1, 0]) == (0, 1)
        assert table.step == event.step


def test_tensors_become_distributions(both):
    _, run = both(lambda writer: writer.add_tensor("x", torch.tensor([1.0, 2.0, 3.0]), 0))
    assert run.histograms("x").count.tolist() == [3]
