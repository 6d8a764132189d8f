"""Names that a destination must change: the same in every agent, and never those of another one."""

import logging
import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensormeter.otlp.batch import Scope
from tensormeter_exporters import mlflow
from tensormeter_exporters.names import ChangedNames, suffix_of
from tensormeter_exporters.otlp_series import ProcessRef, flatten, read_metrics
from tensormeter_exporters.series_names import SeriesNames
from tensormeter_exporters.wandb import exporter

ODD = st.text(st.sampled_from("ab/. @#_%\\\x00é损🔥1f-:"), min_size=1, max_size=300) | st.text(min_size=1, max_size=60)

CHANGES = {
    "mlflow keys": lambda: ChangedNames("mlflow", "", mlflow._clean, 233),
    "mlflow tags": lambda: ChangedNames("mlflow", "", mlflow._clean_tag, 233),
    "mlflow paths": lambda: ChangedNames("mlflow", "", mlflow._clean_path, 200, in_bytes=True),
    "wandb media": lambda: ChangedNames("wandb", "", exporter._clean_media, 60, in_bytes=True),
    "wandb columns": lambda: ChangedNames("wandb", "", exporter._clean_key, 4096),
    "wandb config": lambda: ChangedNames("wandb", "", exporter._clean_config, 4096),
    "wandb projects": lambda: ChangedNames("wandb", "", exporter._clean_project, 128),
    "wandb tags": lambda: ChangedNames("wandb", "", exporter._clean_tag, 64),
}


@pytest.mark.parametrize("kind", CHANGES)
@given(originals=st.lists(ODD, min_size=2, max_size=20, unique=True))
def test_names_differ_if_the_originals_do_and_do_not_depend_on_order(kind, originals):
    names = CHANGES[kind]()
    first = {original: names(original) for original in originals}
    assert len(set(first.values())) == len(originals)
    again = CHANGES[kind]()
    random.Random(1).shuffle(originals)
    assert {original: again(original) for original in originals} == first


@given(original=ODD)
def test_mlflow_gets_only_names_that_it_accepts(original):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    name = CHANGES["mlflow keys"]()(original)
    assert len(name) <= 233
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        validate(name)
        validate(f"process-01234567/{name}")
    path = CHANGES["mlflow paths"]()(original)
    assert len(path.encode()) <= 200
    assert all(part.strip(". ") for part in path.split("/"))


@given(original=ODD)
def test_wandb_gets_only_projects_that_it_accepts(original):
    import wandb

    name = CHANGES["wandb projects"]()(original)
    assert wandb.Settings(project=name).project == name


@pytest.mark.parametrize("name", ["loss", "train/loss", "a b", "layer_deadbeef", "eval_20240101", "key:y", "a.b-c"])
def test_names_that_can_be_stored_stay(name):
    assert CHANGES["mlflow keys"]()(name) == name
    assert CHANGES["wandb media"]()(name) == name


def test_a_name_that_ends_like_a_changed_one_is_changed():
    names = CHANGES["mlflow keys"]()
    changed = names("mAP@50")
    assert changed == f"mAP_50{suffix_of('mAP@50')}"
    assert names(changed) != changed, "it would be that of mAP@50"
    assert re.fullmatch(r".*_[0-9a-f]{8}", names(changed))


def test_both_names_are_reported_once(caplog):
    names = ChangedNames("mlflow", "no @ there", mlflow._clean, 233)
    with caplog.at_level(logging.WARNING, "tensormeter.agent"):
        for _ in range(3):
            names("mAP@50")
            names("loss")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"mlflow: 'mAP@50' is stored as {names('mAP@50')!r}: no @ there"


def made(make, *series):
    return read_metrics(make.logged(1, list(series)))


def test_a_logged_metric_and_a_statistic_of_its_name_stay_apart_in_every_order(make, tmp_path):
    logged = make.gauge("grad/mean", [make.T0], [1.0])
    both = made(make, make.histogram("grad", make.T0), logged)
    names = SeriesNames("wandb", tmp_path / "both")
    names.begin(both)
    assert [names.of(both[0], part) for part in ("", "/mean", "/max")] == [
        "grad",
        names.of(both[0], "/mean"),
        "grad/max",
    ]
    assert names.of(both[1]) == "grad/mean", "logged metrics go first within a request"
    assert re.fullmatch("grad/mean_[0-9a-f]{8}", names.of(both[0], "/mean"))
    names.save()
    # The next agent sees the other one first, and still makes the same.
    (alone,) = made(make, make.histogram("grad", make.T0))
    another = SeriesNames("wandb", tmp_path / "both")
    another.begin([alone])
    assert another.of(alone, "/mean") == names.of(both[0], "/mean")

    first = SeriesNames("wandb", tmp_path / "statistic first")
    first.begin([alone])
    assert first.of(alone, "/mean") == "grad/mean"
    first.save()
    later = SeriesNames("wandb", tmp_path / "statistic first")
    (metric,) = made(make, logged)
    later.begin([metric])
    assert re.fullmatch("grad/mean_[0-9a-f]{8}", later.of(metric))


def test_series_that_look_alike_stay_apart(make):
    look_alike = [
        make.gauge("x", [make.T0], [1.0], a="1,b=2"),
        make.gauge("x", [make.T0], [2.0], a="1", b="2"),
        make.gauge("x{a=1,b=2}", [make.T0], [3.0]),
        make.gauge("x", [make.T0], [4.0], a=1, b="2"),
    ]
    made_names = made(make, *look_alike)
    names = SeriesNames("wandb", None)
    names.begin(made_names)
    assert len({names.of(stepped) for stepped in made_names}) == 4
    assert names.of(made_names[2]) == "x{a=1,b=2}"


def test_metrics_of_two_scopes_stay_apart(make):
    import dataclasses

    gauges = [
        dataclasses.replace(make.gauge("x", [make.T0], [1.0]), scope=Scope(name)) for name in ("tensormeter", "a", "b")
    ]
    made_names = made(make, *gauges)
    names = SeriesNames("wandb", None)
    names.begin(made_names)
    assert len({names.of(stepped) for stepped in made_names}) == 3


def test_a_damaged_state_is_reported_and_delays_nothing(make, tmp_path, caplog):
    (tmp_path / "names.json").write_text('[["p"')
    names = SeriesNames("wandb", tmp_path)
    (name,) = made(make, make.histogram("grad", make.T0))
    names.begin([name])
    assert names.of(name, "/mean") == "grad/mean"
    names.save()
    assert "some metrics may be stored under different names" in caplog.text


def test_nested_keys_of_a_configuration_stay_apart():
    flat = flatten({"a": {"b": 1, "": 2}, "a.b": 3, "c": {"d": {"e": 4}}, "c.d": {"e": 5}, "c.d.e": 6, "none": {}})
    assert flat["a.b"] == 1
    assert flat["c.d.e"] == 4
    assert sorted(map(str, flat.values())) == ["1", "2", "3", "4", "5", "6", "{}"]


@given(original=ODD)
@example(original="C:")
@example(original="1:")
@example(original="::")
def test_wandb_gets_only_names_that_it_accepts(original):
    from wandb.sdk.artifacts._internal_artifact import sanitize_artifact_name
    from wandb.sdk.artifacts._validators import validate_artifact_name
    from wandb.sdk.lib.paths import validate_relpath

    sender = ProcessRef("demo", "r" * 128, "", "p0123456789")
    run = exporter._run_id(sender)
    room = 128 - 7 - len(f"run-{run}-")
    name = ChangedNames("wandb", "", exporter._clean_media, room, in_bytes=True)(original)
    assert len(run) <= 64
    validate_artifact_name(sanitize_artifact_name(f"run-{run}-{name}"))
    assert validate_relpath(f"{name}.table.json") == f"{name}.table.json"
