"""The callback for Transformers, in real trainings of a tiny model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.documents import examples
from support.optional import needs_torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tensormeter  # noqa: E402
from integrations.conftest import Experiment  # noqa: E402
from tensormeter.integrations.huggingface import TensormeterCallback  # noqa: E402

pytestmark = [
    needs_torch,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

ROWS = [{"input_ids": torch.arange(8) % 4, "labels": torch.arange(8) % 4}] * 8
ONCE = {"total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture(autouse=True)
def _finish_all() -> Any:
    yield
    while tensormeter.run is not None:
        tensormeter.finish()


@pytest.fixture
def make_trainer(recorded: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes Trainers of a tiny GPT-2 on a CPU."""
    monkeypatch.chdir(tmp_path)

    def make_model(trial: object = None) -> Any:
        transformers.set_seed(0)
        sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 16, "n_positions": 8}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))

    def make(callback: TensormeterCallback | None = None, *, searches: bool = False, **options: Any) -> Any:
        defaults = {"max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
        common = {"use_cpu": True, "disable_tqdm": True, "report_to": "tensormeter" if callback is None else "none"}
        arguments = transformers.TrainingArguments(str(tmp_path / "output"), **{**defaults, **common, **options})
        return transformers.Trainer(
            None if searches else make_model(),
            arguments,
            model_init=make_model if searches else None,
            train_dataset=ROWS,
            eval_dataset=ROWS[:2],
            callbacks=None if callback is None else [callback],
        )

    return make


def expected_points(history: list[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Points of the Trainer's own history, by the names of W&B's callback. A later value of a step replaces the earlier."""
    points: dict[str, dict[int, float]] = {}
    for row in history:
        for name, value in row.items():
            if name not in ONCE and name != "step":
                full = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                points.setdefault(full, {})[row["step"]] = value
    return {name: sorted(values.items()) for name, values in points.items()}


def test_a_training_by_name_is_recorded_with_what_follows_it(
    recorded: Experiment, make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(run_name="tiny", eval_strategy="steps", eval_steps=3)
    trainer.train()
    run = tensormeter.run
    assert run is not None
    assert (run.project, run.name, run.finished) == ("huggingface", "tiny", False)
    assert trainer.evaluate()["eval_loss"] > 0
    test_loss = trainer.predict(ROWS[:2]).metrics["test_loss"]
    run.finish()

    (stored,) = recorded.runs("huggingface", 1)
    expected = expected_points(trainer.state.log_history)
    assert len(expected["train/loss"]) == 2
    assert len(expected["eval/loss"]) == 2
    points = {name: dict(recorded.points(stored, name)) for name in expected}
    assert points == {name: dict(values) for name, values in expected.items()}
    assert recorded.points(stored, "test/loss") == [(4, test_loss)]
    totals = {name: value for row in trainer.state.log_history for name, value in row.items() if name in ONCE}
    assert totals.keys() == ONCE
    assert {name: recorded.last(stored, name) for name in ONCE} == totals
    config = run.config.as_dict()
    assert config["model_type"] == "gpt2"
    assert config["logging_steps"] == 2
    assert config["model/num_parameters"] == trainer.model.num_parameters()


def test_the_run_of_the_script_is_used_and_not_finished(recorded: Experiment, make_trainer: Callable[..., Any]) -> None:
    with tensormeter.init("own", "mine", {"seed": 7}) as run:
        make_trainer(run_name="other").train()
        assert tensormeter.run is run
        assert run.config.seed == 42  # of the arguments
    (stored,) = recorded.runs("own", 1)
    assert stored.name == "mine"
    assert len(recorded.points(stored, "train/loss")) == 2


@pytest.mark.parametrize(
    ("stated", "variable", "project"),
    [("mine", "other", "mine"), (None, "other", "other"), (None, None, "huggingface")],
)
def test_the_project_is_the_most_explicit_one(
    recorded: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    stated: str | None,
    variable: str | None,
    project: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("TENSORMETER_PROJECT", variable)
    callback = TensormeterCallback(mode="disabled")
    arguments = transformers.TrainingArguments("output", use_cpu=True, **({"project": stated} if stated else {}))
    callback.on_train_begin(arguments, transformers.TrainerState(), transformers.TrainerControl())
    assert callback.run is not None
    assert callback.run.project == project


def test_each_trial_of_a_search_is_a_run(recorded: Experiment, make_trainer: Callable[..., Any]) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    callback = TensormeterCallback("search")
    trainer = make_trainer(callback, searches=True, run_name="sweep", max_steps=2, eval_strategy="steps", eval_steps=2)
    with tensormeter.init("script") as own:
        trainer.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3)},
            n_trials=2,
            backend="optuna",
            hp_name=lambda trial: f"trial-{trial.number}",
        )
        assert callback.run is not None
        callback.run.finish()
        assert tensormeter.run is own
    runs = recorded.runs("search", 2)
    assert [run.name for run in runs] == ["trial-0", "trial-1"]
    assert {run.group for run in runs} == {"sweep"}
    assert all(len(recorded.points(run, "train/loss")) == 1 for run in runs)


def test_a_training_after_a_search_is_another_run(make_trainer: Callable[..., Any]) -> None:
    callback = TensormeterCallback(mode="disabled")
    trainer = make_trainer(callback, max_steps=1)
    state = transformers.TrainerState(is_hyper_param_search=True)
    callback.on_train_begin(trainer.args, state, transformers.TrainerControl(), trainer.model)
    trial = callback.run
    assert trial is not None
    trainer.train()
    assert trial.finished
    assert callback.run is not trial


def test_a_second_training_is_a_second_run_but_an_evaluation_is_not(make_trainer: Callable[..., Any]) -> None:
    first, second, third = (TensormeterCallback(mode="disabled") for _ in range(3))
    make_trainer(first, max_steps=1).train()
    make_trainer(second, max_steps=1).train()
    make_trainer(third).evaluate()
    assert first.run is not second.run
    assert third.run is second.run


def test_a_finished_training_does_not_fail_with_a_later_one(
    recorded: Experiment, make_trainer: Callable[..., Any]
) -> None:
    """Each training finishes the run of the one before, and a later evaluation of an earlier training continues its run."""
    callbacks = [TensormeterCallback("folds", name=f"fold {fold}") for fold in range(2)]
    trainers = [make_trainer(callback, max_steps=1) for callback in callbacks]
    runs = []
    for trainer, callback in zip(trainers, callbacks, strict=True):
        trainer.train()
        runs.append(callback.run)
    assert runs[0].finished
    assert not runs[1].finished
    result = trainers[0].evaluate()
    callbacks[0].run.finish()
    first, second = recorded.runs("folds", 2)
    assert (first.name, first.state, second.state) == ("fold 0", "finished", "finished")
    assert first.id == runs[0].id
    assert recorded.points(first, "eval/loss") == [(1, result["eval_loss"])]


def test_two_callbacks_of_a_trainer_record_once(
    recorded: Experiment, make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    callback = TensormeterCallback("twice", name="stated")
    trainer = make_trainer(callback, report_to="tensormeter", logging_steps=1)
    with caplog.at_level("WARNING", "tensormeter"):
        trainer.train()
    assert callback.run is not None
    callback.run.finish()
    (stored,) = recorded.runs("twice", 1)
    assert [step for step, _ in recorded.points(stored, "train/loss")] == [1, 2, 3, 4]
    assert len([record for record in caplog.records if "two TensormeterCallbacks" in record.getMessage()]) == 1


@pytest.mark.parametrize("is_open", [True, False])
def test_a_resumed_training_continues_its_run(
    recorded: Experiment, make_trainer: Callable[..., Any], tmp_path: Path, is_open: bool
) -> None:
    project = f"resumed-{is_open}"
    callback = TensormeterCallback(project, log_checkpoints=True)
    make_trainer(callback, save_strategy="steps", save_steps=2).train()
    run = callback.run
    assert run is not None
    if not is_open:
        run.finish()
    resumed = TensormeterCallback(project)
    trainer = make_trainer(resumed, max_steps=6, save_strategy="steps", save_steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert resumed.run is not None
    assert resumed.run.id == run.id
    assert (resumed.run is run) == is_open
    other = TensormeterCallback(project, continue_runs=False, mode="disabled")
    other.on_train_begin(trainer.args, trainer.state, transformers.TrainerControl())
    assert other.run is not None
    assert other.run.id != run.id
    resumed.run.finish()

    (stored,) = recorded.runs(project, 1)
    assert [step for step, _ in recorded.points(stored, "train/loss")][-1] == 6
    artifacts = {artifact.place for artifact in stored.artifacts()}
    assert {str(tmp_path / "output" / f"checkpoint-{step}") for step in (2, 4)} <= artifacts


def test_a_checkpoint_without_a_run_can_be_resumed(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    make_trainer(TensormeterCallback(mode="disabled"), save_strategy="steps", save_steps=2).train()
    file = tmp_path / "output" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"].pop("tensormeter")
    file.write_text(json.dumps(state))
    callback = TensormeterCallback(mode="disabled")
    options = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    make_trainer(callback, **options).train(resume_from_checkpoint=str(file.parent))
    assert callback.run is not None


def test_ranks_but_the_first_record_nothing(make_trainer: Callable[..., Any]) -> None:
    callback = TensormeterCallback()
    trainer = make_trainer(callback)
    state = transformers.TrainerState(is_world_process_zero=False, global_step=1)
    callback.on_train_begin(trainer.args, state, transformers.TrainerControl(), trainer.model)
    callback.on_log(trainer.args, state, None, {"loss": 1.0})
    callback.on_predict(trainer.args, state, None, {"test_loss": 1.0})
    callback.on_save(trainer.args, state, None)
    assert callback.run is None
    assert tensormeter.run is None


def test_a_model_that_cannot_count_its_parameters_has_a_configuration(make_trainer: Callable[..., Any]) -> None:
    callback = TensormeterCallback(mode="disabled")
    trainer = make_trainer(callback, max_steps=1)
    trainer.model.num_parameters = lambda: 1 / 0
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert callback.run is not None
    assert callback.run.config["max_steps"] == 1


def test_a_misspelt_option_is_refused_before_the_training() -> None:
    with pytest.raises(TypeError, match="tag"):
        TensormeterCallback(tag=["a"])


def test_the_examples_of_the_page_run(recorded: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORMETER_PROJECT", "page")
    names: dict[str, Any] = {}
    for example in examples("integrations/transformers.md"):
        exec(example, names)
    while tensormeter.run is not None:
        tensormeter.finish()
    runs = recorded.runs("page", 2)
    assert {run.name for run in runs} == {"tiny"}
    steps = [[step for step, _ in recorded.points(run, "step_loss")] for run in runs if run.series("step_loss")]
    assert steps == [[1, 2, 3, 4]]
