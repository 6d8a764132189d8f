"""One line for each series, that cannot move a terminal's cursor."""

from tensormeter.exporter import Accepted
from tensormeter.otlp.media import Alert, Text
from tensormeter_exporters.console import ConsoleExporter


def test_each_metric_and_event_becomes_a_line(make, config, capsys):
    exporter = ConsoleExporter(config())
    assert exporter.export(make.logged(1, make.rows({3: {"loss\x1b[2J": 0.5}, 4: {"loss\x1b[2J": 0.25}}))) == Accepted()
    events = [make.start({"lr": 1}), Alert("spike", "up", "WARN").event(make.T0, 1), Text("n", "x").event(make.T0, 2)]
    events += [make.code(), make.artifact("a.pt")]
    assert exporter.export(make.logs(2, *events)) == Accepted()
    assert exporter.export(make.logs(3, *make.media())) == Accepted()
    assert capsys.readouterr().out.splitlines() == [
        "demo/run1 step 4 loss�[2J = 0.25 (last of 2)",
        "demo/run1 tensormeter.run.start {'config': {'lr': 1}}",
        "demo/run1 WARN spike: up",
        "demo/run1 step 2 tensormeter.text n",
        "demo/run1 tensormeter.run.code {'commit': '" + "c" * 40 + "', 'branch': 'main', 'remote': 'https://x/y.git', "
        "'uncommitted changes': 'yes', 'script': '/w/train.py', 'python': '3.12.4'}",
        (
            "demo/run1 tensormeter.artifact {'name': 'a.pt', 'type': 'model', 'aliases': ['best'], 'path': '/w/a.pt', "
            "'digest': 'sha256:ab'}"
        ),
        *(f"demo/run1 step 3 tensormeter.{kind} {kind}" for kind in exporter.media),
    ]
