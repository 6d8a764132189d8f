"""TRL with `tensormeter.wandb` in the place of W&B's package, in another process: a stand-in must come before all imports."""

from pathlib import Path

from integrations.conftest import Experiment
from support.documents import examples
from support.optional import needs_torch
from support.processes import run_python

pytestmark = needs_torch


def test_the_example_of_the_page_records_completions(recorded: Experiment, tmp_path: Path) -> None:
    """About 20 s: a process imports TRL and its frameworks, and trains with GRPO."""
    script = tmp_path / "example.py"
    script.write_text("\n".join(examples("integrations/trl.md")))
    environment = {**recorded.environment, "WANDB_PROJECT": "trl", "HF_HUB_OFFLINE": "1"}
    run_python(script, environment=environment, folder=tmp_path, check=True)
    (stored,) = recorded.runs("trl", 1)
    assert stored.name == "grpo"
    assert len(recorded.points(stored, "train/reward")) == 2
    tables = stored.tables()
    assert {table.key for table in tables} == {"completions"}
    steps = {row[list(table.columns).index("step")] for table in tables for row in table.rows}
    assert steps == {1, 2}  # TRL records the last table again when the training ends
    assert {"prompt", "completion", "count_words", "advantage"} <= set(tables[0].columns)
