"""Makes runs with MLflow itself: `python mlflow_sample.py URI TRUTH [URI TRUTH]`. A truth is what MLflow's client reads back."""

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

ROWS = 60


def main(uri, truth):
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    mlflow.set_experiment("exp one")
    rng = np.random.default_rng(1)
    with mlflow.start_run(run_name="parent", description="some notes", tags={"release": "1.2", "keep": "true"}) as run:
        mlflow.set_tag("mlflow.source.git.commit", "a" * 40)
        mlflow.log_params({"lr": 0.001, "layers": 3, "name": "x", "flag": True, "none": None, "betas": (0.9, 0.99)})
        mlflow.log_params({"version": "1.10", "model/width": 64})
        start = client.get_run(run.info.run_id).info.start_time
        metrics = [  # three steps in each millisecond, as in a fast loop
            mlflow.entities.Metric(name, float(value), start + step // 3, step)
            for step in range(ROWS)
            for name, value in zip(("train/loss", "acc"), rng.random(2), strict=True)
        ]
        client.log_batch(run.info.run_id, metrics)
        for step, value in enumerate((float("nan"), float("inf"), float("-inf"), 1e-300, -0.0, 2.0**53, 1e308, -1e300)):
            mlflow.log_metric("odd", value, step=step - 2)
        mlflow.log_metric("system/cpu_utilization_percentage", 12.5, step=0)
        mlflow.log_image(np.zeros((16, 12, 3), np.uint8), key="dogs/a", step=3)
        mlflow.log_image(Image.new("RGB", (10, 12)), "static/img.png")
        mlflow.log_table({"a": [1, 2], "b": ["x", "y"]}, "tables/t.json")
        mlflow.log_table({"q": ["d"], "image": [Image.new("RGB", (9, 9))]}, "pictures.json")
        mlflow.log_text("hello", "texts/a.txt")
        mlflow.log_dict({"a": 1}, "d.json")
        mlflow.log_text("<p>hi</p>", "page.html")
        mlflow.log_text("x,y\n1,0.5\n2,nan\n", "rows.csv")
        mlflow.log_figure(go.Figure(go.Scatter(x=[1], y=[2])), "figure.html")
        weights = Path(truth).with_name("weights.bin")
        weights.write_bytes(b"\0" * 1000)
        mlflow.log_artifact(str(weights), "checkpoints")
        model = Path(truth).with_name("MLmodel")
        model.write_text("flavors: {}")
        mlflow.log_artifact(str(model), "my_model")
        mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"a": [1.0]}), name="data"), context="training")
        with mlflow.start_run(run_name="child", nested=True):
            mlflow.log_metric("acc", 0.5, step=0)
        with mlflow.start_run(run_name="gone", nested=True) as gone:
            pass
        client.delete_run(gone.info.run_id)
    killed = client.create_run(run.info.experiment_id, run_name="killed")
    client.set_terminated(killed.info.run_id, "KILLED")
    client.create_run(run.info.experiment_id, run_name="vanished")
    document = {}
    for known in client.search_runs([run.info.experiment_id]):
        histories = {key: client.get_metric_history(known.info.run_id, key) for key in known.data.metrics}
        document[known.info.run_id] = {
            "name": known.info.run_name,
            "metrics": {
                key: sorted((point.step, point.timestamp, point.value.hex()) for point in points)
                for key, points in histories.items()
            },
        }
    Path(truth).write_text(json.dumps(document))


if __name__ == "__main__":
    for arguments in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(*arguments)
