"""Trials of Optuna become runs."""

import signal
import threading

import optuna
import pytest

import tensormeter
from support.documents import examples
from support.forks import call_in_child
from support.processes import run_python
from tensormeter.integrations.optuna import TensormeterCallback

optuna.logging.set_verbosity(optuna.logging.ERROR)


def sampler() -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=0)


def test_trials_of_an_untracked_objective_become_runs(recorded):
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.set_user_attr("folds", [1, 2])
        for step in range(3):
            trial.report(x / (step + 1), step)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError("the loss diverged")
        return x**2

    callback = TensormeterCallback(project="untracked", tags=["sweep"])
    study = optuna.create_study(study_name="parabola", sampler=sampler())
    study.optimize(objective, n_trials=3, callbacks=[callback], catch=ValueError)
    callback.wait()
    runs = recorded.runs("untracked", 3)
    assert [run.name for run in runs] == ["trial 0", "trial 1", "trial 2"]
    assert [run.state for run in runs] == ["finished", "finished", "failed"]
    assert {(run.group, *run.tags) for run in runs} == {("parabola", "sweep")}
    for run, trial in zip(runs, study.trials, strict=True):
        assert run.config["x"] == trial.params["x"]
        described = {"study": "parabola", "trial": trial.number, "user_attrs": {"folds": [1, 2]}}
        assert run.config["optuna"] == described
        assert recorded.points(run, "intermediate_value") == sorted(trial.intermediate_values.items())
        assert recorded.last(run, "optuna/state") == trial.state.name.lower()
    assert recorded.last(runs[0], "value") == study.trials[0].value
    assert recorded.last(runs[1], "value") == study.trials[1].value == study.trials[1].intermediate_values[2]


def test_tracked_trials_in_threads_are_recorded_apart(recorded):
    both = threading.Barrier(2, timeout=60)
    callback = TensormeterCallback(project="tracked")

    @callback.track
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_int("x", 0, 1000)
        both.wait()
        for step in range(5):
            tensormeter.log({"loss": x + step}, step)
            both.wait()
        return x, -x

    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler())
    study.optimize(objective, n_trials=4, n_jobs=2, callbacks=[callback])
    callback.wait()
    assert tensormeter.run is None
    for run, trial in zip(recorded.runs("tracked", 4), study.trials, strict=True):
        x = trial.params["x"]
        assert run.config["x"] == x
        assert recorded.points(run, "loss") == [(step, x + step) for step in range(5)]
        assert (recorded.last(run, "value_0"), recorded.last(run, "value_1")) == (x, -x)


def test_a_forked_process_goes_on_with_the_callback_of_its_parent(recorded):
    callback = TensormeterCallback(project="forked")

    def optimize() -> None:
        study = optuna.create_study(sampler=sampler())
        study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=2, callbacks=[callback])
        callback.wait()

    optimize()

    def optimize_in_child() -> None:
        signal.alarm(30)
        optimize()

    call_in_child(optimize_in_child)
    assert {run.state for run in recorded.runs("forked", 4)} == {"finished"}


def test_exceptions_that_end_the_study_are_recorded(recorded, monkeypatch):
    monkeypatch.setenv("TENSORMETER_RUN_ID", "one-for-all")
    monkeypatch.setenv("TENSORMETER_PROJECT", "from-environment")
    callback = TensormeterCallback()

    @callback.track
    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("fails", [False, True]):
            raise RuntimeError("out of memory")
        return 1.0

    study = optuna.create_study(study_name="errors", sampler=sampler())
    for fails in (False, True, True):
        study.enqueue_trial({"fails": fails})
    study.optimize(objective, n_trials=1, callbacks=[callback])
    study.optimize(objective, n_trials=1, callbacks=[callback], catch=RuntimeError)
    with pytest.raises(RuntimeError, match="out of memory"):
        study.optimize(objective, n_trials=1, callbacks=[callback])
    callback.wait()
    runs = recorded.runs("from-environment", 3)
    assert [run.state for run in runs] == ["finished", "failed", "failed"]
    assert [run.config["fails"] for run in runs] == [False, True, True]
    assert "out of memory" in runs[2].events("tensormeter.run.end")[0].body["traceback"]


def test_the_script_run_receives_a_row_per_trial(recorded):
    callback = TensormeterCallback(project="rows")
    study = optuna.create_study(sampler=sampler())
    with tensormeter.init(project="rows", name="script") as script:
        study.optimize(lambda trial: trial.suggest_float("x", -1, 1), n_trials=3, callbacks=[callback])
        assert tensormeter.run is script
    callback.wait()
    (run,) = (run for run in recorded.runs("rows", 4) if run.name == "script")
    values = [trial.value for trial in study.trials]
    assert recorded.points(run, "optuna/value") == list(enumerate(values))
    assert recorded.points(run, "optuna/best_value") == [(index, min(values[: index + 1])) for index in range(3)]


def test_arguments_that_would_be_the_same_for_all_trials_are_refused():
    with pytest.raises(TypeError, match="'name' would be the same for all trials"):
        TensormeterCallback(name="trial")
    with pytest.raises(TypeError, match="unexpected keyword argument 'entity'"):
        TensormeterCallback(entity="team")
    with pytest.raises(tensormeter.SettingsError, match="tags"):
        TensormeterCallback(tags=5)
    with pytest.raises(tensormeter.SettingsError, match="buffer_bytes"):
        TensormeterCallback(settings={"buffer_bytes": "many"})


def test_a_failing_adapter_warns_once_and_the_study_goes_on(recorded, monkeypatch, caplog):
    monkeypatch.setattr("tensormeter.integrations.shield._warned", set())
    monkeypatch.setattr("tensormeter.init", lambda **arguments: 1 / 0)
    callback = TensormeterCallback()
    study = optuna.create_study(sampler=sampler())
    study.optimize(callback.track(lambda trial: trial.suggest_float("x", 0, 1)), n_trials=3, callbacks=[callback])
    assert len(study.trials) == 3
    assert caplog.text.count("TensormeterCallback._start failed, so parts of the run are not recorded") == 1


def test_examples_of_the_page_run(experiment):
    for example in examples("integrations/optuna.md"):
        run_python("-c", example, environment=experiment.environment, check=True)
    runs = experiment.runs("digits", 8)
    assert {run.state for run in runs} == {"finished"}
    assert all(experiment.points(run, "loss") for run in runs)
