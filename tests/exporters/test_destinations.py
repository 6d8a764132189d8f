"""The documentation names every destination and option; settings carry options to the agent, and refuse what is wrong."""

import ast
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import tensormeter
from tensormeter.errors import SettingsError
from tensormeter.exporter import ExporterConfig, check_exporters, load_exporter
from tensormeter.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/destinations.md").read_text()
ENTRIES = entry_points(group="tensormeter_exporter")


def options_of(module):
    """The options that a module reads, from its call of `options_or`."""
    path = ROOT / "exporters" / (module.replace(".", "/") + ".py")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {
        keyword.arg
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "options_or"
        for keyword in call.keywords
    }


def test_every_destination_is_documented():
    table = DOCUMENT[DOCUMENT.index("| destination | requires") :].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)(?::NAME)?` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(ENTRIES.names)


@pytest.mark.parametrize("name", sorted(ENTRIES.names - {"experiment", "console", "otel"}))
def test_every_option_is_documented(name):
    (entry,) = (entry for entry in ENTRIES if entry.name == name)
    module = {"otlp": "tensormeter_exporters.otlp.environment"}.get(name, entry.module)
    section = DOCUMENT[DOCUMENT.index(f"## `{name}`") :].partition("\n## ")[0]
    options = options_of(module)
    assert options
    for option in options:
        assert f"`{option}`" in section


@pytest.mark.parametrize("name", sorted(ENTRIES.names))
def test_every_destination_can_be_imported_and_keeps_the_interface(name):
    exporter = load_exporter(name)
    assert callable(exporter.export)
    assert callable(exporter.shutdown)


def test_options_are_read_from_the_environment(monkeypatch):
    text = "jsonl.directory=/data/a%2Cb, otlp:eu.endpoint=http://x:1"
    monkeypatch.setenv("TENSORMETER_EXPORTER_OPTIONS", text)
    settings = Settings()
    assert settings.options_of("jsonl") == {"directory": "/data/a,b"}
    assert settings.options_of("otlp:eu") == {"endpoint": "http://x:1"}
    assert settings.options_of("otlp") == {}
    assert Settings.from_json(settings.to_json()).exporter_options == settings.exporter_options


@pytest.mark.parametrize("options", ["jsonl", {"jsonl": "x"}, {"jsonl.max_bytes": 3}, {"a.b.c": "x"}])
def test_options_that_cannot_be_used_are_an_error(options):
    with pytest.raises(SettingsError, match=r"exporter_options: expected (a mapping from )?DESTINATION"):
        Settings(exporter_options=options)


def test_a_variable_that_cannot_be_used_is_reported(monkeypatch):
    monkeypatch.setenv("TENSORMETER_EXPORTER_OPTIONS", "jsonl")
    with pytest.raises(SettingsError, match="TENSORMETER_EXPORTER_OPTIONS: expected DESTINATION"):
        Settings()


def test_unknown_destinations_are_an_error_at_once():
    for destination in ("nowhere", "jsonl:", "jsonl:../x", "jsonl:a:b"):
        with pytest.raises(SettingsError, match="exporters: expected console, experiment"):
            check_exporters([destination])
    check_exporters(["jsonl:a_1", "otel:console"])
    with pytest.raises(SettingsError, match="got 'jsnol'"):
        tensormeter.init(settings={"exporter_options": {"jsnol.directory": "/data"}})


def test_a_configuration_shows_no_token():
    config = ExporterConfig(endpoint="http://x", token="secret", timeout=1.0, options={"a": "b"})
    assert "secret" not in repr(config)
    assert "'b'" in repr(config)


@pytest.mark.parametrize(
    ("kind", "package", "module", "options"),
    [
        ("prometheus", "prometheus_client", "tensormeter_exporters.prometheus.exporter", {}),
        ("mlflow", "mlflow", "tensormeter_exporters.mlflow", {}),
        ("otlp", "grpc", "tensormeter_exporters.otlp.grpc", {"protocol": "grpc"}),
    ],
)
def test_a_package_that_is_not_installed_is_named_by_its_own_destination(monkeypatch, kind, package, module, options):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    exporter = load_exporter(kind)  # the agent goes on with the others
    extra = {"otlp": "grpc"}.get(kind, kind)
    with pytest.raises(SettingsError, match=rf"{kind} needs the package '{package}'.*tensormeter\[{extra}\]"):
        exporter(ExporterConfig(endpoint="", token=None, timeout=1.0, destination=kind, options=options))


def test_the_upload_rate_is_documented_and_hidden_from_exporters():
    assert "\n| `max_upload_bytes_per_second` |" in DOCUMENT
    assert Settings(exporter_options={"jsonl.max_upload_bytes_per_second": "1000"}).options_of("jsonl") == {}


def test_a_package_that_ends_the_process_at_its_import_costs_its_own_destination(monkeypatch, tmp_path):
    package = tmp_path / "prometheus_client"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('no licence')")
    for module in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "tensormeter_exporters.prometheus.exporter", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    exporter = load_exporter("prometheus")
    with pytest.raises(SettingsError, match=r"could not be imported .*no licence"):
        exporter(ExporterConfig(endpoint="", token=None, timeout=1.0, destination="prometheus"))
