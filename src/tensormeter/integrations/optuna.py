"""Optuna: each trial of a study is a run."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

import tensormeter
from tensormeter import Run
from tensormeter.integrations.shield import shielded
from tensormeter.integrations.trial_runs import TrialRuns

__all__ = ["TensormeterCallback"]

_R = TypeVar("_R")
_Key = tuple[str, int]

_PREFIX: Final = "optuna"
"""Prefix of the names that do not come from the script."""


class TensormeterCallback:
    """Callback for `study.optimize(callbacks=[...])` that records each trial as a run.

    The run's group is the study's name, its configuration the trial's parameters, and its summary the trial's values. Values
    from `trial.report` become points when the trial ends. A failed trial is a failed run. Trials in parallel threads
    (`n_jobs`) are recorded apart.

    If the script itself has a current run, this run receives a row per trial, with the trial's values and the best value.

    Decorate the objective with `track` to record more during the trial. Call `wait` to wait for delivery. Otherwise, the
    process waits when it ends.
    """

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: Arguments of `tensormeter.init` for all runs, such as `project` and `tags`. Default project: `optuna`.

        Raises:
            TypeError, SettingsError: See `TrialRuns`.
        """
        self._runs = TrialRuns(options, {"project": "optuna"})
        self._failed: set[_Key] = set()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record a trial that has ended. Optuna calls this after each trial, in the trial's thread."""
        self._record(study, trial)
        self._record_in_script_run(study, trial)

    def track(self, objective: Callable[[Trial], _R]) -> Callable[[Trial], _R]:
        """Decorate an objective, so that its run begins with the trial and is the current run during the trial.

        `tensormeter.log` and the other functions of the package then act on the trial's run. Each trial needs one call of
        the decorated function. Pass this object to `study.optimize(callbacks=[...])`, too.
        """

        @functools.wraps(objective)
        def call(trial: Trial) -> _R:
            run = self._start(trial.study, trial)
            if run is None:
                return objective(trial)
            try:
                with run.as_current():
                    return objective(trial)
            except optuna.TrialPruned:
                raise
            except BaseException as error:  # Optuna calls no callback for exceptions that it does not catch
                self._fail(trial, error)
                raise

        return call

    def wait(self) -> None:
        """Wait until the data of all finished trials is delivered, or on disk if the receiver is unreachable."""
        self._runs.wait()

    @shielded
    def _start(self, study: optuna.Study, trial: Trial | FrozenTrial) -> Run:
        return self._runs.start(_key(study, trial), f"trial {trial.number}", group=study.study_name)

    @shielded
    def _fail(self, trial: Trial, error: BaseException) -> None:
        study, key = trial.study, _key(trial.study, trial)
        self._failed.add(key)
        if run := self._runs.get(key):
            _describe(run, study, study.get_trials(deepcopy=False)[trial.number], TrialState.FAIL)
        self._runs.finish(key, error=error)

    @shielded
    def _record(self, study: optuna.Study, trial: FrozenTrial) -> None:
        key = _key(study, trial)
        if key in self._failed:
            self._failed.discard(key)
            return
        run = self._runs.get(key) or self._start(study, trial)
        if run is not None:
            _describe(run, study, trial, trial.state)
            self._runs.finish(key, "failed" if trial.state is TrialState.FAIL else "finished")

    @shielded
    def _record_in_script_run(self, study: optuna.Study, trial: FrozenTrial) -> None:
        run = tensormeter.run
        if run is None or trial.values is None:
            return
        row = _values(study, trial)
        if len(row) == 1 and trial.state is TrialState.COMPLETE:
            row["best_value"] = study.best_value
        run.log({_PREFIX: row}, trial.number)


def _key(study: optuna.Study, trial: Trial | FrozenTrial) -> _Key:
    return study.study_name, trial.number


def _describe(run: Run, study: optuna.Study, trial: FrozenTrial, state: TrialState) -> None:
    """Record the parameters and results of a trial."""
    run.config.update(
        {**trial.params, _PREFIX: {"study": study.study_name, "trial": trial.number, "user_attrs": trial.user_attrs}}
    )
    for step, value in sorted(trial.intermediate_values.items()):
        run.log({"intermediate_value": value}, step)
    run.summary.update(_values(study, trial))
    run.summary[f"{_PREFIX}/state"] = state.name.lower()


def _values(study: optuna.Study, trial: FrozenTrial) -> dict[str, float]:
    """Return the values of a trial by name: those that the study gives them, else `value`, or `value_0` and so on."""
    values: Sequence[float] = trial.values or ()
    names = study.metric_names or (["value"] if len(values) < 2 else [f"value_{index}" for index in range(len(values))])
    return dict(zip(names, values, strict=False))
