"""The settings table: precedence, validation, secrets."""

from pathlib import Path

import pytest

from tensormeter import Settings, SettingsError, TensormeterError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in Settings.names():
        monkeypatch.delenv(f"TENSORMETER_{name.upper()}", raising=False)


def test_argument_before_environment_before_default(monkeypatch):
    assert Settings().finish_timeout == 60
    monkeypatch.setenv("TENSORMETER_FINISH_TIMEOUT", "7.5")
    assert Settings().finish_timeout == 7.5
    assert Settings(finish_timeout=3).finish_timeout == 3


def test_own_variables_before_opentelemetrys(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "2500")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings = Settings()
    assert (settings.endpoint, settings.schedule_delay, settings.mode) == ("http://collector:4318", 2.5, "disabled")
    monkeypatch.setenv("TENSORMETER_ENDPOINT", "http://server:4320")
    monkeypatch.setenv("TENSORMETER_MODE", "offline")
    assert (Settings().endpoint, Settings().mode) == ("http://server:4320", "offline")


def test_destinations_may_be_given_as_the_text_that_the_variable_takes():
    assert Settings(exporters="prometheus").exporters == ("prometheus",)
    assert Settings(exporters="experiment, jsonl").exporters == ("experiment", "jsonl")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mode", "dry", "mode: expected online, offline or disabled; got 'dry'"),
        ("agent", "gone", "agent: expected process, thread or off; got 'gone'"),
        ("project", 5, "project: expected a string, got 5"),
        ("run_id", "../x", "run_id: expected 1 to 128 letters"),
        ("run_id", "x" * 129, "run_id: expected 1 to 128 letters"),
        ("endpoint", "server:4320", "endpoint: expected a URL"),
        ("endpoint", "ftp://server", "endpoint: expected a URL"),
        ("endpoint", "http://[::1", "endpoint: expected a URL"),
        ("endpoint", "http://server:port", "endpoint: expected a URL"),
        ("endpoint", "http://me:secret@server", "endpoint: credentials in the URL"),
        ("buffer_bytes", 100, "buffer_bytes: expected an integer from 65536"),
        ("buffer_bytes", "16", "buffer_bytes: expected an integer from 65536"),
        ("schedule_delay", float("nan"), "schedule_delay: expected a number from 0.01"),
        ("sample_interval", 0.05, "sample_interval: expected a number from 0.1"),
        ("sample_interval", -1, "sample_interval: expected a number from 0.1"),
        ("sample_interval", "often", "sample_interval: expected a number from 0.1"),
        ("record_command", "no", "record_command: expected True or False, got 'no'"),
        ("mask_config", "no", "mask_config: expected True or False, got 'no'"),
        ("exporters", "experiment,experiment", "exporters: expected a list of distinct names"),
        ("exporters", 7, "exporters: expected a list of distinct names"),
        ("exporters", [], "exporters: expected a list of distinct names"),
        ("max_export_batch_size", True, "max_export_batch_size: expected an integer from 1"),
    ],
)
def test_a_bad_argument_is_named(field, value, words):
    with pytest.raises(SettingsError) as caught:
        Settings(**{field: value})
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TensormeterError)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("BUFFER_BYTES", "lots", "expected an integer from 65536 to 1099511627776, got 'lots'"),
        ("BUFFER_BYTES", "100", "expected an integer from 65536 to 1099511627776, got 100"),
        ("SCHEDULE_DELAY", "soon", "expected a number from 0.01 to 3600, got 'soon'"),
        ("SAMPLE_INTERVAL", "0.05", "expected a number from 0.1 to 3600, or 0 for none, got 0.05"),
        ("MODE", "dry", "expected online, offline or disabled; got 'dry'"),
        ("MASK_CONFIG", "perhaps", "expected true or false, got 'perhaps'"),
        ("EXPORTER_OPTIONS", "jsonl", "expected DESTINATION.OPTION=VALUE, got 'jsonl'"),
    ],
)
def test_an_invalid_variable_is_named_with_what_is_valid(monkeypatch, variable, text, message):
    monkeypatch.setenv(f"TENSORMETER_{variable}", text)
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert str(caught.value) == f"environment variable TENSORMETER_{variable}: {message}"


def test_statistics_are_on_and_can_be_turned_off(monkeypatch):
    assert Settings().sample_interval == 10
    assert Settings(sample_interval=0).sample_interval == 0
    assert Settings(sample_interval=False).sample_interval == 0
    monkeypatch.setenv("TENSORMETER_SAMPLE_INTERVAL", "0.1")
    monkeypatch.setenv("TENSORMETER_RECORD_COMMAND", "false")
    assert (Settings().sample_interval, Settings().record_command) == (0.1, False)


def test_secrets_stay_secret(monkeypatch):
    settings = Settings(token="hunter2")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.to_json())
    for invalid in (
        {"endpoint": "http://me:hunter2@server"},
        {"endpoint": "ftp://me:hunter2@server"},
        {"token": "hunter2 \n"},
        {"token": "hunter2\x7f"},
    ):
        with pytest.raises(SettingsError) as caught:
            Settings(**invalid)
        assert "hunter2" not in str(caught.value)
        for name, text in invalid.items():
            monkeypatch.setenv(f"TENSORMETER_{name.upper()}", text.replace(" ", "\x7f"))
            with pytest.raises(SettingsError) as caught:
                Settings()
            assert "hunter2" not in str(caught.value)
            monkeypatch.delenv(f"TENSORMETER_{name.upper()}")


def test_small(monkeypatch):
    monkeypatch.setenv("TENSORMETER_FINISH_TIMEOUT", "5")
    small = Settings.small(project="p")
    assert (small.buffer_bytes, small.project, small.finish_timeout) == (1 << 20, "p", 5)
    assert (small.sample_interval, small.max_export_batch_size) == (0, 10_000)
    assert Settings.small(buffer_bytes=1 << 18).buffer_bytes == 1 << 18


def test_json_round_trip(monkeypatch):
    settings = Settings(project="p", exporters=["a", "b"], directory="~/runs", buffer_directory=None)
    assert settings.directory == Path.home() / "runs"
    monkeypatch.setenv("TENSORMETER_PROJECT", "another")
    assert Settings.from_json(settings.to_json() | {"of the future": 1}) == settings


def test_defaults_apply_below_arguments_and_environment(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from another variable")
    monkeypatch.setenv("TENSORMETER_GROUP", "from the environment")
    defaults = {"project": "library", "group": "library", "name": "library", "notes": "library"}
    settings = Settings.with_defaults(defaults, name="argument")
    assert settings.project == "from another variable"
    assert settings.group == "from the environment"
    assert (settings.name, settings.notes) == ("argument", "library")
    with pytest.raises(SettingsError, match="group"):
        Settings.with_defaults({"group": 3, "job_type": 3}, job_type="train", group=3)
