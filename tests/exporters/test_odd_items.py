"""Every kind of item under odd keys and with odd contents, to each destination: each arrives or is refused alone, under another name.

The test reads the items back from the destination. Two keys never share a name.
"""

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import odd_items
import pytest
import urllib3
from odd_items import CONFIG, CONTROLS, GOOD_IMAGES, KEYS, STEPS, TABLES, TEXTS, VALUES

from support.processes import run_python
from support.wandb_records import nested, records, rows

NUMBERS = range(len(KEYS))


def deliver_in_process(destination, folder, environment, **options):
    """Delivers in another process, whose output may be anything: W&B and MLflow change the process that they are in."""
    given = {f"{destination}.{name}": str(value) for name, value in options.items()}
    folder.mkdir(exist_ok=True)
    done = run_python(
        str(Path(odd_items.__file__)),
        destination,
        folder / "state",
        json.dumps(given),
        environment=environment,
        folder=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown, _, last = done.stdout.rstrip().rpartition("\n")
    return json.loads(last) | {"shown": shown}


def deliver(destination, folder, before_it_ends=lambda delivery: None, settings=None, **options):
    given = {f"{destination}.{name}": str(value) for name, value in options.items()}
    return odd_items.deliver(destination, folder, given, before_it_ends=before_it_ends, **(settings or {}))


def check_delivery(delivered, refused):
    assert delivered["losses"] == ({"refused": refused} if refused else {}), delivered["log"]
    assert delivered["rejections"] == []
    raised = [line for line in delivered["log"] if "failed at" in line]
    assert raised == [], "no exporter raised"


def check_names(values_by_name, expected, *, what):
    """`values_by_name` has what arrived under each name. Each key's values are there, together and with no other's."""
    owners = {}
    for name, values in values_by_name.items():
        for value in values:
            owners.setdefault(value, []).append(name)
    for number in NUMBERS:
        names = {tuple(owners.get(value, ())) for value in expected(number)}
        assert len(names) == 1, (what, KEYS[number], names)
        (places,) = names
        assert len(places) == 1, (what, KEYS[number], places)
        assert set(values_by_name[places[0]]) == set(expected(number)), (what, KEYS[number], places)


def gauges(number):
    return number + 1000.25, number + 1000.75


def test_every_good_item_arrives_at_wandb(tmp_path, clean_environment):
    delivered = deliver_in_process("wandb", tmp_path, clean_environment, directory=tmp_path / "out")
    check_delivery(delivered, refused=1 + len(odd_items.BAD_IMAGES))
    (path,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    logged = list(records(path))
    history, files = rows(logged), path.parent / "files"
    columns, texts, tables, images = (defaultdict(list) for _ in range(4))
    for row in history:
        for name, value in row.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                data = json.loads((files / value["path"]).read_text())["data"]
                cell = str(data[0][0]) if data and data[0] else ""
                (texts if cell.startswith("text ") else tables)[name].append(cell)
            elif isinstance(value, dict) and value.get("_type") == "image-file":
                assert (files / value["path"]).stat().st_size
                images[name].append(value["width"])
            elif isinstance(value, dict) and value.get("_type") == "histogram":
                columns[f"{name}: histogram"].append(tuple(value["values"]))
            else:
                columns[name].append(value)
    assert columns["control"] == [number + 0.5 for number in (0, 1, 6)]
    plain = {name: [value for value in values if value not in (0.5, 1.5, 6.5)] for name, values in columns.items()}
    own = ("_step", "_timestamp", "_runtime", "tensormeter/step", "control", *(f"step {name}" for name in STEPS))
    numbers = {name: values for name, values in plain.items() if name not in own}
    check_names(
        {
            name: [v for v in values if v in {value for n in NUMBERS for value in gauges(n)}]
            for name, values in numbers.items()
        },
        gauges,
        what="gauge",
    )
    check_names(texts, lambda number: (f"text {number};",), what="text")
    check_names(tables, lambda number: (f"table {number};",), what="table")
    check_names(images, lambda number: (number + 1,), what="image")
    distributions = {name: values for name, values in columns.items() if name.endswith(": histogram")}
    check_names(distributions, lambda number: ((1, number + 10, 1),), what="distribution")
    assert {f"good {name}" for name in GOOD_IMAGES} <= images.keys()
    assert not {f"bad {name}" for name in odd_items.BAD_IMAGES} & images.keys()
    assert {f"table {name}" for name in TABLES} | {"broken cell"} <= tables.keys()
    assert [columns[f"step {name}"] for name in STEPS] == [[1.0]] * len(STEPS)
    assert {f"value {name}" for name in VALUES} <= columns.keys()
    assert columns["made/mean"] == [gauges(KEYS.index("made/mean"))[0], gauges(KEYS.index("made/mean"))[1]]
    assert sum(columns[name] == [5002] for name in columns) == 1, "the distribution's own count has another name"
    alerts = [record.alert.text for record in logged if record.WhichOneof("record_type") == "alert"]
    assert [text.rpartition("\n")[2] for text in alerts] == [f"alert {number};" for number in NUMBERS]
    updates = [
        item for record in logged if record.WhichOneof("record_type") == "config" for item in record.config.update
    ]
    config = nested(updates)
    assert {name: value for name, value in config.items() if value in CONFIG.values()}.keys() >= {
        "plain",
        "a/b",
        "mAP@50",
    }
    assert sorted(v for v in map(str, config.values()) if v.startswith("value ")) == sorted(
        [*CONFIG.values(), "value c"]
    )
    tags = [list(record.run.tags) for record in logged if record.WhichOneof("record_type") == "run"][-1]
    assert len(set(tags)) == len(KEYS)


def test_every_good_item_arrives_at_mlflow(tmp_path, clean_environment):
    environment = clean_environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    delivered = deliver_in_process("mlflow", tmp_path, environment, tracking_uri=uri)
    check_delivery(delivered, refused=0)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        metrics, params, tags = defaultdict(list), {}, {}
        for name, value, step in database.execute(
            "SELECT key, value, step FROM metrics WHERE NOT is_nan ORDER BY timestamp, step"
        ):
            metrics[name].append((step, value))
        params = dict(database.execute("SELECT key, value FROM params"))
        tags = dict(database.execute("SELECT key, value FROM tags"))
        status, artifacts = database.execute("SELECT status, artifact_uri FROM runs").fetchone()
    database.close()
    assert status == "FINISHED"
    assert metrics["control"] == [(number, number + 0.5) for number in (0, 1, 6)]
    values = {
        name: [value for step, value in points if step in (1, 2)]
        for name, points in metrics.items()
        if name != "control"
    }
    check_names(values, gauges, what="gauge")
    counts = {name: [value for step, value in points if step == 3] for name, points in metrics.items()}
    check_names(
        {name: [v for v in shown if v in {n + 5000.125 for n in NUMBERS}] for name, shown in counts.items()},
        lambda number: (number + 5000.125,),
        what="maximum of a distribution",
    )
    assert [step for name in STEPS for step, _ in metrics[f"step {name}"]] == list(STEPS.values())
    assert sorted(params.values()) == sorted(
        [*CONFIG.values(), "value a", "value b", "value c", "{}", '[1, "a", null]', "NaN"]
    )
    assert sum(value == "true" for value in tags.values()) == len(KEYS)
    files = {path: path.read_bytes() for path in Path(artifacts.removeprefix("file://")).rglob("*") if path.is_file()}
    for kind, expected in {
        "texts": [f"text {number};".encode() for number in NUMBERS],
        "tables": [b'{"columns": ["a"], "data": [["table %d;"]]}' % number for number in NUMBERS],
        "images": [odd_items.picture(number + 1) for number in NUMBERS]
        + [*GOOD_IMAGES.values(), *odd_items.BAD_IMAGES.values()],
    }.items():
        there = [data for path, data in files.items() if f"/{kind}/" in str(path)]
        assert [data for data in expected if there.count(data) != expected.count(data)] == [], kind
    alerts = [json.loads(data)["text"] for path, data in files.items() if "/alerts/" in str(path)]
    assert sorted(alerts) == sorted(f"alert {number};" for number in NUMBERS)
    assert (
        sum(
            data in (GOOD_IMAGES["png"], GOOD_IMAGES["jpeg"]) for path, data in files.items() if "/tables/" in str(path)
        )
        == 3
    )


def test_every_good_item_arrives_at_tensorboard(tmp_path):
    from test_exporter_tensorboard import load

    delivered = deliver("tensorboard", tmp_path / "state", directory=tmp_path / "out")
    check_delivery(delivered, refused=0)
    loaded = load(tmp_path / "out" / "odd" / "run1" / "p0123456")
    values, texts, images = (defaultdict(list) for _ in range(3))
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "out").rglob("events.out.*")
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tensor.string_val and value.metadata.plugin_data.plugin_name == "text":
                texts[value.tag].append(value.tensor.string_val[0].decode())
            elif value.metadata.plugin_data.plugin_name == "images":
                images[value.tag].append(value.tensor.string_val[2])
            elif value.metadata.plugin_data.plugin_name == "scalars":
                values[value.tag].append((event.step, float(value.tensor.float_val[0])))
    assert values["control"] == [(number, number + 0.5) for number in (0, 1, 6)]
    first = {
        name: [value for step, value in points if step in (1, 2)]
        for name, points in values.items()
        if name != "control"
    }
    check_names(first, gauges, what="gauge")
    wanted = {f"text {number};" for number in NUMBERS}
    check_names(
        {tag: [text for text in shown if text in wanted] for tag, shown in texts.items()},
        lambda n: (f"text {n};",),
        what="text",
    )
    assert {tag: shown[-1] for tag, shown in images.items() if tag in KEYS} == {
        key: odd_items.picture(number + 1) for number, key in enumerate(KEYS)
    }
    alerts = [text for text in texts["alerts"] if "alert " in text]
    assert [text.rpartition("\n")[2] for text in alerts] == [f"alert {number};" for number in NUMBERS]
    assert all(value in texts["config"][0] for value in CONFIG.values())
    assert {f"table {name}" for name in TABLES} | {f"text {name}" for name in TEXTS} <= texts.keys()
    assert "control" in loaded.Tags()["tensors"]


def controls_of(batches):
    return [
        value
        for batch in batches
        for gauge in batch.gauges
        if gauge.name == "control"
        for value in gauge.values.tolist()
    ]


def check_otlp(bodies):
    """Whether requests in OTLP have everything, as it was logged."""
    from tensormeter.otlp.decode import decode_events, decode_metrics

    expected = list(odd_items.requests())
    for signal, decode in (("metrics", decode_metrics), ("logs", decode_events)):
        sent = [repr(decode(body)) for kind, body, _ in expected if kind == signal]
        assert [repr(decode(body)) for kind, body in bodies if kind == signal] == sent


def test_every_good_item_arrives_in_a_file(tmp_path):
    from tensormeter.otlp.json_lines import decode_line

    delivered = deliver("jsonl", tmp_path / "state", directory=tmp_path / "out")
    check_delivery(delivered, refused=0)
    lines = [line for path in sorted((tmp_path / "out").glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    check_otlp([decode_line(line)[:2] for line in lines])


@pytest.mark.usefixtures("only_our_variables")
def test_every_good_item_arrives_by_otlp(tmp_path, http):
    import gzip

    delivered = deliver("otlp", tmp_path / "state", endpoint=f"http://127.0.0.1:{http.port}")
    check_delivery(delivered, refused=0)
    check_otlp([(path.rpartition("/")[2], gzip.decompress(body)) for path, _, body in http.received])


def test_every_good_item_is_printed(tmp_path, capsys):
    delivered = deliver("console", tmp_path / "state")
    check_delivery(delivered, refused=0)
    shown = capsys.readouterr().out
    assert shown.isprintable() or all(line.isprintable() for line in shown.split("\n"))
    lines = shown.splitlines()
    assert sum(" control = " in line for line in lines) == 3
    assert sum("control" in line for line in lines) == CONTROLS
    assert all(
        any(f"= {number + 1000.75:.6g} (last of 2)" in line for line in lines if len(line) < 900)
        for number in (0, 1, 50)
    )


def test_every_good_item_arrives_at_an_exporter_of_the_sdk(tmp_path, clean_environment):
    delivered = deliver_in_process("otel:console", tmp_path / "otel", clean_environment)
    check_delivery(delivered, refused=0)
    for number in NUMBERS:
        assert f'"value": {number + 1000.25}' in delivered["shown"]
        assert f'"value": {number + 1000.75}' in delivered["shown"]


def test_every_good_item_can_be_scraped(tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    scraped = []

    def scrape(_):
        line = next(line for line in log.lines if "metrics for Prometheus at" in line)
        answer = urllib3.request("GET", line.rpartition(" ")[2], retries=False)
        assert answer.status == 200
        scraped.extend(text_string_to_metric_families(answer.data.decode()))

    log = odd_items.Log()
    import logging

    logging.getLogger("tensormeter.agent").addHandler(log)
    try:
        delivered = deliver("prometheus", tmp_path / "state", scrape, port=0)
    finally:
        logging.getLogger("tensormeter.agent").removeHandler(log)
    check_delivery(delivered, refused=0)
    samples = {
        sample.name: sample.value
        for family in scraped
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }
    assert samples["control"] == 6.5
    last = {name: [value] for name, value in samples.items() if value in {number + 1000.75 for number in NUMBERS}}
    check_names(last, lambda number: (number + 1000.75,), what="gauge")


def test_every_good_item_arrives_at_the_server(tmp_path, experiment_server):
    delivered = deliver("experiment", tmp_path / "state", settings={"endpoint": experiment_server.url})
    assert delivered["rejections"] == [], "items that the server refuses are counted one by one"
    run = experiment_server.everything("odd")["run1"]
    for number, key in enumerate(KEYS):
        if key in run["series"]:
            (series,) = run["series"][key]
            assert series["value"] == list(gauges(number)), key
    assert [value for control in run["series"]["control"] for value in control["value"]] == [0.5, 1.5, 6.5]
    assert delivered["losses"].get("refused", 0) <= len(odd_items.BAD_IMAGES), delivered["log"]
    images = [bytes.fromhex(data) for data in run["images"].values()]
    wanted = [*GOOD_IMAGES.values(), *(odd_items.picture(number + 1) for number in NUMBERS)]
    assert [data for data in wanted if data not in images] == []
    texts = [event["body"].get("text", "") for event in run["events"] if isinstance(event["body"], dict)]
    assert {f"text {number};" for number in NUMBERS} | {f"alert {number};" for number in NUMBERS} <= set(texts)
    assert {key for key in KEYS if key not in run["series"]} == set()
