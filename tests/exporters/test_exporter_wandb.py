"""W&B's offline files, read with W&B's own messages."""

import json
import re

import pytest

from support.processes import TESTS, run_python
from support.wandb_records import nested, records, rows
from tensormeter_exporters.wandb.journal import Journal

SETUP = """
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import psutil, wandb
from support.otlp import Requests as make
from tensormeter.exporter import Accepted, ExporterConfig, Retry
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter_exporters.wandb import exporter as module
from tensormeter_exporters.wandb.records import WandbFile
folder = Path(sys.argv[2])
state = folder / "state"
def exporter():
    return module.WandbExporter(ExporterConfig(endpoint="", token=None, timeout=300, destination="wandb",
                                               options={"directory": str(folder)}, state=state))
"""
"""The beginning of all agents below. Their arguments: the folder of `support`, that of the files, and others."""
LOGGING = """
first = exporter()
assert first.export(make.logs(1, make.start({"lr": 0.5, "net": {"depth": 2}}, tags=["a", "b" * 70], job_type="eval", notes="n"))) == Accepted()
assert first.export(make.logs(7, make.reconfigured({"parameters": 124}))) == Accepted()
rows = make.logged(2, [*make.rows({30: {"train/loss": 0.5}, 10: {"train/loss": 0.25, "acc": 1}}),
                       make.histogram("grad", make.T0)])
assert first.export(rows) == Accepted()
assert first.export(rows) == Accepted()  # again, to the same agent
media = [Table("t", ["x"], [[1]]).event(make.T0, 4), Text("note", "hi").event(make.T0, 5), Alert("spike").event(make.T0, 6), Alert("t" * 100, "x").event(make.T0, 7)]
assert first.export(make.logs(3, *media)) == Accepted()
assert first.export(make.logs(5, *make.media())) == Accepted()
assert first.export(make.logs(4, make.end("failed"))) == Accepted()
first.shutdown()
assert exporter().export(make.logs(4, make.end("failed"))) == Accepted()  # and to the next one
"""


def run_agent(folder, environment, code, *arguments, check=True):
    return run_python("-c", SETUP + code, TESTS, folder, *arguments, environment=environment, check=check)


def history_of(folder):
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [row for path in paths for row in rows(list(records(path)))]


@pytest.fixture(scope="module")
def logged(tmp_path_factory, clean_environment):
    folder = tmp_path_factory.mktemp("wandb")
    done = run_agent(folder, clean_environment, LOGGING)
    assert done.stdout == ""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return list(records(path))


def test_rows_have_their_steps_once(logged):
    history = rows(logged)
    numbers = [row for row in history if "train/loss" in row]
    assert [(row["tensormeter/step"], row["train/loss"]) for row in numbers] == [(30, 0.5), (10, 0.25)]
    assert numbers[1]["acc"] == 1
    assert numbers[1]["_timestamp"] == 1_790_000_001
    (histogram,) = [row["grad"] for row in history if "grad" in row]
    assert histogram["values"] == [1, 1, 2, 1]
    assert histogram["bins"] == [-1, 0, 1, 2, 30]


def test_the_run_is_described(logged):
    kinds = {record.WhichOneof("record_type") for record in logged}
    run = next(record.run for record in logged if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.run_group, run.project, run.display_name) == (
        "run1-p0123456",
        "run1",
        "demo",
        "name of run1",
    )
    last_run = [record.run for record in logged if record.WhichOneof("record_type") == "run"][-1]
    assert (last_run.tags[0], last_run.notes, last_run.job_type) == ("a", "n", "eval")
    assert re.fullmatch("b{55}_[0-9a-f]{8}", last_run.tags[1]), "a suffix keeps it from others that begin alike"
    updates = [record.config.update for record in logged if record.WhichOneof("record_type") == "config"]
    config = nested([item for update in updates for item in update])
    assert (config["lr"], config["parameters"]) == (0.5, 124)
    assert config["net"] == {"depth": 2}
    assert next(record.exit.exit_code for record in logged if record.WhichOneof("record_type") == "exit") == 1
    alerts = [record.alert for record in logged if record.WhichOneof("record_type") == "alert"]
    assert [(alert.title, alert.text) for alert in alerts] == [("spike", ""), ("t" * 60 + "...", "t" * 100 + "\n\nx")]
    assert {alert.wait_duration for alert in alerts} == {1}, "W&B leaves out what comes earlier"
    assert "stats" not in kinds
    assert any("note" in row for row in rows(logged))
    assert any("t" in row for row in rows(logged))


def test_each_kind_of_media_is_logged_as_that_of_wandb(logged):
    kinds = {key: row[key]["_type"] for row in rows(logged) for key in KINDS if key in row}
    assert kinds == KINDS
    assert all(row["tensormeter/step"] == 3 for row in rows(logged) if KINDS.keys() & row.keys())


KINDS = {
    "text": "table-file",
    "table": "table-file",
    "image": "image-file",
    "images": "images/separated",
    "video": "video-file",
    "audio": "audio-file",
    "figure": "plotly-file",
    "html": "html-file",
}


AGENT = """
when, rows = sys.argv[3], 300
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
if when == "end":
    module.Journal.accept = lambda self, *given: die()
elif when.isdecimal():
    left, log = [int(when)], wandb.Run.log
    def counted(run, *values, **options):
        log(run, *values, **options)
        left[0] -= 1
        if not left[0]:
            die()
    wandb.Run.log = counted
agent = exporter()
def deliver(request):
    while isinstance(outcome := agent.export(request), Retry):
        pass
    assert outcome == Accepted(), outcome
def request(number, first, count):
    values = {step: {"loss": step / 7} for step in range(first, first + count)}
    return make.logged(number, make.rows(values, start=make.T0 + 10**12 * number))
if when == "150":
    deliver(request(1, 0, 10))
if when != "never":
    deliver(request(2, 10, rows))
    deliver(request(3, 10 + rows, 10))
    die()
deliver(request(4, 20 + rows, 10))
agent.shutdown()
assert not list(state.glob("*.request"))
"""


def test_a_request_in_which_agents_are_killed_is_logged_once(tmp_path, clean_environment):
    """Agents die amid its rows, amid what is left of them, before they note its end, and when all is accepted.

    The last one gets nothing again but the request after it, and still completes the files.
    """
    for when, status in (("150", -9), ("60", -9), ("end", -9), ("accepted", -9), ("never", 0)):
        done = run_agent(tmp_path, clean_environment, AGENT, when, check=False)
        assert done.returncode == status, done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) >= 3
    history = history_of(tmp_path)
    expected = {step: (step, step / 7) for step in range(330)}
    assert len(history) == len(expected)
    assert {row["_step"]: (row["tensormeter/step"], row["loss"]) for row in history} == expected


def test_a_journal_cannot_name_other_files(tmp_path):
    """It may have come from elsewhere with the run's folder."""
    (tmp_path / "thesis.request").write_text("years of work")
    entry = {"number": "../thesis", "id": "a", "signal": "logs", "first": {}, "rows": {}}
    document = {"accepted": "", "number": 1, "entries": [entry], "next": {}, "files": {}, "written": {}}
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="thesis"):
        Journal(tmp_path / "state")
    assert (tmp_path / "thesis.request").exists()


ODD_AGENT = """
bad = Image("bad", b"\\x89PNG\\r\\n\\x1a\\nbroken", "image/png", 1, 1)
media = make.logs(1, Text("k" * 300, "first").event(make.T0, 1), bad.event(make.T0, 2), Text("/", "last").event(make.T0, 3))
if sys.argv[3] == "begun":
    module.Journal.accept = lambda self, *given: os.kill(os.getpid(), signal.SIGKILL)
agent = exporter()
outcome = agent.export(media)
assert module.Journal(state).refused == (1, outcome.message), "for an agent that is asked again"
print(outcome.rejected, outcome.message)
print(agent.export(make.logged(2, make.rows({4: {"loss": 0.5}}))).rejected)
print(agent.export(make.logs(3, bad.event(make.T0, 5))).rejected)
agent.shutdown()
"""


def test_an_agent_that_is_killed_at_a_refused_item_does_not_fail_the_next_ones(tmp_path, clean_environment):
    """The journal then has an entry with an item that wandb refuses; it is refused and counted again, and the rest is there once."""
    killed = run_agent(tmp_path, clean_environment, ODD_AGENT, "begun", check=False)
    assert killed.returncode == -9, killed.stderr
    done = run_agent(tmp_path, clean_environment, ODD_AGENT, "never")
    first, *others = done.stdout.splitlines()
    assert first.startswith("1 image 'bad': UnidentifiedImageError")
    assert others == ["0", "1"]
    history = history_of(tmp_path)
    shown = [name for row in history for name in row if name.startswith(("k" * 50, "__"))]
    assert len(shown) == 2, "the texts before and after the picture are there once"
    assert [row["loss"] for row in history if "loss" in row] == [0.5]


DAMAGED_AGENT = """
damage = sys.argv[3]
def rows(number):
    return make.logged(number, make.rows({number: {"loss": number / 7}}, start=make.T0 + number))
agent = exporter()
assert agent.export(rows(1)) == Accepted()
if damage == "journal":
    (state / "journal.json").write_text('{"accepted": "spool0-1", "entr')
elif damage == "body":
    (path,) = state.glob("*.request")
    path.write_bytes(path.read_bytes()[:20])
else:
    (path,) = state.glob("*.request")
    path.unlink()
agent._runs["p0123456789"].finish()
(path,) = folder.glob("wandb/offline-run-*/*.wandb")
written = WandbFile(path)
while written.last_step < 0:  # wandb's own process writes it, and may be behind
    written.read()
    threading.Event().wait(0.01)
another = exporter()
assert another.export(rows(2)) == Accepted()
assert another.export(make.logs(3, make.end())) == Accepted()
another.shutdown()
print(sorted(path.name for path in state.iterdir()))
"""


@pytest.mark.parametrize("damage", ["journal", "body", "no body"])
def test_a_damaged_journal_does_not_fail_every_next_agent(tmp_path, clean_environment, damage):
    done = run_agent(tmp_path, clean_environment, DAMAGED_AGENT, damage)
    assert "cannot read the W&B journal" in done.stderr or "in the journal" in done.stderr
    assert ("journal.json.damaged" in done.stdout) == (damage == "journal")
    history = history_of(tmp_path)
    assert [row["loss"] for row in history if row["tensormeter/step"] == 2] == [2 / 7]
    assert sorted(row["_step"] for row in history) == [0, 1], "W&B takes no steps that go back"


RESERVED = """
agent = exporter()
values = {"_step": 100.0, "_timestamp": 5.0, "_runtime": 6.0, "tensormeter/step": 7.0, "loss": 0.5}
assert agent.export(make.logged(1, make.rows({3: values}), run="r" * 128)) == Accepted()
agent.shutdown()
"""


def test_a_users_own_columns_do_not_replace_those_of_wandb(tmp_path, clean_environment):
    done = run_agent(tmp_path, clean_environment, RESERVED)
    (row,) = history_of(tmp_path)
    assert (row["_step"], row["tensormeter/step"], row["loss"]) == (0, 3, 0.5)
    assert row["_timestamp"] == 1_790_000_000
    renamed = {
        re.sub("_[0-9a-f]{8}$", "", name): value for name, value in row.items() if re.search("_[0-9a-f]{8}$", name)
    }
    assert renamed == {"step": 100.0, "timestamp": 5.0, "runtime": 6.0, "tensormeter_step": 7.0}
    assert "'_step' is stored as 'step_" in done.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert len(path.stem.removeprefix("run-")) <= 64, "W&B's limit on a run's id"


SERVICE_KILLED = """
agent = exporter()
def deliver(number):
    outcomes = [Retry("not tried")]
    while isinstance(outcomes[-1], Retry) and len(outcomes) < 5:
        outcomes.append(agent.export(make.logged(number, make.rows({number: {"loss": number / 7}}, start=make.T0 + number))))
    return outcomes[1:]
for number in range(40):
    if number in (10, 20):
        for process in psutil.Process().children(recursive=True):
            if "wandb-core" in process.name():
                process.kill()
                process.wait()
    outcomes = deliver(number)
    assert outcomes[-1] == Accepted(), outcomes
    if len(outcomes) > 1:
        print(outcomes[0].reason)
agent.shutdown()
"""


def test_wandbs_own_process_may_be_killed(tmp_path, clean_environment):
    """By the system, for example, when memory is short: another one goes on, and each row is there once."""
    done = run_agent(tmp_path, clean_environment, SERVICE_KILLED)
    assert "restarting it" in done.stdout
    history = history_of(tmp_path)
    assert sorted(row["tensormeter/step"] for row in history) == list(range(40))
    assert {row["tensormeter/step"]: row["loss"] for row in history} == {step: step / 7 for step in range(40)}
