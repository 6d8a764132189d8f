"""Makes a project with trackio itself, in the folder `TRACKIO_DIR`."""

import warnings

import numpy as np
import pandas as pd
import trackio
from PIL import Image
from trackio.sqlite_storage import SQLiteStorage

ROWS = 40


def main():
    config = {"lr": 0.1, "model": {"layers": 3}}
    trackio.init(
        project="my project", name="first", config=config, group="sweep", auto_log_gpu=False, auto_log_cpu=False
    )
    for step in range(ROWS):
        values = {"loss": 1 / (step + 3), "count": (1 << 53) + step, "train": {"acc": step / 7}, "done": step > 3}
        if step == 2:
            values |= {"odd": float("nan"), "odder": float("-inf"), "phase": "warm-up"}
        trackio.log(values, step=step * 10)
    pixels = np.zeros((12, 9, 3), np.uint8)
    trackio.log({"image": trackio.Image(pixels, caption="a caption")}, step=5)
    trackio.log({"histogram": trackio.Histogram(np_histogram=([1, 2, 3], [0.0, 1.0, 2.0, 4.0]))}, step=6)
    frame = pd.DataFrame({"a": [1.0, 2.5], "picture": [trackio.Image(pixels), trackio.Image(pixels)]})
    trackio.log({"table": trackio.Table(dataframe=frame)}, step=7)
    trackio.log({"note": trackio.Markdown("# hi"), "page": trackio.Html("<p>x</p>")}, step=8)
    trackio.log({"sound": trackio.Audio(np.zeros(800, np.int16), sample_rate=8000)}, step=9)
    trackio.log({"trace": trackio.Trace([{"role": "user", "content": "hi"}])}, step=11)
    trackio.log({"list": [1, 2, 3]}, step=12)
    trackio.log_system({"gpu": 0.5})
    trackio.alert("too slow", text="look", level=trackio.AlertLevel.WARN)
    artifact = trackio.Artifact("weights", type="model")
    Image.fromarray(pixels).save("weights.png")
    artifact.add_file("weights.png")
    trackio.log_artifact(artifact)
    trackio.finish()
    trackio.init(project="my project", name="second", auto_log_gpu=False, auto_log_cpu=False)
    trackio.log({"loss": 1})
    trackio.finish()
    SQLiteStorage._dataset_import_attempted = True  # as when the project is synchronized with a dataset
    SQLiteStorage.export_to_parquet()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
