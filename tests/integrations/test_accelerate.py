"""The tracker for Accelerate."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.documents import examples
from support.optional import needs_torch

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

import tensormeter  # noqa: E402
from integrations.conftest import Experiment  # noqa: E402
from tensormeter.integrations.accelerate import TensormeterTracker  # noqa: E402

pytestmark = needs_torch


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    yield
    while tensormeter.run is not None:
        tensormeter.finish()
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_a_tracker_by_name_records_and_finishes_its_run(recorded: Experiment) -> None:
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensormeter")
    kwargs = {"tensormeter": {"name": "first", "tags": ["a"]}}
    accelerator.init_trackers("by-name", {"lr": 0.1, "nested": {"depth": 2}}, kwargs)
    loss = torch.tensor(0.5, requires_grad=True)
    accelerator.log({"loss": loss, "note": "text", "train": {"accuracy": 0.25}}, step=3)
    tracker = accelerator.get_tracker("tensormeter")
    tracker.log_images({"batch": np.zeros((2, 8, 8, 3), np.uint8), "list": [np.zeros((8, 8), np.uint8)]}, step=3)
    tracker.log_table("rows", columns=["x", "y"], data=[[1, 2]], step=3)
    tracker.log_table("frame", dataframe=pd.DataFrame({"x": [1]}), step=3)
    run = accelerator.get_tracker("tensormeter", unwrap=True)
    assert isinstance(run, tensormeter.Run)
    accelerator.end_training()

    (stored,) = recorded.runs("by-name", 1)
    assert (stored.name, list(stored.tags), stored.state) == ("first", ["a"], "finished")
    assert recorded.points(stored, "loss") == [(3, 0.5)]
    assert recorded.points(stored, "train/accuracy") == [(3, 0.25)]
    assert run.config.as_dict() == {"lr": 0.1, "nested": {"depth": 2}}
    assert {image.key for image in stored.images()} == {"batch", "list"}
    assert sorted(table.key for table in stored.tables()) == ["frame", "rows"]


def test_the_scripts_run_is_used_and_not_finished(recorded: Experiment) -> None:
    with tensormeter.init("script", mode="disabled") as run:
        accelerator = accelerate.Accelerator(cpu=True, log_with=TensormeterTracker())
        accelerator.init_trackers("other")
        assert accelerator.get_tracker("tensormeter", unwrap=True) is run
        accelerator.end_training()
        assert not run.finished


def test_creating_a_tracker_starts_nothing() -> None:
    tracker = TensormeterTracker("project", tags=["a"])
    assert tracker.tracker is None
    assert PartialState._shared_state == {}
    with pytest.raises(TypeError, match="tag"):
        TensormeterTracker("project", tag=["a"])


def test_only_the_main_process_records(recorded: Experiment) -> None:
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensormeter")
    second_of_two = {"process_index": 1, "num_processes": 2, "distributed_type": DistributedType.MULTI_CPU}
    PartialState._shared_state.update(second_of_two)
    accelerator.init_trackers("two-processes", {"lr": 0.1})
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.get_tracker("tensormeter").log({"loss": 0.5})
    tracker = TensormeterTracker("two-processes")
    tracker.start()
    tracker.store_init_configuration({"lr": 0.1})
    tracker.log({"loss": 0.5}, 0)
    tracker.log_images({"picture": np.zeros((8, 8), np.uint8)})
    tracker.log_table("rows", columns=["x"], data=[[1]])
    tracker.finish()
    assert tracker.tracker is None
    assert tensormeter.run is None


def test_the_examples_of_the_page_run(recorded: Experiment) -> None:
    names: dict[str, Any] = {}
    for example in examples("integrations/accelerate.md"):
        exec(example, names)
    (stored,) = recorded.runs("page", 1)
    assert [step for step, _ in recorded.points(stored, "loss")] == [0, 1, 2]
