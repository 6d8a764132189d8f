"""The destination and headers of OTLP: options and the standard variables of OpenTelemetry."""

import dataclasses

import pytest

from tensormeter.errors import SettingsError
from tensormeter_exporters.otlp.environment import read_targets

pytestmark = pytest.mark.usefixtures("only_our_variables")


def test_defaults_are_those_of_the_standard(config):
    targets = read_targets(config())
    assert targets["metrics"].endpoint == "http://localhost:4318/v1/metrics"
    assert targets["logs"].endpoint == "http://localhost:4318/v1/logs"
    assert targets["metrics"].gzip
    assert read_targets(config(protocol="grpc"))["logs"].endpoint == "localhost:4317"


def test_options_override_variables_of_signals_and_those_the_general_ones(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://general:1/base/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics:2/as/it/is")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b, x=1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "only=logs")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    targets = read_targets(config())
    assert targets["metrics"].endpoint == "https://metrics:2/as/it/is"
    assert targets["logs"].endpoint == "https://general:1/base/v1/logs"
    assert targets["metrics"].secure
    assert not targets["metrics"].gzip
    assert targets["metrics"].headers == {"api-key": "a b", "x": "1"}
    assert targets["logs"].headers == {"only": "logs"}
    assert "a b" not in repr(targets["metrics"])
    monkeypatch.setenv("OTHERS", "k=v")
    given = read_targets(config(endpoint="http://mine", compression="gzip", headers_variable="OTHERS"))["metrics"]
    assert (given.endpoint, given.gzip, given.headers) == ("http://mine/v1/metrics", True, {"k": "v"})


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected"),
    [
        ("collector:4317", "true", ("collector:4317", False)),
        ("collector:4317", "", ("collector:4317", True)),
        ("http://collector", "", ("collector:4317", False)),
        ("https://collector:443", "true", ("collector:443", True)),
    ],
)
def test_a_grpc_endpoint_gives_address_and_security(config, endpoint, insecure, expected):
    target = read_targets(config(protocol="grpc", endpoint=endpoint, insecure=insecure))["metrics"]
    assert (target.endpoint, target.secure) == expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("collector:4317", ("collector:4317", True)),
        ("collector", ("collector:4317", True)),
        ("http://collector:4317/", ("collector:4317", False)),
        ("HTTPS://Collector:4317/some/path?x=1", ("collector:4317", True)),
        ("grpc://collector:4317", ("collector:4317", True)),
        ("http://[::1]:4317", ("[::1]:4317", False)),
        ("[::1]:4317", ("[::1]:4317", True)),
        ("dns:///collector:4317", ("dns:///collector:4317", True)),
        ("dns:4317", ("dns:4317", True)),
        ("unix:///run/collector.sock", ("unix:///run/collector.sock", True)),
        ("ipv4:10.0.0.1:4317,10.0.0.2:4317", ("ipv4:10.0.0.1:4317,10.0.0.2:4317", True)),
    ],
)
@pytest.mark.parametrize("insecure", ["TRUE", "false", None])
def test_grpc_takes_endpoints_in_every_form_that_its_clients_take(config, monkeypatch, endpoint, expected, insecure):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    if insecure is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", insecure)
    address, secure_by_default = expected
    scheme = endpoint.partition("://")[0].lower()
    secure = secure_by_default and (insecure != "TRUE" or scheme == "https")
    for target in read_targets(config()).values():
        assert (target.protocol, target.endpoint, target.secure) == ("grpc", address, secure)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("protocol", "http/json"),
        ("compression", "zstd"),
        ("endpoint", "collector:4318"),
        ("endpoint", "ftp://x"),
        ("endpoint", "http://user:secret@x"),
        ("endpoint", "user:secret@x"),
        ("endpoint", "http://a b"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_without_secrets(config, option, value):
    with pytest.raises(SettingsError, match=rf"\.{option}: expected ") as caught:
        read_targets(config(**{option: value}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("signal", ["", "METRICS_"])
@pytest.mark.parametrize(
    ("variable", "value", "ignored"),
    [
        ("PROTOCOL", "http/json", True),
        ("PROTOCOL", "HTTP/Protobuf", False),
        ("COMPRESSION", "zstd", True),
        ("COMPRESSION", " GZip ", False),
        ("COMPRESSION", "", False),
        ("TIMEOUT", "soon", True),
        ("TIMEOUT", "-1", True),
        ("TIMEOUT", "1e3", False),
        ("ENDPOINT", "ftp://x", True),
        ("ENDPOINT", "collector:4317", True),
        ("ENDPOINT", "http://", True),
        ("ENDPOINT", "http://a b", True),
        ("ENDPOINT", "http://a:port", True),
        ("ENDPOINT", "http://a:0", True),
        ("ENDPOINT", f"http://{'a' * 70}", True),
        ("ENDPOINT", "http://[::1", True),
        ("INSECURE", "maybe", False),  # HTTP has no use for it
        ("CERTIFICATE", "/nowhere/ca.pem", False),  # nor for this without TLS
        ("HEADERS", "hunter2", True),
        ("HEADERS", "key=hunter2%0d%0ahost: x", True),
        ("HEADERS", "key=hunter2\u2603", True),
        ("HEADERS", "content-type=hunter2", True),
        ("HEADERS", "a b=hunter2", True),
        ("HEADERS", ",", False),
    ],
)
def test_a_variable_that_cannot_be_used_is_warned_about_once_and_ignored(
    config, monkeypatch, caplog, signal, variable, value, ignored
):
    default = read_targets(config())["metrics"]
    name = f"OTEL_EXPORTER_OTLP_{signal}{variable}"
    monkeypatch.setenv(name, value)
    for _ in range(2):
        target = read_targets(config(timeout=10.0))["metrics"]
    assert target.endpoint == default.endpoint
    assert (target.protocol, target.gzip, target.headers) == ("http/protobuf", True, {})
    assert [name in record.getMessage() for record in caplog.records] == [True] * ignored
    assert "hunter2" not in caplog.text


def test_a_variable_of_the_signal_that_cannot_be_used_leaves_the_general_one(config, monkeypatch):
    for name, value in {
        "PROTOCOL": "grpc",
        "METRICS_PROTOCOL": "http/json",
        "COMPRESSION": "none",
        "METRICS_COMPRESSION": "zstd",
        "ENDPOINT": "http://general:1",
        "METRICS_ENDPOINT": "http://a b",
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    target = read_targets(config())["metrics"]
    assert (target.protocol, target.endpoint, target.gzip) == ("grpc", "general:1", False)


def test_credentials_in_an_endpoint_become_a_header(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:hunter%402@vendor/otlp/?region=eu#x")
    target = read_targets(config())["logs"]
    assert target.endpoint == "https://vendor/otlp/v1/logs?region=eu"
    assert target.headers == {"authorization": "Basic bWU6aHVudGVyQDI="}
    assert "hunter" not in repr(target)


@pytest.mark.parametrize(
    ("variables", "given", "seconds"),
    [
        ({}, 10.0, 10.0),
        ({"TIMEOUT": "5000"}, 5.0, 5.0),
        ({"TIMEOUT": "5000", "METRICS_TIMEOUT": "7000"}, 5.0, 7.0),
        ({"METRICS_TIMEOUT": "0"}, 10.0, 3600.0),
        ({"METRICS_TIMEOUT": "1e12"}, 10.0, 3600.0),
        ({"METRICS_TIMEOUT": "1"}, 10.0, 0.1),
        ({"METRICS_TIMEOUT": "7000"}, 3.0, 3.0),  # the setting has another value
    ],
)
def test_each_signal_has_its_timeout(config, monkeypatch, variables, given, seconds):
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert read_targets(config(timeout=given))["metrics"].timeout == seconds


def test_each_signal_has_only_what_it_needs(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "nonsense://x")
    metrics = dataclasses.replace(config(endpoint=""), signals=("metrics",))
    assert list(read_targets(metrics)) == ["metrics"]
