"""Runs: arguments of `init`, the environment, several runs at once, forks, threads and resuming."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tensormeter
import tensormeter.wandb as wandb
from support.forks import call_in_child
from support.servers import Server
from support.stored_points import points_of
from support.waiting import wait_for
from tensormeter.client import Client
from tensormeter.client.run import StoredRun
from tensormeter.session import open_runs

Stored = Callable[[str], StoredRun]


def test_arguments_describe_the_run_on_the_server(online: Stored) -> None:
    with wandb.init(
        project="arguments", entity="team", name="first", id="arguments-1", notes="n", tags=("a", "b"), group="g",
        config={"lr": 0.1}, job_type="train", allow_val_change=True, force=False, anonymous="never",
    ) as run:  # fmt: skip
        assert (run.id, run.name, run.project, run.entity) == ("arguments-1", "first", "arguments", "team")
        assert (run.group, run.job_type, run.tags, run.notes) == ("g", "train", ("a", "b"), "n")
        assert run.path == "team/arguments/arguments-1"
        assert run.url == run.get_url() is not None
        assert wandb.run is run
        wandb.log({"loss": 1})
    assert wandb.run is None
    stored = online("arguments-1")
    assert (stored.name, stored.group, list(stored.tags), stored.notes) == ("first", "g", ["a", "b"], "n")
    assert (stored.config, stored.state) == ({"lr": 0.1}, "finished")


def test_a_name_that_is_assigned_later_is_shown(online: Stored) -> None:
    run = wandb.init(id="renamed")
    wandb.log({"loss": 1})
    wandb.run.name = "second"
    wandb.run.save()
    wandb.log({"loss": 2})
    run.finish()
    assert online("renamed").name == "second"


@pytest.mark.parametrize(("exit_code", "state"), [(None, "finished"), (0, "finished"), (1, "failed")])
def test_exit_codes_become_states(online: Stored, exit_code: int | None, state: str) -> None:
    wandb.init(id=f"state-{exit_code}")
    wandb.log({"a": 1})
    wandb.finish(exit_code=exit_code, quiet=True)
    assert online(f"state-{exit_code}").state == state


def test_a_failure_after_mark_preempting_is_a_preemption(online: Stored) -> None:
    run = wandb.init(id="preempting")
    wandb.mark_preempting()
    run.finish(1)
    assert online("preempting").state == "preempted"


def test_variables_of_wandb_apply_below_arguments_and_above_own(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    variables = {
        "PROJECT": "p", "NAME": "n", "RUN_ID": "the-id", "RUN_GROUP": "g", "JOB_TYPE": "j", "TAGS": "a, b", "NOTES": "x",
        "MODE": "dryrun", "SILENT": "true", "DIR": str(place / "files"), "ENTITY": "e",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("TENSORMETER_PROJECT", "other")
    monkeypatch.setenv("TENSORMETER_MODE", "disabled")
    run = wandb.init(name="argument")
    assert (run.project, run.name, run.id, run.group, run.job_type) == ("p", "argument", "the-id", "g", "j")
    assert (run.tags, run.notes, run.entity, run.offline) == (("a", "b"), "x", "e", True)
    assert run.recorded.settings.quiet
    assert Path(run.dir).is_relative_to(place / "files")
    assert Path(run.dir).is_dir()


def test_settings_may_be_assigned() -> None:
    settings = wandb.Settings(project="p")
    settings.mode = "disabled"
    run = wandb.init(settings=settings)
    assert (run.project, run.disabled, run.settings.mode) == ("p", True, "disabled")


def test_own_variables_apply_without_those_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORMETER_PROJECT", "own")
    assert wandb.init().project == "own"
    wandb.finish()
    monkeypatch.delenv("TENSORMETER_PROJECT")
    assert wandb.init().project == "uncategorized"


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MODE", "online, offline, disabled"),
        ("RESUME", "allow, auto, must, never, true or false"),
        ("SILENT", "true or false"),
        ("DISABLED", "true or false"),
    ],
)
def test_an_invalid_variable_is_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, expected: str
) -> None:
    monkeypatch.setenv(f"WANDB_{variable}", "sometimes")
    run = wandb.init(project="")
    assert (run.offline, run.project) == (True, "uncategorized")
    assert f"WANDB_{variable}='sometimes' is ignored: expected {expected}" in caplog.text


def test_the_api_key_is_not_recorded(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-key-of-the-test-0123456789")
    assert wandb.login(key="secret-key-of-the-test-0123456789") is True
    with wandb.init(config={"a": 1}) as run:
        run.log({"a": 1})
    files = [path for path in (place / "state").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"secret-key-of-the-test" in path.read_bytes()]


@pytest.mark.parametrize("how", ["argument", "settings", "variable"])
def test_everything_works_in_a_disabled_run(monkeypatch: pytest.MonkeyPatch, place: Path, how: str) -> None:
    if how == "variable":
        monkeypatch.setenv("WANDB_DISABLED", "true")
    settings = wandb.Settings(mode="disabled") if how == "settings" else None
    run = wandb.init(mode="disabled" if how == "argument" else None, settings=settings, config={"a": 1})
    assert run.disabled
    run.log({"a": 1, "image": wandb.Image(place / "missing.png")}, step=3)
    run.log({"b": 1}, commit=False)
    run.config.b = 2
    run.summary["c"] = 3
    run.define_metric("a", summary="max")
    run.alert("title", "text")
    run.save("*.missing")
    wandb.log_artifact(wandb.Artifact("m", "model"))
    assert (run.url, run.step, dict(run.config), run.summary["c"]) == (None, 3, {"a": 1, "b": 2}, 3)
    assert run.id
    assert os.path.isdir(run.dir)
    run.finish()
    assert wandb.run is None


def test_unknown_arguments_and_gym_cause_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        wandb.init(project="p", sync_dir="x", monitor_gym=True).finish()
    assert caplog.text.count("wandb.init(sync_dir=) is ignored") == 1
    assert caplog.text.count("wandb.init(monitor_gym=) is ignored") == 1


def test_invalid_arguments_raise_the_error_of_wandb() -> None:
    wandb.config.early = 1
    arguments: dict[str, Any]
    for arguments in (
        {"mode": "slow"}, {"resume": "maybe"}, {"reinit": "x"}, {"fork_from": "x"}, {"settings": 3}, {"dir": 3}, {"tags": 3},
    ):  # fmt: skip
        with pytest.raises(wandb.UsageError, match=next(iter(arguments))):
            wandb.init(**arguments)
    with pytest.raises(wandb.Error, match="resume"):
        wandb.init(resume="must")
    with pytest.raises(wandb.UsageError, match="no named values"):
        wandb.init(config=3)
    assert wandb.run is None
    assert not open_runs.all_open()
    assert dict(wandb.config) == {"early": 1}


def test_empty_texts_count_as_missing(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    with wandb.init(id="", project="", name="", group="", notes="", tags="", mode="", resume="", config="") as run:
        assert run.id != "run"
        assert run.name == run.id
        assert run.project == "uncategorized"
    assert online(run.id).state == "finished"
    assert not caplog.records


def test_ids_that_are_not_permitted_are_changed(caplog: pytest.LogCaptureFixture) -> None:
    assert wandb.init(id="my run (1)").id == "my-run-1-"
    assert "the run ID 'my run (1)' becomes 'my-run-1-'" in caplog.text


def test_init_returns_the_run_in_progress() -> None:
    first = wandb.init()
    assert wandb.init() is first
    assert wandb.init(reinit=False) is first
    assert wandb.init(reinit="return_previous") is first


@pytest.mark.parametrize("reinit", [True, "finish_previous"])
def test_init_finishes_the_run_in_progress(reinit: bool | str) -> None:
    first = wandb.init()
    second = wandb.init(reinit=reinit)
    assert first.finished
    assert wandb.run is second


def test_several_runs_are_apart(online: Stored) -> None:
    main = wandb.init(id="main-run", reinit="create_new")
    assert wandb.run is None
    current = wandb.init(id="current-run", reinit="finish_previous")
    assert main.finished
    others = [wandb.init(id=f"other-{number}", reinit="create_new") for number in range(3)]
    assert wandb.run is current
    for number, run in enumerate(others):
        run.log({"value": number})
    wandb.log({"value": 10})
    for run in others:
        run.finish()
    assert wandb.run is current
    wandb.finish()
    assert [points_of(online(f"other-{number}"))["value"] for number in range(3)] == [[(0, 0)], [(0, 1)], [(0, 2)]]
    assert points_of(online("current-run"))["value"] == [(0, 10)]


def test_all_threads_log_to_the_current_run(online: Stored) -> None:
    wandb.init(id="threads")
    threads = [threading.Thread(target=lambda n=n: wandb.log({f"t{n}": n}, step=n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wandb.finish()
    points = points_of(online("threads"))
    assert sorted(points) == ["t0", "t1", "t2", "t3"]
    assert points["t3"] == [(3, 3)]


def test_a_forked_child_logs_to_the_run_and_may_start_its_own(online: Stored) -> None:
    wandb.init(id="parent")
    wandb.log({"a": 1})

    def child() -> None:
        signal.alarm(30)
        wandb.log({"in child": 2.0, "nested": {}})
        with wandb.init(id="child-run", project="children") as run:
            run.log({"b": 3})
        tensormeter.finish()

    wandb.log({"waiting": 1}, commit=False)
    with ThreadPoolExecutor(1) as other_thread:  # holds the lock, and does not exist in the child
        other_thread.submit(wandb.run._lock.acquire).result()
        call_in_child(child)
        other_thread.submit(wandb.run._lock.release).result()
    wandb.finish()
    points = points_of(online("parent"))
    assert points["in child"] == [(1, 2)]
    assert points["waiting"] == [(1, 1)]
    assert points_of(online("child-run"))["b"] == [(0, 3)]


def test_a_resumed_run_goes_on_after_its_last_step(online: Stored) -> None:
    for attempt in range(2):
        run = wandb.init(id="resumed", resume="allow")
        assert run.resumed is bool(attempt)
        assert (run.step, run.starting_step) == (3 * attempt, 3 * attempt)
        for _ in range(3):
            wandb.log({"loss": attempt})
        assert run.step == 3 * attempt + 3
        run.finish()
    assert sorted(points_of(online("resumed"))["loss"]) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]


def test_the_step_of_a_resumed_run_does_not_depend_on_what_has_arrived(online: Stored, server: Server) -> None:
    wandb.init(id="arrived").finish()
    for first in (0, 5):
        run = wandb.init(id="arrived", resume="allow")
        for step in range(5):
            wandb.log({"loss": step})
        wait_for(lambda: _points(server, "arrived") == first + 5, "the rows have arrived")  # noqa: B023 - called in the loop
        assert (run.step, run.starting_step) == (first + 5, first)
        run.finish()


def test_the_step_counts_from_0_if_the_server_cannot_be_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "api" / "v1").mkdir(parents=True)
    (place / "api" / "v1" / "runs").write_text("{}")  # the document of some other program
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("TENSORMETER_ENDPOINT", f"http://127.0.0.1:{other.server_port}")
        wandb.init(id="unread").finish()
        with wandb.init(id="unread", resume="allow") as run:
            assert run.step == 0
        other.shutdown()
    assert "wandb.run.step: counting from 0, because the last step of the run cannot be read: KeyError" in caplog.text


def test_a_resumed_run_keeps_its_configuration(online: Stored) -> None:
    wandb.init(id="configured", config={"lr": 0.5, "model": {"depth": 2}}).finish()
    with wandb.init(id="configured", resume="must") as run:
        assert dict(run.config) == {"lr": 0.5, "model": {"depth": 2}}
    with wandb.init(id="configured", resume="must"):
        wandb.config.update({"seed": 1})
    assert online("configured").config == {"lr": 0.5, "model": {"depth": 2}, "seed": 1}


def _points(server: Server, run_id: str) -> int:
    summary = Client(server.url).run(run_id).summary
    return summary["loss"].count if "loss" in summary else 0


def test_explicit_steps_of_a_resumed_run_are_kept(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    for first in (0, 2):
        run = wandb.init(id="explicit", resume="must" if first else None)
        for step in range(first, first + 2):
            wandb.log({"loss": step}, step=step)
        run.finish()
    assert sorted(points_of(online("explicit"))["loss"]) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert "lower than the current step" not in caplog.text


def test_auto_resumes_a_run_that_did_not_finish(place: Path) -> None:
    first = wandb.init(resume="auto")
    first.finish(exit_code=1)
    wandb.init(resume="auto", mode="disabled").finish()
    second = wandb.init(resume=True)
    assert second.id == first.id
    open_runs.finish_all()  # as at the end of the process
    third = wandb.init(resume="auto")
    assert third.id != first.id


def test_a_resume_file_that_cannot_be_deleted_causes_a_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with wandb.init(resume="auto") as run:
        (place / "wandb" / "wandb-resume.json").unlink()
        (place / "wandb" / "wandb-resume.json").mkdir()
    assert f"will continue run {run.id}, although it has finished" in caplog.text


def test_a_run_rewinds_to_a_step(online: Stored) -> None:
    with wandb.init(id="rewound") as run:
        for step in range(4):
            run.log({"loss": step})
    with wandb.init(resume_from="rewound?_step=1") as run:
        assert run.step == 2
        run.log({"loss": 20})
    (series,) = online("rewound").series("loss")
    assert [(int(x), y) for x, y in zip(series.x, series.y, strict=True)][:3] == [(0, 0), (1, 1), (2, 20)]


def test_a_fork_of_a_run_begins_after_its_step(online: Stored) -> None:
    with wandb.init(id="trunk") as run:
        run.log({"loss": 1})
    with wandb.init(id="branch", fork_from="trunk?_step=0") as run:
        run.log({"loss": 2})
    stored = online("branch")
    assert stored.parent == {"run": "trunk", "step": 0}
    assert points_of(stored)["loss"] == [(1, 2)]


def test_a_run_of_tensormeter_is_the_current_run(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    with tensormeter.init(id="adopted", config={"lr": 0.5}) as run:
        run.log({"loss": 1}, step=7)
        assert wandb.run.id == "adopted"
        assert wandb.config.lr == 0.5
        wandb.log({"own": 2})
        assert wandb.run.step == 9
        for name in ("first", "second"):
            wandb.log({name: 3}, step=12)
    assert wandb.run is None
    points = points_of(online("adopted"))
    assert points["own"] == [(8, 2)]
    assert points["first"] == points["second"] == [(12, 3)]
    assert "lower than the current step" not in caplog.text


def test_after_the_end_of_its_run_it_logs_to_a_run_of_tensormeter(online: Stored) -> None:
    wandb.init(id="ended")
    tensormeter.finish()
    with tensormeter.init(id="after-ended"):
        wandb.log({"a": 1})
    assert points_of(online("after-ended")) == {"a": [(0, 1)]}


def test_configuration_before_init_goes_into_the_run(online: Stored) -> None:
    wandb.config.early = 1
    wandb.config = {"other": 2}
    with wandb.init(id="early", config={"lr": 3, "left_out": 0}, config_exclude_keys=["left_out"]):
        assert dict(wandb.config) == {"early": 1, "other": 2, "lr": 3}
        wandb.config = {"late": {"a": 1}}
        wandb.config["late"] = {"b": 2}
    assert online("early").config == {"early": 1, "other": 2, "lr": 3, "late": {"b": 2}}
    assert dict(wandb.config) == {}


def test_secrets_are_readable_by_the_script_and_masked_in_the_record(online: Stored) -> None:
    with wandb.init(id="masked", config={"api_key": "0123456789abcdef0123"}):
        assert wandb.config.api_key == "0123456789abcdef0123"
    assert online("masked").config == {"api_key": "***"}


def test_a_configuration_file_is_read(place: Path) -> None:
    (place / "c.yaml").write_text("wandb_version: 1\nlr:\n  desc: null\n  value: 0.5\nseed: 3\n")
    with wandb.init(config="c.yaml") as run:
        assert dict(run.config) == {"lr": 0.5, "seed": 3}
    with pytest.raises(wandb.UsageError, match="cannot read"):
        wandb.init(config="missing.yaml")


def test_results_are_in_the_summary(online: Stored) -> None:
    with wandb.init(id="results") as run:
        wandb.log({"loss": 3, "nested": {"x": 1}})
        assert wandb.summary["loss"] == 3
        assert run.summary.get("nested.x") == 1
        wandb.summary["best"] = 0.5
        run.summary.update({"note": "good"})
        run.summary.count = 7
        assert sorted(run.summary.keys()) == ["best", "count", "loss", "nested.x", "note"]
        run.define_metric("loss", summary="min")
        wandb.log({"accuracy": np.float32(0.5), "count": np.array([2]), "state": "good", "nested": {"y": {"z": 2}}})
        assert (wandb.summary["accuracy"], wandb.summary.state) == (0.5, "good")
        assert wandb.summary["nested"] == {"x": 1, "y": {"z": 2}}
        run.summary["stated"] = np.float32(0.5)
        assert json.loads(json.dumps(dict(run.summary)))["accuracy"] == 0.5
        with pytest.raises(KeyError, match="logged as tensors"):
            wandb.summary["missing"]
    summary = online("results").summary
    assert [summary[name].value for name in ("best", "note", "count", "loss")] == [0.5, "good", 7, 3]


def test_media_in_the_summary_are_recorded_as_media(online: Stored) -> None:
    with wandb.init(id="stated") as run:
        run.summary.update({"samples": wandb.Table(["a"], [[1]]), "weights": wandb.Histogram([1, 2]), "best": 1})
        run.summary["picture"] = wandb.Image(np.zeros((2, 2), np.uint8))
    stored = online("stated")
    assert [table.key for table in stored.tables()] == ["samples"]
    assert [image.key for image in stored.images()] == ["picture"]
    assert "weights" in {metric.name for metric in stored.metrics()}
    assert [name for name, entry in stored.summary.items() if not entry.count] == ["best"]


def test_metrics_are_defined(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    with wandb.init(id="defined"):
        wandb.define_metric("epoch")
        metric = wandb.define_metric("val/*", step_metric="epoch", summary="max,min", step_sync=True)
        assert (metric.name, metric.step_metric) == ("val/*", "epoch")
        wandb.define_metric("acc", step_metric=wandb.define_metric("epoch"), summary="best", goal="maximize")
        wandb.define_metric("odd[0]", summary="first", hidden=True)
        wandb.log({"epoch": 1, "val/acc": 2, "acc": 3})
    definitions = {each["name"]: each for each in online("defined").definitions}
    assert definitions["val/*"] == {"name": "val/*", "step_metric": "epoch", "summary": "max"}
    assert definitions["acc"] == {"name": "acc", "step_metric": "epoch", "summary": "max"}
    assert "define_metric(hidden=) is ignored" in caplog.text
    assert "define_metric(summary='first') is ignored" in caplog.text


def test_alerts_with_the_same_title_wait(online: Stored) -> None:
    with wandb.init(id="alerts") as run:
        for level in (wandb.AlertLevel.WARN, wandb.AlertLevel.ERROR):
            wandb.alert(title="low", text="t", level=level)
        run.alert("low", "again", wait_duration=timedelta(0))
        run.alert("other", level="ERROR")
    alerts = [record.body for record in online("alerts").alerts()]
    assert {(alert["title"], alert["text"], alert["level"]) for alert in alerts} == {
        ("low", "t", "WARN"), ("low", "again", "INFO"), ("other", "", "ERROR"),
    }  # fmt: skip


def test_pending_values_are_recorded_when_the_run_finishes(online: Stored) -> None:
    run = wandb.init(id="pending")
    wandb.log({"a": 1, "b": 1}, commit=False)
    wandb.log({"a": 2}, commit=False)
    run.recorded.finish()
    assert points_of(online("pending")) == {"a": [(0, 2)], "b": [(0, 1)]}


def test_lower_steps_are_kept_with_a_warning(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    with wandb.init(id="lower"):
        wandb.log({"a": 1}, step=10)
        wandb.log({"a": 2}, step=5)
        wandb.log({"a": 3})
    assert sorted(points_of(online("lower"))["a"]) == [(5, 2), (10, 1), (10, 3)]
    assert "step 5 is lower than the current step 10; it is recorded at step 5" in caplog.text


def test_log_without_arguments_commits(online: Stored) -> None:
    with wandb.init(id="commits"):
        for value in range(3):
            wandb.log({"a": value}, commit=False)
            wandb.log()
    assert points_of(online("commits"))["a"] == [(0, 0), (1, 1), (2, 2)]


def test_functions_without_a_run_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        wandb.log({"a": 1})
        wandb.summary["a"] = 1
        wandb.finish()
        assert wandb.save("x") == []
        assert wandb.watch(None) is None
        assert wandb.define_metric("a").name == "a"
    for name in ("log", "summary", "save", "watch", "define_metric"):
        assert caplog.text.count(f"wandb.{name}: there is no unfinished run") == 1


class _Broken(Mapping[str, float]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        raise OSError("no keys")

    def __len__(self) -> int:
        raise OSError("no length")

    def __getitem__(self, key: str) -> float:
        raise OSError("no values")


def test_odd_data_causes_a_warning_only(online: Stored, caplog: pytest.LogCaptureFixture) -> None:
    import pandas as pd

    circle: dict[str, Any] = {"inner": 1}
    circle |= {"a": circle, "b": circle}
    with wandb.init(id="odd", config=circle):
        wandb.config.update({"circle": circle, "broken": _Broken()})
        wandb.log(3)
        wandb.log(pd.DataFrame({"a": [1.0]}))
        wandb.log(_Broken())
        wandb.log({"broken": _Broken(), "circle": circle, "whole": 1})
        wandb.log({"a": 1, 2: 3}, step="x")
        wandb.log({"b": 1}, step=2.0)
        wandb.log(SimpleNamespace(values=np.zeros(1)))  # such as a Series of pandas
    points = points_of(online("odd"))
    assert points["b"] == [(2, 1)]
    assert "circle.inner" in points
    assert "whole" in points
    for noun in ("_Broken", "broken", "circle.a"):
        assert f"{noun}" in caplog.text


def test_a_run_survives_pickling() -> None:
    run = wandb.init(config={"a": 1})
    assert pickle.loads(pickle.dumps(run)) is run
    assert pickle.loads(pickle.dumps(run.config)).as_dict() == {"a": 1}
    assert dict(run.config) == copy.deepcopy(dict(run.config))


def test_a_spawned_child_logs_to_the_run(online: Stored) -> None:
    run = wandb.init(id="spawning", entity="team")
    run.log({"a": 1})
    program = "import pickle, sys; run = pickle.load(sys.stdin.buffer); run.log({'b': 2}, step=5); run.finish()"
    subprocess.run([sys.executable, "-c", program], input=pickle.dumps(run), check=True)
    run.finish()
    assert points_of(online("spawning"))["b"] == [(5, 2)]
