"""The functions of a script: init, log, finish; and their behaviour on odd machines."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tensormeter
from support.forks import call_in_child
from support.optional import torch
from support.ports import reserve_port
from support.processes import run_python
from tensormeter import Settings, SettingsError, UsageError
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.file import RingFile


@pytest.fixture
def settings(tmp_path):
    return Settings(
        directory=tmp_path / "runs",
        buffer_directory=tmp_path / "rings",
        buffer_bytes=1 << 18,
        mode="offline",
        agent="thread",
        schedule_delay=0.05,
        finish_timeout=300,
    )


def items(settings) -> int:
    """Points and events that the only run has left on disk."""
    (run,) = list_runs(settings.directory)
    spool = Spool(run.spool)
    try:
        return spool.pending_items()
    finally:
        spool.close()


def test_module_level_functions_warn_without_a_run(caplog, monkeypatch):
    monkeypatch.setattr(tensormeter.api, "_notices", WarnOnce())
    for _ in range(2):
        tensormeter.log({"loss": 1.0})
        tensormeter.alert("title")
        tensormeter.define_metric("loss", summary="min")
        assert tensormeter.watch(None) is None
        tensormeter.finish()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        *("tensormeter.log", "tensormeter.alert", "tensormeter.define_metric", "tensormeter.watch"),
    ]
    assert "there is no unfinished run, so nothing is recorded; call tensormeter.init() first" in caplog.text


def test_calls_after_the_end_warn(settings, caplog):
    with tensormeter.init(settings=settings) as run:
        pass
    run.alert("title")
    run.log_artifact("model.pt")
    assert f"run {run.id} has finished, so the alert 'title' was ignored" in caplog.text
    assert f"run {run.id} has finished, so log_artifact('model.pt') was ignored" in caplog.text
    assert items(settings) == 2  # the start and the end


def test_module_level_functions_go_to_the_last_run(settings):
    run = tensormeter.init(settings=settings)
    tensormeter.log({"loss": 1.0})
    tensormeter.finish()
    assert items(settings) == 2 + 2  # a value and its step, the start and the end
    run.finish()  # twice is once
    tensormeter.log({"loss": 1.0})
    tensormeter.finish(1)
    assert items(settings) == 2 + 2


def test_the_current_run_is_the_last_one_that_has_not_ended(settings):
    assert tensormeter.run is None
    with tensormeter.init(settings=settings) as first:
        with tensormeter.init(settings=settings) as second:
            assert tensormeter.run is second
        assert tensormeter.run is first
    assert tensormeter.run is None
    assert "run" not in vars(tensormeter)  # neither a submodule nor remembered


def test_with_block_says_how_it_ended(settings):
    with tensormeter.init(settings=settings) as run:
        run.log({"loss": 1.0}, step=0)
        assert run._process is not None
        ring = run._process.ring
    assert ring.state.name == "FINISHED"
    with pytest.raises(ZeroDivisionError), tensormeter.init(settings=settings) as run:  # noqa: PT012
        ring = run._process.ring
        1 / 0  # noqa: B018
    assert ring.state.name == "FAILED"


@pytest.mark.parametrize(
    ("arguments", "state", "message", "warning"),
    [
        ({}, "FINISHED", None, ""),
        ({"state": 0}, "FINISHED", None, ""),
        ({"state": 1}, "FAILED", "exit status 1", ""),
        ({"exit_code": 3}, "FAILED", "exit status 3", ""),
        ({"exit_code": 0}, "FINISHED", None, ""),
        ({"state": "failed", "exit_code": None}, "FAILED", None, ""),
        (
            {"state": "crashed"},
            "FINISHED",
            None,
            "finish: ignored the state 'crashed'; expected finished, failed or preempted",
        ),
        ({"exit_code": "1"}, "FINISHED", None, "finish: ignored the exit code '1'; pass an integer"),
        ({"timeout": "long"}, "FINISHED", None, "finish: ignored the timeout 'long'; pass seconds as a number"),
    ],
)
def test_finish_takes_a_state_or_an_exit_code(settings, caplog, arguments, state, message, warning):
    run = tensormeter.init(settings=settings.replace(agent="off"))
    ring = run._process.ring
    run.finish(**arguments)
    assert ring.state.name == state
    ends = [entry["end"] for kind, entry in RingFile.open(ring.path).entries() if "end" in entry]
    assert ends == ([message] if message else [])
    assert [record.getMessage() for record in caplog.records] == ([warning] if warning else [])


def test_each_thread_and_task_has_its_own_current_run(settings):
    """As with parallel trials: each logs to the run that it has started."""
    settings = settings.replace(agent="off")
    together = threading.Barrier(4)
    current = {}

    def trial(number):
        with tensormeter.init(id=f"trial-{number}", settings=settings) as run:
            together.wait()
            current[number] = tensormeter.run is run
            together.wait()
        assert tensormeter.run is None, "another trial's run"
        together.wait()

    async def task(number):
        with tensormeter.init(id=f"task-{number}", settings=settings) as run:
            await asyncio.sleep(0)
            current[f"task-{number}"] = tensormeter.run is run

    async def tasks():
        await asyncio.gather(*(task(number) for number in range(3)))

    with tensormeter.init(settings=settings) as outer:
        threads = [threading.Thread(target=trial, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(tasks())
        assert tensormeter.run is outer
        helper = threading.Thread(target=lambda: current.update(helper=tensormeter.run is outer))
        helper.start()
        helper.join()
    assert len(current) == 8
    assert all(current.values())


def test_log_after_finish_warns_once(settings, caplog):
    run = tensormeter.init(settings=settings)
    kept = run.log
    run.log({"loss": 1.0}, step=0)
    faster = run.log
    run.finish()
    with caplog.at_level(logging.WARNING, "tensormeter"):
        for log in (kept, faster, run.log):
            log({"loss": 2.0}, step=1)
    assert [record.message for record in caplog.records].count(
        "log() of ['loss'] was called after the run finished, so nothing is recorded; call it before finish()"
    ) == 1
    assert items(settings) == 4


def test_a_child_forked_after_finish_records_nothing(settings):
    run = tensormeter.init(settings=settings)
    run.log({"loss": 1.0}, step=0)
    kept = run.log
    run.finish()
    call_in_child(lambda: [log({"loss": 2.0}, step=1) for log in (kept, run.log)])
    assert items(settings) == 4


def test_arguments_before_settings(settings):
    with tensormeter.init("chosen", "named", id="abc", settings=settings) as run:
        assert (run.project, run.name, run.id) == ("chosen", "named", "abc")
    with tensormeter.init(settings={"directory": settings.directory, "mode": "disabled", "project": "mapped"}) as run:
        assert run.project == "mapped"
        assert run.name == run.id


def test_unknown_settings_are_named():
    with pytest.raises(SettingsError, match="settings: there is no setting 'buffer'; expected after_fork, agent, "):
        tensormeter.init(settings={"buffer": 1})
    with pytest.raises(SettingsError, match="mode: expected online, offline or disabled; got"):
        tensormeter.init(mode="sometimes")


def test_unknown_exporters_are_named_at_once(settings):
    with pytest.raises(SettingsError, match=r"exporters: expected .*experiment.* or .*; got 'expriment'"):
        tensormeter.init(settings=settings.replace(exporters=["expriment"]))
    assert not settings.directory.exists()


def test_configuration_becomes_json(settings):
    with tensormeter.init(config={"lr": 1e-3, "path": Path("data"), 3: [1, (2,)]}, settings=settings) as run:
        assert run.config == {"lr": 1e-3, "path": "data", "3": [1, [2]]}


class Unshown:
    """Cannot be shown."""

    def __repr__(self):
        raise RuntimeError("not ready")


def nested(levels):
    deep: dict = {}
    for _ in range(levels):
        deep = {"deeper": deep}
    return deep


def endless():
    cycle: dict = {"a": [1]}
    cycle["a"].append(cycle)
    return cycle


class BrokenItems(dict):
    def items(self):
        raise RuntimeError("not ready")


@pytest.mark.parametrize(
    ("value", "kept", "words"),
    [
        (Unshown(), None, "'x' is left out: cannot convert a Unshown (RuntimeError); pass a number or text"),
        (
            [1, Unshown()],
            [1, None],
            "'x'.1 is stored as null: cannot convert a Unshown (RuntimeError); pass a number or text",
        ),
        ({Unshown(): 1, "n": 2}, {"n": 2}, "is left out: cannot convert the key to text (RuntimeError)"),
        (BrokenItems(), None, "'x' is left out: cannot convert a BrokenItems (RuntimeError); pass a number or text"),
        (10**5000, None, "'x' is left out: the integer has too many digits; pass it as text"),
        (endless(), {"a": [1, None]}, "'x'.'a'.1 is stored as null: it contains itself"),
        (nested(30), nested(22), "is left out: it is nested deeper than 24 levels; flatten it"),
        ({1: "a", "1": "b"}, {"1": "b"}, "'x'.1 is replaced by '1': both are recorded as 'x'.'1'"),
    ],
    ids=["no text", "in a list", "key", "items", "huge", "endless", "deep", "twice"],
)
def test_what_a_configuration_cannot_hold_is_left_out_with_one_warning(settings, caplog, value, kept, words):
    expected = {"lr": 1} if kept is None else {"lr": 1, "x": kept}
    with tensormeter.init(config={"x": value, "lr": 1}, settings=settings) as run:
        assert run.config == expected
        warnings = [record.getMessage() for record in caplog.records if record.getMessage().startswith("config: ")]
        assert len(warnings) == 1
        assert words in warnings[0]
    caplog.clear()
    with tensormeter.init(settings=settings) as run:
        for _ in range(3):
            run.update_config({"x": value, "lr": 1})
        assert run.config == expected
        warnings = [record.getMessage() for record in caplog.records if record.getMessage().startswith("config: ")]
        assert len(warnings) == 1


def test_a_configuration_that_cannot_be_read_is_empty(settings, caplog):
    with tensormeter.init(settings=settings) as run:
        run.update_config(BrokenItems(lr=1))
        assert run.config == {}
    assert "config: it is not recorded, because reading its items raised RuntimeError; pass a dict" in caplog.text


def test_keys_that_are_not_unicode_stay_apart(settings, caplog):
    keys = [os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8"), "caf?", "\ud83d\ude00", "\N{GRINNING FACE}"]
    with tensormeter.init(config={**dict.fromkeys(keys, 1), "in": dict.fromkeys(keys, 2)}, settings=settings) as run:
        names = ["caf\\udce9", "caf\\udce8", "caf?", "\\ud83d\\ude00", "\N{GRINNING FACE}"]
        assert list(run.config) == [*names, "in"]
        assert list(run.config["in"]) == names
    (warning,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("config: "))
    assert r"'caf\udce9' is recorded as 'caf\\udce9', because the key is not valid Unicode" in warning


def test_what_cannot_be_shown_ends_no_training(settings, caplog):
    with tensormeter.init(settings=settings) as run:
        run.alert(Unshown(), Unshown())
        run.log({"text": tensormeter.Text(Unshown()), "table": tensormeter.Table([Unshown()], [[Unshown()]])})
        with pytest.raises(UsageError, match=r"run\.phase: expected a name, got <Unshown instance"):
            run.phase(Unshown())
        run.alert("title", level=Unshown())
        run.finish(Unshown())
    assert items(settings) == 2 + 4
    assert "alert: expected the level INFO, WARN or ERROR, got <Unshown instance" in caplog.text
    assert "finish: ignored the state <Unshown instance" in caplog.text


def test_a_configuration_that_is_too_large_again_and_again_is_warned_about_once(settings, caplog):
    with tensormeter.init(settings=settings) as run:
        for number in range(5):
            run.update_config({"a\nkey": "x" * ((1 << 20) + number), "n": number})
        assert run.config == {"n": 4}
    first, last = (text for record in caplog.records if "configuration" in (text := record.getMessage()))
    assert r"so its largest values were not recorded: config.a\nkey (1,048,588 bytes)" in first
    assert r"not recorded: 5 configuration values ('a\nkey', ...)" in last


def test_words_of_the_agent_are_one_line(settings):
    with tensormeter.init(settings=settings.replace(agent="off")) as run:
        ring = RingFile.open(run._process.ring.path)
        ring.report("no\nanswer", "a\nrefusal of \x1b[1m", "a\nkey")
        assert (ring.trouble, ring.set_aside, ring.lost) == (r"no\nanswer", r"a\nrefusal of \x1b[1m", r"a\nkey")


def test_a_configuration_grows(settings, caplog):
    with tensormeter.init(config={"lr": 1e-3, "n": 1}, settings=settings) as run:
        run.update_config({"n": 2, 5: Path("x")})
        assert run.config == {"lr": 1e-3, "n": 2, "5": "x"}
    assert items(settings) == 3  # the start, the end, and the configuration between them
    run.update_config({"n": 3})
    assert "has finished, so its config was not changed; change it before finish()" in caplog.text
    assert run.config["n"] == 2
    with tensormeter.init(settings=settings, mode="disabled") as run:
        run.update_config({"n": 2})
        assert run.config == {"n": 2}


def test_a_configuration_that_changes_all_the_time_leaves_room_for_rows(settings, caplog):
    with tensormeter.init(settings=settings) as run:
        for number in range(5000):
            run.update_config({"text": "x" * 1000, "number": number})
        run.log({"loss": 1.0})
    assert "not updated" not in caplog.text
    assert "not recorded" not in caplog.text


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["b", "a", "b"], ("b", "a")),
        ("base, sweep", ("base", "sweep")),
        ({"a": 1}.keys(), ("a",)),
        (["", "größer 3", "実験/1", 7], ("größer 3", "実験/1", "7")),
    ],
)
def test_tags_are_any_collection_of_texts(settings, tags, expected):
    with tensormeter.init(settings=settings.replace(agent="off"), tags=tags) as run:
        assert run.tags == expected


def test_names_are_any_text(settings, caplog):
    names = {"project": "team/Vision 3: größer 🚀", "name": "../a & b", "group": "実験 1", "notes": "n\nm"}
    with tensormeter.init(settings=settings.replace(agent="off"), **names) as run:
        assert (run.project, run.name, run.group, run.notes) == tuple(names.values())
    assert not caplog.records
    changed = {
        "project": "a\nb",
        "name": "x" * 2000,
        "group": "\x1b[1m",
        "notes": "x" * 70_000,
        "tags": ["y" * 200, *"abc"],
    }
    with tensormeter.init(settings=settings.replace(agent="off"), **changed) as run:
        chosen = run.settings
        assert (run.project, len(run.name), chosen.group, len(chosen.notes)) == ("a b", 1024, "[1m", 65_536)
        assert [len(tag) for tag in chosen.tags] == [128, 1, 1, 1]
    with tensormeter.init(settings=settings.replace(agent="off"), project="") as run:
        assert run.project == "default"
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        *("project", "name", "group", "tags", "notes", "project"),
    ]
    assert (
        r"project: 'a\nb' cannot be a name; using 'a b'. Use 1 to 128 characters without control characters"
        in caplog.text
    )


def test_names_of_a_wrong_type_are_refused(settings):
    for wrong in ({"tags": 5}, {"tags": [None]}, {"group": 5}, {"notes": 5}, {"project": b"p"}, {"name": 5}):
        with pytest.raises(SettingsError, match=f"{next(iter(wrong))}: expected"):
            tensormeter.init(settings=settings, **wrong)


@pytest.mark.parametrize(
    ("ranks", "recording"), [("all", (0, 1, 2, 3)), ("node", (0, 2)), ("first", (0,))], ids=["all", "node", "first"]
)
def test_some_ranks_record(settings, monkeypatch, ranks, recording):
    """Two nodes of two."""
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        with tensormeter.init(settings=settings.replace(ranks=ranks), id="same") as run:
            assert run.settings.mode == ("offline" if rank in recording else "disabled")
            run.log({"loss": rank})
    assert items(settings) == 4 * len(recording)


def test_a_rank_that_records_alone_records_the_console_too(settings, monkeypatch, caplog, capsys):
    monkeypatch.setenv("RANK", "1")
    counts = []
    for ranks in ("all", "this"):
        rank_settings = settings.replace(
            ranks=ranks, run_id=ranks, console="first", quiet=False, directory=settings.directory / ranks
        )
        with tensormeter.init(settings=rank_settings):
            print("epoch 1")
        counts.append(items(rank_settings))
    assert counts[1] > counts[0]  # the line
    assert "run this is recorded" in capsys.readouterr().err
    tensormeter.init(settings=settings.replace(ranks="this")).finish()
    assert "started a separate run" not in caplog.text


def test_ranks_without_a_common_id_are_told_so_once(settings, monkeypatch, caplog):
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        tensormeter.init(settings=settings).finish()
    assert caplog.text.count("started a separate run") == 1
    monkeypatch.setenv("RANK", "1")
    tensormeter.init(settings=settings, id="same").finish()
    tensormeter.init(settings=settings.replace(ranks="first")).finish()
    assert caplog.text.count("started a separate run") == 1


def test_disabled_touches_nothing(settings):
    with tensormeter.init(mode="disabled", settings=settings) as run:
        run.log({"loss": object()}, step="nonsense")
    assert not settings.directory.exists()
    assert not settings.buffer_directory.exists()


def test_a_directory_that_cannot_be_made_does_not_stop_training(settings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    nowhere = {"directory": tmp_path / "file" / "runs", "buffer_directory": tmp_path / "file" / "rings"}
    with caplog.at_level(logging.WARNING, "tensormeter"), tensormeter.init(settings=settings.replace(**nowhere)) as run:
        run.log({"loss": 1.0}, step=0)
    assert any("records nothing" in record.message for record in caplog.records)


def test_without_shared_memory_the_ring_is_on_disk(settings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with (
        caplog.at_level(logging.WARNING, "tensormeter"),
        tensormeter.init(settings=settings.replace(buffer_directory=tmp_path / "file" / "rings")) as run,
    ):
        run.log({"loss": 1.0}, step=0)
    assert any("the ring buffer is on disk instead" in record.message for record in caplog.records)
    assert items(settings) == 4


def test_a_ring_that_does_not_fit_shared_memory_goes_to_disk(settings, mount, caplog):
    """As in a container whose /dev/shm has 64 MiB and that runs eight ranks."""
    settings.buffer_directory.mkdir(parents=True)
    small = settings.buffer_directory / "small"
    mount(small, "size=300k")
    with (
        caplog.at_level(logging.WARNING, "tensormeter"),
        tensormeter.init(settings=settings.replace(buffer_directory=small)) as run,
    ):
        run.log({"loss": 1.0}, step=0)
    assert any("the ring buffer is on disk instead" in record.message for record in caplog.records)
    assert items(settings) == 4


def test_shared_memory_that_someone_else_prepared_is_refused(settings, caplog):
    trap = settings.buffer_directory / f"tensormeter-{os.getuid()}"
    trap.mkdir(parents=True)
    trap.chmod(0o777)
    with caplog.at_level(logging.WARNING, "tensormeter"), tensormeter.init(settings=settings) as run:
        run.log({"loss": 1.0}, step=0)
    assert any("only this user can write to" in record.message for record in caplog.records)
    assert not list(trap.iterdir())
    assert items(settings) == 4


def test_what_was_dropped_is_said_at_the_end(settings, caplog):
    with (
        caplog.at_level(logging.WARNING, "tensormeter"),
        tensormeter.init(settings=settings.replace(agent="off")) as run,
    ):
        for step in range(20_000):  # more than the ring of 256 KiB holds, and no agent reads it
            run.log({"loss": 1.0, "odd": 1j, "none": None} if step == 0 else {"loss": 1.0}, step)
    assert any("'odd' is not recorded: a complex number" in record.message for record in caplog.records)
    assert any("is full, so rows are dropped" in record.message for record in caplog.records)
    losses = [record.message for record in caplog.records if "not recorded: " in record.message]
    assert any("points: the ring buffer was full; raise TENSORMETER_BUFFER_BYTES" in words for words in losses)
    assert any("1 value ('odd'): unsupported type" in words for words in losses)
    assert any("1 value ('none'): None was logged; log a number, or leave the key out" in words for words in losses)
    assert sum("'none'" in record.message for record in caplog.records) == 1


def test_a_phase_after_the_last_step_is_recorded_at_the_end(settings, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # else there are times of the device as well
    with tensormeter.init(settings=settings) as run:
        with run.step():
            pass
        with run.phase("evaluation"):
            pass
    assert items(settings) == 2 + (2 + 1) + (1 + 1)  # the start and the end; duration and share of the step; the phase
    assert not caplog.records


SCRIPT = """
import json, sys, tensormeter
run = tensormeter.init(settings=json.loads(sys.argv[1]))
run.log({"loss": 1.0}, 0)
print(run._process.ring.path)
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("pass", "finished"),
        ("sys.exit(0)", "finished"),
        ("1 / 0", "failed"),
        ("raise KeyboardInterrupt", "failed"),
        ("import os; os._exit(0)", "crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "preempted"),
        ("sys.exit(3)", "failed"),
        ("sys.exit('no')", "failed"),
        ("exit(3)", "failed"),
        ("quit('no')", "failed"),
        ("exit()", "finished"),
    ],
)
def test_every_way_to_end_keeps_the_row_and_the_state(settings, ending, state):
    given = json.dumps(settings.replace(agent="off").to_json())
    run_python("-c", SCRIPT, given, ending)
    (run,) = list_runs(settings.directory)
    from tensormeter.ring.file import RingFile

    (path,) = run.ring_files()
    ring = RingFile.open(path)
    assert not ring.writer_alive()
    assert ring.state.name == {"crashed": "OPEN"}.get(state, state.upper())


@pytest.mark.parametrize(
    ("script", "status", "state"),
    [
        ("sys.exit(main())", 3, "FAILED"),
        ("exit(main())", 3, "FAILED"),
        (
            "try:\n    sys.exit(main())\nexcept SystemExit as exit: assert exit.code == 3 and exit.args == (3,)",
            0,
            "FINISHED",
        ),
        ("main()\ntry: exit(3)\nexcept SystemExit: pass\nsys.exit()", 0, "FINISHED"),
        ("main()\nthread = threading.Thread(target=sys.exit, args=(3,))\nthread.start()\nthread.join()", 0, "FINISHED"),
        ("main()\ntry: sys.exit(3)\nexcept SystemExit as exit: pickle.dumps(exit)", 0, "FINISHED"),
        ("main()\ntry: sys.exit(3)\nfinally: print('on the way')", 3, "FAILED"),
    ],
)
def test_the_state_is_that_of_the_exit_that_ends_the_interpreter(settings, tmp_path, script, status, state):
    given = json.dumps(settings.replace(agent="off").to_json())
    path = tmp_path / "train.py"
    path.write_text(f"""
import json, pickle, sys, threading, tensormeter
def main():
    tensormeter.init(settings=json.loads(sys.argv[1]))
    return 3
{script}
""")
    ended = subprocess.run([sys.executable, path, given], capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    (run,) = list_runs(settings.directory)
    (ring,) = run.ring_files()
    assert RingFile.open(ring).state.name == state


def test_an_agent_on_a_thread_says_that_it_ends_with_the_process(settings, caplog):
    endpoint = f"http://127.0.0.1:{reserve_port()}"
    online = settings.replace(mode="online", endpoint=endpoint, linger_timeout=1.0, sample_interval=0)
    with caplog.at_level(logging.WARNING, "tensormeter"):
        run = tensormeter.init(id="thread", settings=online)
        run.log({"loss": 1.0}, step=0)
        run.finish()
    (warning,) = [text for text in caplog.messages if "has not been fully delivered" in text]
    assert "keeps trying for 1 s, or until this process ends; after that" in warning
    assert f"{endpoint}/api/v1/runs/thread/attempt: " in warning
    assert "resume=" not in caplog.text
