"""Alerts: detectors, what the watcher makes of a store, and webhooks that fail and come back."""

import json
import math
import random
import time

import numpy as np
import pytest

from support.otlp_receivers import Http
from support.stores import append_batches
from tensormeter.errors import SettingsError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Scope, Sum
from tensormeter.server.alerts import followed
from tensormeter.server.alerts.config import AlertConfig, Rule, load_alert_config
from tensormeter.server.alerts.detectors import make_detector
from tensormeter.server.alerts.watcher import Watcher
from tensormeter.server.alerts.webhook import Webhook
from tensormeter.server.store import RunRef
from tensormeter.server.store.models.event_query import EventQuery
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = (int(time.time()) - 3600) * 10**9
SECOND = 10**9


def fired_at(rule, values):
    detector = make_detector(rule)
    return [index for index, value in enumerate(values) if detector(value) is not None]


def test_nan_is_said_once_until_it_is_calm_again():
    rule = Rule(kind="nan")
    assert fired_at(rule, [1.0, math.nan, math.nan, 1.0, math.inf]) == [1]
    assert fired_at(rule, [math.nan, *[1.0] * 20, -math.inf]) == [0, 21]


def test_spikes_of_a_noisy_falling_loss():
    chaos = random.Random(1)
    values = [math.exp(-i / 300) + chaos.gauss(0, 0.05) for i in range(1000)]
    assert fired_at(Rule(kind="spike"), values) == []
    values[500] += 3
    values[501] += 3
    assert fired_at(Rule(kind="spike"), values) == [500]
    assert fired_at(Rule(kind="spike"), [1.0] * 50 + [1.01] + [1.0] * 50) == []
    assert fired_at(Rule(kind="spike"), [1.0] * 50 + [2.0]) == [50]
    assert fired_at(Rule(kind="spike"), [1.0, 100.0]) == []  # too little is known yet


def test_thresholds_speak_when_they_are_crossed():
    rule = Rule(kind="threshold", above=2.0, below=-1.0)
    assert fired_at(rule, [0, 3, 4, 0, 3, math.nan, -2]) == [1, 4, 6]


@pytest.fixture
def watched(tmp_path):
    """A store, a clock, and a watcher of it."""

    class Watched:
        now = 0.0
        store = SqliteStore(tmp_path / "store", flush_points=1 << 60, flush_interval=3600)

        def rows(self, first, losses, process="p", run="r"):
            steps = np.arange(first, first + len(losses))
            times = (T0 + steps * SECOND).astype(np.uint64)
            gauges = [Gauge(STEP_METRIC, times, steps), Gauge("train/loss", times, np.array(losses))]
            resource = {"service.name": "demo", "tensormeter.run.id": run, "service.instance.id": process}
            append_batches(self.store, Batch(resource, gauges))

        def alerts(self, run="r"):
            events = self.store.events(RunRef(run), EventQuery(name="tensormeter.alert"))
            return [(event.attributes["tensormeter.alert.kind"], event.step) for event in reversed(events)]

    watched = Watched()
    watched.rows(-1, [0.5])
    watched.watcher = Watcher(watched.store, AlertConfig().rules, clock=lambda: watched.now)
    yield watched
    watched.store.close()


def test_the_watcher_raises_alerts_once(watched):
    watched.rows(0, [1.0] * 30)
    watched.watcher.check()
    assert watched.alerts() == []
    watched.rows(30, [9.0, 1.0, math.nan])
    watched.rows(30, [9.0, 1.0, math.nan], process="another rank, the same trouble")
    for _ in range(2):
        watched.watcher.check()
        assert watched.alerts() == [("spike", 30), ("nan", 32)]
    (nan, spike) = watched.store.events(RunRef("r"), EventQuery(name="tensormeter.alert"))
    assert nan.body["message"] == "train/loss: the value is nan"
    assert (spike.body["value"], spike.body["process"], spike.time) == (9.0, "p", T0 + 30 * SECOND)
    watched.now += 61
    watched.store.flush()
    watched.rows(33, [1.0] * 30 + [math.nan])
    watched.watcher.check()
    assert watched.alerts() == [("spike", 30), ("nan", 32), ("nan", 63)]


def test_many_metrics_are_watched_in_parts(watched, monkeypatch):
    """The metrics of a run are read in parts, and each alert has its step, whichever part the metric is in."""
    monkeypatch.setattr("tensormeter.server.alerts.watcher._MAX_METRICS", 3)
    times = np.array([T0 + 5 * SECOND], np.uint64)
    resource = {"service.name": "demo", "tensormeter.run.id": "r", "service.instance.id": "p"}
    gauges = [Gauge(f"grad/{number}", times, np.array([math.nan if number % 4 else 1.0])) for number in range(10)]
    append_batches(watched.store, Batch(resource, [Gauge(STEP_METRIC, times, np.array([5])), *gauges]))
    for _ in range(2):
        watched.watcher.check()
        assert watched.alerts() == [("nan", 5)] * 7


def test_a_stopped_watcher_checks_no_more_points(watched, monkeypatch):
    """A check of many metrics ends when the server stops, so that the server does not wait for it."""
    monkeypatch.setattr("tensormeter.server.alerts.watcher._MAX_METRICS", 1)
    times = np.array([T0 + 5 * SECOND], np.uint64)
    resource = {"service.name": "demo", "tensormeter.run.id": "r", "service.instance.id": "p"}
    gauges = [Gauge(f"grad/{number}", times, np.array([math.nan])) for number in range(10)]
    append_batches(watched.store, Batch(resource, gauges))
    raise_alert = watched.store.raise_alert

    def stop_after_the_first(run, event):
        raise_alert(run, event)
        watched.watcher.stop()

    monkeypatch.setattr(watched.store, "raise_alert", stop_after_the_first)
    for _ in range(2):
        watched.watcher.check()
        assert watched.alerts() == [("nan", None)]


def test_metrics_of_one_name_are_watched_apart(watched):
    """Two libraries whose losses are of another size make no spikes, and neither hides the other's NaN."""
    times = (T0 + np.arange(60) * SECOND).astype(np.uint64)
    resource = {"service.name": "demo", "tensormeter.run.id": "r", "service.instance.id": "p"}

    def log(part):
        small, large = np.ones(60), np.full(60, 1000.0)
        small[-1] = math.nan
        series = [
            Gauge("train/loss", times[part], values[part], scope=Scope(name))
            for name, values in (("large", large), ("small", small))
        ]
        append_batches(watched.store, Batch(resource, series))
        watched.watcher.check()

    log(slice(0, 50))
    log(slice(50, 60))
    assert watched.alerts() == [("nan", None)]


def test_a_process_that_drops_something_is_told_once(watched):
    """The metric may be new: it comes with the first loss."""
    for moment, count in ((1, 3), (2, 3), (3, 900)):
        dropped = Sum(
            "tensormeter.dropped",
            np.array([T0 + moment * SECOND], np.uint64),
            np.array([count], np.int64),
            np.array([T0], np.uint64),
            attributes={"tensormeter.reason": "ring_full"},
        )
        resource = {"service.name": "demo", "tensormeter.run.id": "r", "service.instance.id": "p"}
        append_batches(watched.store, Batch(resource, [dropped]))
        watched.watcher.check()
        watched.now += 61
    (alert,) = watched.store.events(RunRef("r"), EventQuery(name="tensormeter.alert"))
    assert alert.body["message"] == "tensormeter.dropped: 3 is above 0"
    assert alert.attributes["tensormeter.key"] == "tensormeter.dropped"


def test_a_run_without_steps_is_stalled_until_it_goes_on(watched):
    watched.rows(0, [1.0] * 30)  # a step a second
    watched.watcher.check()
    watched.now += 59
    watched.watcher.check()
    assert watched.alerts() == []
    watched.now += 2
    for _ in range(2):
        watched.watcher.check()
        assert watched.alerts() == [("stall", None)]
        assert watched.store.run(RunRef("r")).state == "stalled"
    watched.rows(30, [1.0])
    watched.watcher.check()
    assert watched.store.run(RunRef("r")).state == "running"
    watched.now += 61
    watched.watcher.check()
    assert len(watched.alerts()) == 2


def test_what_is_gone_is_not_watched(watched):
    watched.rows(0, [1.0] * 30)
    watched.watcher.check()
    watched.store.delete(RunRef("r"))
    watched.now += 1000
    watched.watcher.check()
    watched.watcher.check()
    assert watched.store.alerts(0, 10) == []
    assert watched.store.projects() == []


def log(watched, step, values):
    """Log a row of values by metric, with its step, and check the rules."""
    times = np.array([T0 + step * SECOND], np.uint64)
    gauges = [Gauge(STEP_METRIC, times, np.array([step]))]
    gauges += [Gauge(metric, times, np.array([value])) for metric, value in values.items()]
    append_batches(watched.store, Batch({"service.name": "demo", "tensormeter.run.id": "r"}, gauges))
    watched.watcher.check()


def alerted(watched):
    """Return the kind, metric and step of each alert, oldest first."""
    events = watched.store.events(RunRef("r"), EventQuery(name="tensormeter.alert"))
    return [(event.body["kind"], event.body["metric"], event.step) for event in reversed(events)]


def test_of_a_wide_run_only_series_with_nan_are_read(watched, monkeypatch):
    """The other series match the rule too, but a rule for NaN need not look at finite values."""
    read, selected = watched.store.read, []
    monkeypatch.setattr(
        watched.store, "read", lambda ref, selection: selected.append(sorted(selection.metrics)) or read(ref, selection)
    )
    wide = {f"layer_{number:04}/grad_norm": 1.0 for number in range(5000)} | {"loss": 1.0}
    nan = {**wide, "layer_3000/grad_norm": math.nan}
    log(watched, 0, wide)
    log(watched, 1, nan)
    assert alerted(watched) == [("nan", "layer_3000/grad_norm", 1)]
    losses = ["loss", STEP_METRIC, "train/loss"]  # the default rules look for spikes of the loss
    assert selected == [losses, ["layer_3000/grad_norm", *losses]]
    watched.now += 61
    for step in range(2, 21):
        log(watched, step, {"layer_3000/grad_norm": 1.0})
    log(watched, 21, nan)
    assert len(alerted(watched)) == 1  # there were only 19 normal values in between
    for step in range(22, 43):
        log(watched, step, {"layer_3000/grad_norm": 1.0})
    del selected[:]
    log(watched, 43, wide)
    assert selected == [losses]
    log(watched, 44, nan)
    assert alerted(watched)[1:] == [("nan", "layer_3000/grad_norm", 44)]


def test_a_rule_follows_a_limited_number_of_metrics(watched, monkeypatch, caplog):
    """The log names the rule and the run. Other rules are not affected."""
    monkeypatch.setattr(followed, "MAX_METRICS", 3)
    monkeypatch.setattr("tensormeter.server.alerts.watcher.MAX_METRICS", 3)
    log(watched, 0, {f"grad_{number}": math.nan for number in range(1500)} | {"loss": 1.0})
    log(watched, 1, {f"grad_{number:04}": math.nan for number in range(1500)} | {"loss": math.nan})
    assert sorted(alerted(watched)) == [
        ("nan", "grad_0", 0),
        ("nan", "grad_1", 0),
        ("nan", "grad_10", 0),
        ("nan", "loss", 1),
    ]
    (record,) = caplog.records
    assert "rule `nan` for metrics '*grad*' does not check all metrics of run 'r' in project 'demo'" in record.message
    log(watched, 2, {f"loss_{number}": 1.0 for number in range(3)})
    assert "rule `spike` for metrics '*loss*'" in caplog.records[-1].message
    assert len(caplog.records) == 2


def test_a_rule_follows_a_limited_number_of_series(watched, monkeypatch, caplog):
    monkeypatch.setattr(followed, "MAX_SERIES", 2)
    for rank in range(3):
        watched.rows(0, [math.nan], process=f"rank-{rank}")
    watched.watcher.check()
    assert alerted(watched) == [("nan", "train/loss", 0)]
    assert ["`nan`" in record.message or "`spike`" in record.message for record in caplog.records] == [True, True]


def test_a_webhook_is_told_again_until_it_listens(start, make, tmp_path, eventually):
    elsewhere, receiver = Http(), Http()
    receiver.answers += [(503, {"Retry-After": "0"}, b""), (429, {}, b"")]
    file = tmp_path / "alerts.toml"
    file.write_text(
        f"""
        defaults = false
        [[rule]]
        kind = "threshold"
        metric = "eval/*"
        above = 10
        [[webhook]]
        url = "{receiver.url}/secret-path"
        """
    )
    try:
        server = start("--alerts", str(file), "--alert-interval", "0.05")
        rows = [(T0 + i, i, {"eval/ppl": 20.0 if i == 5 else 1.0, "other": 99.0}) for i in range(10)]
        server.metrics(make.rows("hooked", rows))
        eventually(lambda: receiver.accepted)
        (message,) = map(json.loads, receiver.accepted)
        assert (message["run"], message["project"], message["step"]) == ("hooked", "demo", 5)
        assert message["text"] == "demo/hooked: eval/ppl: 20 is above 10"
        (event,) = server.get("/api/v1/runs/hooked/events", name="tensormeter.alert")["events"]
        assert event["attributes"]["tensormeter.key"] == "eval/ppl"
        assert (event["step"], event["body"]["kind"]) == (5, "threshold")
        # What a trainer alerts goes the same way; a redirect is refused, and what is refused is not tried again.
        receiver.answers.append((302, {"Location": elsewhere.url}, b""))
        alert = Event("tensormeter.alert", T0, {"title": "mine", "webhook": elsewhere.url}, {})
        server.events(make.resource("hooked"), alert)
        eventually(lambda: len(receiver.received) == 4)
        assert server.stop() == 0
        server = start("--alerts", str(file), "--alert-interval", "0.05")
        server.events(make.resource("hooked"), Event("tensormeter.alert", T0, {"title": "again"}, {}))
        eventually(lambda: len(receiver.accepted) == 2)
        assert json.loads(receiver.accepted[1])["text"] == "demo/hooked: again"
        assert server.stop() == 0
        assert "secret-path" not in server.stderr
        assert elsewhere.received == []
    finally:
        receiver.stop()
        elsewhere.stop()


def test_imported_runs_raise_no_alerts(watched, eventually):
    receiver = Http()
    webhook = Webhook(watched.store, receiver.url)
    try:
        imported = -2 * 86_400
        watched.rows(imported, [0.5, math.nan, *[0.5] * 30, 9.0], run="imported")
        old = Event("tensormeter.alert", T0 + imported * SECOND, {"title": "imported"}, {})
        new = Event("tensormeter.alert", T0, {"title": "new"}, {})
        for alert in (old, new):
            watched.store.raise_alert(RunRef("r"), alert)
        watched.watcher.check()
        assert watched.alerts("imported") == []
        watched.now = 1e6
        watched.watcher.check()
        assert watched.alerts("imported") == []  # and it has not stalled
        eventually(lambda: receiver.accepted)
        assert [json.loads(body)["alert"]["title"] for body in receiver.accepted] == ["new"]
    finally:
        webhook.stop()
        receiver.stop()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "cannot read the file"),
        ("unknown = 1", "unknown"),
        ("[[rule]]\nmetric = 'x'", "rule 1: `kind` is required"),
        ("[[rule]]\nkind = 'x'", "rule 1: kind"),
        ("[[rule]]\nkind = 'threshold'", "above"),
        ("[[rule]]\nkind = 'spike'\nwindow = 5", "window"),
        ("[[rule]]\nkind = 'spike'\nscore = 'x'", "score"),
        ("[[webhook]]\nurl = 'ftp://x'", "webhook 1"),
        ("rule = 3", "[[rule]]"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, words):
    file = tmp_path / "alerts.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_alert_config(file)
    assert words in str(caught.value)


def test_a_file_adds_to_the_defaults(tmp_path):
    file = tmp_path / "alerts.toml"
    file.write_text("[[rule]]\nkind = 'threshold'\nbelow = 0\n[[webhook]]\nurl = 'https://x.example/secret'")
    config = load_alert_config(file)
    assert len(config.rules) == len(AlertConfig().rules) + 1
    assert config.webhooks == ("https://x.example/secret",)
    assert "secret" not in repr(config)
