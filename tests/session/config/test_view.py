"""The mappings through which scripts change a run's configuration and summary."""

import argparse
import copy
import json
import pickle
import threading

import pytest

import tensormeter
from tensormeter import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(directory=tmp_path / "runs", buffer_directory=None, agent="off", sample_interval=0, quiet=True)


@pytest.fixture
def run(settings):
    with tensormeter.init(config={"lr": 0.1, "opt": {"name": "adam", "betas": [0.9, 0.99]}}, settings=settings) as run:
        yield run


def documents(run):
    """Return what the agent would read."""
    return run._process.ring.documents()[0]


def test_items_and_attributes_can_be_read_and_written(run):
    config = run.config
    assert (config.lr, config["opt"].name, config.opt["betas"]) == (0.1, "adam", [0.9, 0.99])
    config.lr = 0.2
    config["seed"] = 1
    config.opt.decay = 0.01
    config.opt["deep"] = {"a": 1}
    config.opt.deep.b = 2
    expected = {
        "lr": 0.2,
        "opt": {"name": "adam", "betas": [0.9, 0.99], "decay": 0.01, "deep": {"a": 1, "b": 2}},
        "seed": 1,
    }
    assert config == expected
    assert documents(run)["config"] == expected
    assert "seed" in config
    assert config.get("missing", 5) == 5
    with pytest.raises(AttributeError, match=r"there is no 'opt\.missing'"):
        _ = config.opt.missing
    with pytest.raises(KeyError):
        _ = config["missing"]
    assert not hasattr(config, "missing")


def test_update_merges_nested_objects_and_takes_any_object(run):
    run.config.update({"opt": {"lr": 1}}, seed=2)
    run.config.update(argparse.Namespace(batch=8))
    run.config.update([("pairs", 1)])
    run.update_config({"opt": {"betas": [1]}})
    assert run.config == {
        "lr": 0.1,
        "opt": {"name": "adam", "betas": [1], "lr": 1},
        "seed": 2,
        "batch": 8,
        "pairs": 1,
    }
    run.config |= {"batch": 9}
    run.config = {"batch": 8}
    run.config["opt"] = {"name": "sgd"}
    assert run.config.opt == {"name": "sgd"}
    assert run.config.setdefault("lr", 5) == 0.1


def test_values_can_be_removed(run):
    del run.config.opt.name
    del run.config["lr"]
    assert run.config == {"opt": {"betas": [0.9, 0.99]}}
    assert documents(run)["config"] == {"opt": {"betas": [0.9, 0.99]}}
    assert run.config.opt.pop("betas") == [0.9, 0.99]
    with pytest.raises(AttributeError):
        del run.config.lr


def test_views_combine_with_mappings_into_plain_dicts(run):
    opt = run.config.opt
    assert opt | {"name": "sgd", "lr": 1} == {"name": "sgd", "betas": [0.9, 0.99], "lr": 1}
    assert {"name": "sgd", "lr": 1} | opt == {"name": "adam", "betas": [0.9, 0.99], "lr": 1}
    assert json.dumps(run.config.copy() | {}) == json.dumps({"lr": 0.1, "opt": {"name": "adam", "betas": [0.9, 0.99]}})
    assert opt == {"name": "adam", "betas": [0.9, 0.99]}
    with pytest.raises(TypeError):
        _ = opt | [1]


def test_a_view_never_shares_its_values(run):
    run.config.opt.betas.append(5)
    assert run.config.opt.betas == [0.9, 0.99]
    plain = run.config.as_dict()
    plain["opt"]["name"] = "changed"
    assert run.config.opt.name == "adam"
    for copied in (copy.copy(run.config), copy.deepcopy(run.config), pickle.loads(pickle.dumps(run.config))):
        assert type(copied) is dict
        assert copied == run.config
    assert json.loads(json.dumps(run.config.as_dict())) == run.config
    assert "adam" in repr(run.config)


def test_a_value_that_cannot_be_recorded_is_a_warning(run, caplog):
    run.config.opt.generator = (number for number in range(3))
    run.config.update(5)
    assert "'opt'.'generator' is left out: a generator can be read only once" in caplog.text
    assert "config: it is not recorded, because a value of type int has no names" in caplog.text
    assert run.config.opt == {"name": "adam", "betas": [0.9, 0.99]}


def test_secrets_are_masked_wherever_they_are_written(run, caplog):
    run.config.opt.api_key = "sk-1234567890abcdef1234567890abcdef"
    run.summary["db_password"] = "hunter2-and-more"
    assert run.config.opt.api_key == "***"
    assert run.summary.db_password == "***"
    assert "config: opt.api_key is recorded as ***" in caplog.text
    assert "hunter2" not in json.dumps(documents(run))


def test_all_threads_that_write_at_the_same_time_succeed(run):
    def write(number):
        for index in range(50):
            run.config[f"t{number}"] = {**run.config.get(f"t{number}", {}), str(index): index}
            run.summary[f"s{number}"] = index

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(run.config[f"t{number}"]) == 50 for number in range(4))
    assert run.summary == {f"s{number}": 49 for number in range(4)}


def test_the_summary_is_recorded_next_to_the_configuration(run, caplog):
    run.summary["best"] = 0.875
    run.summary.update({"test": {"acc": 0.5}, "note": "good"})
    run.summary.done = True
    run.config.seed = 1
    assert documents(run) == {
        "summary": {"best": 0.875, "test": {"acc": 0.5}, "note": "good", "done": True},
        "config": {"lr": 0.1, "opt": {"name": "adam", "betas": [0.9, 0.99]}, "seed": 1},
    }
    del run.summary["best"], run.summary.done
    assert run.summary == {"test": {"acc": 0.5}, "note": "good"}
    assert documents(run)["summary"]["best"] is None, "the server removes it"
    run.finish()
    run.summary["late"] = 1
    assert "late" not in run.summary
    assert "has finished, so its summary was not changed; change it before finish()" in caplog.text


def test_short_texts_that_are_logged_are_in_the_summary_unless_the_script_states_a_result(run):
    run.summary["verdict"] = "good"
    for step in range(4):
        run.log({"phase": "warmup" if step < 2 else "decay", "verdict": "bad", "long": "x" * 1000, "loss": 1.0}, step)
    assert run.summary == {"verdict": "good", "phase": "decay"}
    run.summary["phase"] = "stated"
    run.log({"phase": "cooldown"})
    assert documents(run)["summary"] == {"verdict": "good", "phase": "stated"}


def test_definitions_are_recorded_in_their_order(run, caplog):
    run.define_metric("eval/*", step_metric="epoch")
    run.define_metric("loss", summary="min")
    run.define_metric("eval/*", summary="max")
    run.define_metric("train/*", every=10)
    assert [*documents(run)["definitions"].items()] == [
        ("loss", {"summary": "min"}),
        ("eval/*", {"step_metric": "epoch", "summary": "max"}),
    ]
    with pytest.raises(tensormeter.UsageError, match="expected the summary min, max, mean, last or none, got 'best'"):
        run.define_metric("loss", summary="best")
    for number in range(300):
        run.define_metric(f"m{number}", summary="max")
    assert len(documents(run)["definitions"]) == 200
    assert "is ignored: run" in caplog.text


def test_a_forked_child_changes_the_configuration_of_its_run(run):
    import multiprocessing

    def child(connection):
        run.config.child = 1
        connection.send(run.config.as_dict())
        connection.close()

    run.log({"a": 1.0})
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.recv()["child"] == 1
    process.join()
    assert "child" not in run.config


def test_without_a_run_changes_are_a_warning(caplog):
    tensormeter.config.lr = 1
    tensormeter.config.update({"a": 1})
    tensormeter.summary["best"] = 1
    assert (dict(tensormeter.config), dict(tensormeter.summary)) == ({}, {})
    assert len(caplog.records) == 2
    assert "tensormeter.config: there is no unfinished run, so nothing is recorded" in caplog.text
