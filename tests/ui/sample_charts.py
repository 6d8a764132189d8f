"""A run with tables that have charts, of every kind and in the sizes that are hard to draw."""

import time
from typing import Any

import numpy as np
from sample_runs import Post, Sender

ANIMALS = ("cat", "dog", "fox", "owl")
LONG = ("automobile insurance", "life insurance", "travel", "household contents", "pets", "legal protection")


def _table(columns: list[str], rows: Any, **chart: Any) -> dict[str, Any]:
    return {"columns": columns, "rows": [list(row) for row in rows], "chart": chart}


def _curves(kind: str, step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    rows = []
    for position, name in enumerate(ANIMALS):
        truth = rng.random(400) < 0.4
        score = rng.normal(size=400) + truth * (0.6 + step / 1000 + position * 0.4)
        order = np.argsort(-score)
        hits = np.cumsum(truth[order])
        recall, precision = hits / truth.sum(), hits / np.arange(1, 401)
        false = np.cumsum(~truth[order]) / (~truth).sum()
        pairs = zip(recall, precision, strict=True) if kind == "pr_curve" else zip(false, recall, strict=True)
        rows += [[name, round(x, 5), round(y, 5)] for x, y in list(pairs)[::4]]
    columns = ["class", "recall", "precision"] if kind == "pr_curve" else ["class", "fpr", "tpr"]
    title = "Precision and recall of the classifier" if kind == "pr_curve" else "ROC"
    return _table(columns, rows, kind=kind, x=columns[1], y=columns[2], series="class", title=title)


def _confusion(classes: tuple[str, ...], step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    counts = rng.integers(0, 40, (len(classes),) * 2) + np.diag(rng.integers(100, 100 + step, len(classes)))
    pairs = [(a, p) for a in range(len(classes)) for p in range(len(classes))]
    rows = [[classes[a], classes[p], int(counts[a, p])] for a, p in pairs]
    chart = {"x": "predicted", "y": "actual", "series": "count", "title": "Confusion on the validation set"}
    return _table(["actual", "predicted", "count"], rows, kind="confusion_matrix", **chart)


def charts(step: int) -> dict[str, dict[str, Any]]:
    """Bodies of tables by key."""
    rng = np.random.default_rng(step)
    epochs = np.arange(1, 61)
    losses = [
        [int(e), round(3 * 0.86**e + 0.002, 5), round(3.2 * 0.88**e + 0.02, 5), "NaN" if e == 30 else 0.5]
        for e in epochs
    ]
    many = np.cumsum(rng.normal(size=40_000))
    many[23_456] = 900
    rates = 10 ** rng.uniform(-6, -1, 300)
    scores = 1 / (1 + (np.log10(rates) + 3) ** 2) + rng.normal(scale=0.05, size=300)
    optimizers = rng.choice(["adamw", "sgd", "lion"], 300)
    lengths = [
        *((round(x, 2), "train") for x in rng.gamma(4, 60, 3000)),
        *((round(x, 2), "test") for x in rng.gamma(6, 60, 900)),
    ]
    topics = tuple(f"class {number:02}" for number in range(24))
    return {
        "curves/loss": _table(["epoch", "train", "validation", "target"], losses, kind="line", x="epoch", y=["train", "validation", "target"], title="Loss by epoch"),
        "curves/long": _table(["sample", "value"], [[i, round(v, 3)] for i, v in enumerate(many)], kind="line", x="sample", y="value"),
        "curves/precision": _curves("pr_curve", step),
        "curves/roc": _curves("roc_curve", step),
        "bars/accuracy": _table(["class", "before", "after"], zip(ANIMALS, (0.7, 0.62, 0.4, 0.81), (0.9, 0.88, 0.71, 0.93), strict=True), kind="bar", x="class", y=["before", "after"], title="Accuracy by class"),
        "bars/errors": _table(["product", "errors"], zip(LONG, (42, 17, 66, 8, 23, 31), strict=True), kind="bar", x="product", y="errors", title="Errors by product"),
        "matrix/animals": _confusion(ANIMALS, step),
        "matrix/many": _confusion(topics, step),
        "points/sweep": _table(["learning rate", "score", "optimizer"], [[float(r), round(s, 4), o] for r, s, o in zip(rates, scores, optimizers, strict=True)], kind="scatter", x="learning rate", y="score", series="optimizer", title="Score by learning rate"),
        "points/lengths": _table(["tokens", "split"], lengths, kind="histogram", x="tokens", series="split", title="Length of the samples"),
    }  # fmt: skip


def send_charts(post: Post) -> None:
    """Send a run with charts at three steps."""
    now = time.time_ns()
    sender = Sender(post, "charts", "charts", "evaluation", tensormeter__rank=0)
    sender.event("run.start", now - 9, {"config": {}, "job_type": "eval"})
    for step in (100, 200, 300):
        for key, body in charts(step).items():
            sender.event("table", now + step, body, tensormeter__key=key, tensormeter__step=step)
