"""Variables of other software never end a training: bad values are warned about once, and ignored."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View

import tensormeter
from support.processes import clean_environment, run_python
from tensormeter import MeterProvider, Settings, SettingsError
from tensormeter.environment import variables as environment
from tensormeter.exporter import ExporterConfig
from tensormeter.resource import describe_process, describe_rank
from tensormeter_exporters.experiment import ExperimentExporter
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter
from tensormeter_exporters.otlp.exporter import OtlpExporter
from tensormeter_exporters.prometheus.exporter import PrometheusExporter

OTEL = sorted(
    {
        name
        for module in (opentelemetry.environment_variables, opentelemetry.sdk.environment_variables)
        for name in vars(module).values()
        if isinstance(name, str) and name.startswith("OTEL_")
    }
)
LAUNCHERS = [
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "MPI_LOCALNRANKS",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_NAME",
    "CUDA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "TMPDIR", "COLUMNS",
    "XDG_STATE_HOME", "HOME", "HOSTNAME", "TZ", "LANG",
]  # fmt: skip

VALUES = {
    "empty": "",
    "blank": "  ",
    "word": "abc",
    "words": "a b",
    "zero": "0",
    "negative": "-5",
    "exponent": "1e3",
    "huge": "1e9",
    "digits": "9" * 5000,
    "nan": "nan",
    "infinite": "-inf",
    "other script": "²٣",
    "snowman": "caf\u00e9 \u2603",
    "no unicode": "\udcff=\udcfe",
    "control": "\x01=\x02\n",
    "long": "x" * 70_000,
    "separators": ",=,;=",
    "percent": "%zz=%ff%00",
    "true": "TRUE",
    "none": "none",
    "star": "*",
    "half an address": "http://[::1",
    "port": "http://host:port",
    "socket": "unix:///nowhere.sock",
    "no scheme": "nowhere.invalid:4317",
    "credentials": "https://user:hunter2@nowhere.invalid:1/x?y=z#f",
    "file": "/nowhere/file.pem",
}

UNUSABLE = {
    "OTEL_SDK_DISABLED": ("1", "yes", "on", "abc"),
    "OTEL_METRIC_EXPORT_INTERVAL": ("abc", "0", "-5", "nan", "inf", "1e9", "1"),
    "OTEL_EXPORTER_OTLP_TIMEOUT": ("abc", "-1", "1e9", "1", "nan", "inf"),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": ("foo", "0"),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": ("foo", "histogram"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("collector:4317", "ftp://x", "http://", "http://a b", "unix:///x", "abc"),
    "OTEL_RESOURCE_ATTRIBUTES": ("abc", "=b", "a=b,c", "service.name=a%0Ab", "process.pid=a"),
    "OTEL_SERVICE_NAME": ("a\nb", "x" * 129, "\x01a", "\x01"),
    "OTEL_METRICS_EXEMPLAR_FILTER": ("abc", "always"),
    "OTEL_EXPORTER_PROMETHEUS_PORT": ("abc", "70000", "-5"),
    "OTEL_EXPORTER_PROMETHEUS_HOST": ("a b", "nowhere.invalid", "x" * 70),
    "RANK": ("abc", "-2", "1.5", "9" * 5000),
    "WORLD_SIZE": ("abc", "²"),
    "SLURM_RESTART_COUNT": ("abc", "-3"),
    "TORCHELASTIC_RESTART_COUNT": ("1.5",),
}
"""Values that cannot be used, of the variables that we read."""

ACCEPTED = {
    "OTEL_SDK_DISABLED": ("", "False", "FALSE"),
    "OTEL_METRIC_EXPORT_INTERVAL": ("", "  ", "1e3", " 2500 "),
    "OTEL_EXPORTER_OTLP_TIMEOUT": ("", "0", "2500"),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": ("", "DELTA", " LowMemory "),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": ("Base2_Exponential_Bucket_Histogram",),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("", "https://collector", "HTTP://[::1]:4318/base/?x=1"),
    "OTEL_RESOURCE_ATTRIBUTES": ("", ",", "a=b,", "a=", "a=b=c", "a=%20"),
    "OTEL_SERVICE_NAME": ("", "vision"),
    "OTEL_METRICS_EXEMPLAR_FILTER": ("", "Always_On"),
    "OTEL_EXPORTER_PROMETHEUS_PORT": ("", "0"),
    "OTEL_EXPORTER_PROMETHEUS_HOST": ("", "127.0.0.1"),
    "RANK": ("", "0", "-1"),
    "LOCAL_RANK": ("-1",),
    "SLURM_RESTART_COUNT": ("", "0"),
}
"""Values that are in order."""


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("OTEL_", "TENSORMETER_ENDPOINT", "TENSORMETER_PROJECT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TENSORMETER_DIR", str(tmp_path))


def prometheus() -> list[PrometheusExporter]:
    """An exporter, which takes half a second to end, if there is something for it to read."""
    if any(name.startswith("OTEL_EXPORTER_PROMETHEUS") for name in os.environ):
        return [PrometheusExporter(ExporterConfig(endpoint="", token=None, timeout=1.0, destination="prometheus"))]
    return []


def use_everything() -> None:
    """Make all that reads variables, as programs do."""
    settings = Settings()
    config = {"token": None, "timeout": settings.export_timeout}
    for exporter in (
        OtlpExporter(ExporterConfig(endpoint="", destination="otlp", **config)),
        ExperimentExporter(ExporterConfig(endpoint=settings.endpoint, destination="experiment", **config)),
        *prometheus(),
        TensormeterMetricExporter(),
    ):
        exporter.shutdown()
    describe_process("p", "r", "n", "i")
    describe_rank()
    provider = MeterProvider([InMemoryMetricReader()], views=[View(instrument_name="a", name="b")])
    provider.get_meter("m").create_counter("a")
    provider.shutdown()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Variables that tensormeter has warned about."""
    variables = [
        re.match(r"environment variable (\w+)=", record.getMessage())
        for record in caplog.records
        if record.name.startswith("tensormeter")
    ]
    return [match[1] for match in variables if match]


@pytest.mark.parametrize("names", [OTEL, LAUNCHERS], ids=["OpenTelemetry", "launchers"])
@pytest.mark.parametrize("kind", sorted(VALUES))
def test_nonsense_in_every_variable_neither_raises_nor_is_warned_about_twice(monkeypatch, caplog, names, kind):
    for name in names:
        monkeypatch.setenv(name, VALUES[kind])
    monkeypatch.setattr("tempfile.tempdir", None)
    use_everything()
    assert sorted(warned(caplog)) == sorted(set(warned(caplog)))
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("tensormeter")]
    assert "hunter2" not in "".join(warnings)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_what_cannot_be_used_is_warned_about_exactly_once(monkeypatch, caplog, name, value):
    monkeypatch.setenv(name, value)
    use_everything()
    Settings()
    assert warned(caplog) == [name]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ACCEPTED.items() for value in values])
def test_what_is_in_order_is_not_warned_about(monkeypatch, caplog, name, value):
    monkeypatch.setenv(name, value)
    use_everything()
    assert warned(caplog) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OTEL_METRIC_EXPORT_INTERVAL": "abc"}, {"schedule_delay": 2.0, "observe_interval": 10.0}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "-5"}, {"schedule_delay": 2.0, "observe_interval": 10.0}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1"}, {"schedule_delay": 0.01, "observe_interval": 0.01}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1e9"}, {"schedule_delay": 3600.0, "observe_interval": 3600.0}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1e3"}, {"schedule_delay": 1.0, "observe_interval": 1.0}),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, {"export_timeout": 3600.0}),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "-1"}, {"export_timeout": 10.0}),
        ({"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta"}, {"temporality": "delta"}),
        ({"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "foo"}, {"temporality": "cumulative"}),
        ({"OTEL_SDK_DISABLED": "True"}, {"mode": "disabled"}),
        ({"OTEL_SDK_DISABLED": "1"}, {"mode": "online"}),
        ({"OTEL_SERVICE_NAME": "team/vision model"}, {"project": "team/vision model"}),
        ({"OTEL_SERVICE_NAME": "\x1b\n", "OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, {"project": "b"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=my%2Dvision"}, {"project": "my-vision"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "b"}, {"project": "b"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "TENSORMETER_PROJECT": "c"}, {"project": "c"}),
        ({"SLURM_RESTART_COUNT": "abc", "TORCHELASTIC_RESTART_COUNT": "2"}, {"attempt": 3}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, {"endpoint": "http://127.0.0.1:4320"}),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            {"endpoint": "https://collector:4317"},
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "collector",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC",
                "OTEL_EXPORTER_OTLP_INSECURE": "true",
            },
            {"endpoint": "http://collector:4317"},
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:hunter2@vendor/base"}, {"endpoint": "https://vendor/base"}),
    ],
)
def test_settings_from_variables_of_other_software(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert {name: getattr(settings, name) for name in expected} == expected
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("variable", "value", "used"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc", False),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-1", False),
        ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "9" * 5000, False),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "", True),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "7", True),
        ("OTEL_PROPAGATORS", "abc,baggage", False),
        ("OTEL_PROPAGATORS", "tracecontext, baggage", True),
        ("OTEL_PROPAGATORS", "none", True),
        ("OTEL_PROPAGATORS", "", True),
    ],
)
def test_importing_the_sdk_of_others_does_not_raise(monkeypatch, caplog, variable, value, used):
    monkeypatch.setenv(variable, value)
    with environment.importing_sdk():
        assert (variable in os.environ) == used
    assert os.environ[variable] == value
    assert warned(caplog) == ([] if used else [variable])
    code = "from tensormeter.environment.variables import importing_sdk\nwith importing_sdk(): import opentelemetry.sdk.trace, opentelemetry.propagate"
    run_python("-c", code, environment=inherited(**{variable: value}), check=True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENSORMETER_RUN_ID", "a b"),
        ("TENSORMETER_ENDPOINT", "collector:4317"),
        ("TENSORMETER_SCHEDULE_DELAY", "abc"),
        ("TENSORMETER_SCHEDULE_DELAY", "0"),
        ("TENSORMETER_EXPORT_TIMEOUT", "0"),
        ("TENSORMETER_TEMPORALITY", "foo"),
        ("TENSORMETER_MODE", "disable"),
        ("TENSORMETER_ATTEMPT", "0"),
        ("TENSORMETER_DIR", "~no-such-user/x"),
    ],
)
def test_our_own_variables_still_raise(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=re.escape(repr(value)) if value != "0" else "0"):
        Settings()


@pytest.mark.parametrize("exporters", [("jsonl",), ("otlp", "console"), ("prometheus",)])
def test_an_endpoint_that_no_destination_uses_is_not_looked_at(monkeypatch, caplog, exporters):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "abc")
    assert Settings(exporters=exporters).endpoint == "http://127.0.0.1:4320"
    assert warned(caplog) == []


def test_what_is_wrong_with_a_destinations_variables_is_said_by_init(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    folders = {"directory": tmp_path, "buffer_directory": tmp_path}
    with tensormeter.init(settings={"exporters": ["otlp"], "agent": "off", "buffer_bytes": 1 << 16, **folders}):
        pass
    (record,) = (record for record in caplog.records if "http/json" in record.message)
    assert record.message == (
        "environment variable OTEL_EXPORTER_OTLP_PROTOCOL='http/json': expected grpc or http/protobuf; using "
        "http/protobuf instead"
    )
    with pytest.raises(SettingsError, match=r"otlp\.protocol: expected grpc or http/protobuf; got 'json'"):
        tensormeter.init(settings={"exporters": ["otlp"], "exporter_options": {"otlp.protocol": "json"}})


@pytest.mark.parametrize(
    "value",
    [
        "https://user:hunter2@a b",
        "user:hunter2@collector",
        "http://h:port/?api_key=hunter2",
        "a=-----BEGIN PRIVATE KEY",
    ],
)
def test_warnings_show_no_secrets(monkeypatch, caplog, value):
    monkeypatch.setenv("SOME_VARIABLE", value)
    environment.ignore("SOME_VARIABLE", "something else", "nothing")
    assert "SOME_VARIABLE" in caplog.text
    assert "hunter2" not in caplog.text
    assert "BEGIN" not in caplog.text


def test_a_given_instance_is_kept_next_to_that_of_the_process(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=trainer%201,service.namespace=lab")
    resource = describe_process("p", "r", "n", "unique")
    assert resource["service.instance.id"] == "unique"
    assert resource["tensormeter.service.instance.id"] == "trainer 1"
    assert resource["service.namespace"] == "lab"


def test_what_is_detected_as_a_number_stays_one(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "tensormeter.rank=first,host.name=mine")
    resource = describe_process("p", "r", "n", "i")
    assert (resource["tensormeter.rank"], resource["host.name"]) == (3, "mine")
    assert warned(caplog) == ["OTEL_RESOURCE_ATTRIBUTES"]


def test_attributes_that_no_receiver_would_accept_are_left_out(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"team=vision,long={'x' * 70_000},other=1")
    monkeypatch.setenv("SLURM_JOB_NAME", "y" * 70_000)
    resource = describe_process("p", "r", "n", "i")
    assert resource["team"] == "vision"
    assert len(json.dumps(dict(resource))) < 65_536
    assert warned(caplog) == ["OTEL_RESOURCE_ATTRIBUTES"]


def test_the_variables_that_are_read_are_documented(monkeypatch):
    document = (Path(__file__).parents[2] / "docs" / "destinations.md").read_text()
    table = document.partition("<!-- variables -->\n")[2].partition("\n<!-- /variables -->")[0]
    documented: set[str] = set()
    for name, signals in re.findall(r"^\| `(OTEL_\w+)` \| (yes)? ?\|", table, re.MULTILINE):
        prefix, _, rest = name.partition("OTLP_")
        own = {f"{prefix}OTLP_{signal}_{rest}" for signal in ("METRICS", "LOGS")}
        documented |= {name} | (own if signals else set())
    used: set[str] = set()
    read = environment.read
    monkeypatch.setattr(environment, "read", lambda variable: used.add(variable) or read(variable))
    for protocol in ("grpc", "http/protobuf"):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1" if protocol != "grpc" else "127.0.0.1")
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "0")
        use_everything()
    assert {name for name in used if name.startswith("OTEL_")} == documented


TRAINING = """
import json, sys
import tensormeter
from opentelemetry import metrics
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View

with tensormeter.init(id="logged") as run:
    run.log({"loss": 1.0}, 0)
provider = tensormeter.configure(
    metric_readers=[InMemoryMetricReader()], views=[View(instrument_name="batches", name="renamed")]
)
with tensormeter.init(id="measured") as run:
    metrics.get_meter("lib").create_counter("batches").add(3)
provider.shutdown()
from tensormeter_exporters.metric_exporter import TensormeterMetricExporter
TensormeterMetricExporter().shutdown()
"""


def inherited(**changes: str) -> dict[str, str]:
    kept = clean_environment()
    return kept | {
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        **changes,
    }


def rows_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Run and metric of every point in files of the OTLP file format."""
    for file in sorted(folder.glob("**/*.jsonl")):
        for line in file.read_text().splitlines():
            for resource in json.loads(line).get("resourceMetrics", ()):
                attributes = {item["key"]: item["value"] for item in resource["resource"]["attributes"]}
                for scope in resource["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        yield attributes["tensormeter.run.id"]["stringValue"], metric["name"]


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "blank",
        "word",
        "zero",
        "negative",
        "huge",
        "no unicode",
        "control",
        "long",
        "separators",
        "credentials",
    ],
)
def test_a_training_records_with_nonsense_in_every_variable(tmp_path, kind):
    nonsense: Mapping[str, str] = dict.fromkeys(OTEL, VALUES[kind][:5000])  # all must fit into one environment
    done = run_python(
        "-c",
        TRAINING,
        environment=inherited(
            **nonsense,
            TENSORMETER_DIR=str(tmp_path / "state"),
            TENSORMETER_EXPORTERS="jsonl",
            TENSORMETER_EXPORTER_OPTIONS=f"jsonl.directory={tmp_path / 'out'}",
        ),
        check=True,
    )
    assert {("logged", "loss"), ("measured", "renamed")} <= set(rows_in(tmp_path / "out"))
    warnings = re.findall(r"^environment variable (\w+)=", done.stderr, re.MULTILINE)
    assert sorted(warnings) == sorted(set(warnings))
    assert "hunter2" not in "".join(re.findall(r"^environment variable .*", done.stderr, re.MULTILINE))
