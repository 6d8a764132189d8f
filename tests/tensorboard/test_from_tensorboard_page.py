"""The examples of the page for users of TensorBoard."""

import pytest

from support.documents import examples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_examples_run_and_record(recorded):
    for example in examples("from-tensorboard.md"):
        exec(example, {"__name__": "__main__"})
    runs = {run.name: run for run in recorded.client.runs()}
    assert len(runs) == 3
    assert len(recorded.points("mnist/lr-0.1")["train/loss"]) == 100
    assert recorded.points("next to the event files") == {"train/loss": [(0, 0.5)]}
    (own,) = (run for run in runs.values() if run.project == "mnist" and run.name != "next to the event files")
    assert own.config == {"lr": 0.1}
    assert recorded.points(own) == {"train/loss": [(0, 0.5)]}
    assert [text.text for text in own.texts()] == ["**bold** Markdown"]
