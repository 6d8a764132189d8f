"""A run whose id comes again is attempted again; ranks of one attempt are not."""

import gzip
import subprocess
import sys

import pytest

import tensormeter
from tensormeter import Settings, SettingsError
from tensormeter.otlp.decode import decode_metrics


@pytest.fixture
def settings(tmp_path, receiver):
    return Settings(
        endpoint=receiver.url,
        directory=tmp_path / "state",
        buffer_directory=tmp_path / "rings",
        run_id="again",
        agent="thread",
        schedule_delay=0.05,
        finish_timeout=300,
    )


def attempts(receiver):
    return {
        batch.resource["tensormeter.run.attempt"]
        for request in receiver.accepted().values()
        if request.path == "/v1/metrics"
        for batch in decode_metrics(gzip.decompress(request.body))
    }


def test_attempts_are_counted(settings, receiver):
    for expected in (1, 2, 3):
        with tensormeter.init(settings=settings) as run:
            assert run.attempt == expected
            with tensormeter.init(settings=settings) as rank:  # another rank of the same attempt
                assert rank.attempt == expected
                rank.log({"x": 1.0}, 0)
    assert attempts(receiver) == {1, 2, 3}
    with tensormeter.init(settings=settings, id="other") as run:
        assert run.attempt == 1
    with tensormeter.init(settings=settings, id="from-another-machine", resume=True) as run:
        assert run.attempt == 2


@pytest.mark.parametrize(
    ("environment", "attempt"),
    [
        ({"TENSORMETER_ATTEMPT": "7", "SLURM_RESTART_COUNT": "3"}, 7),
        ({"SLURM_RESTART_COUNT": "3"}, 4),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, 3),
        # A job that was queued again begins a new torchrun, which counts from 0.
        ({"SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RESTART_COUNT": "0"}, 2),
    ],
)
def test_a_scheduler_knows_better(settings, tmp_path, monkeypatch, environment, attempt):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    given = {"directory": tmp_path / "state", "buffer_directory": tmp_path / "rings", "mode": "offline", "agent": "off"}
    with tensormeter.init(settings=given) as run:
        assert run.attempt == attempt


def test_a_scheduler_that_has_restarted_nothing_says_nothing(settings, monkeypatch):
    """Whoever runs torchrun again by hand, or by Kubernetes, is at a further attempt all the same."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with tensormeter.init(settings=settings, id="elsewhere", resume=True) as run:
        assert run.attempt == 2


def test_resume_needs_an_id(settings):
    with pytest.raises(SettingsError, match="resume: expected the id"):
        tensormeter.init(settings=settings.replace(run_id=None), resume=True)


def test_in_a_notebook_a_run_ends_when_another_begins(tmp_path):
    script = """
import sys, types
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: object())
import tensormeter
given = {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "mode": "offline", "agent": "off"}
first = tensormeter.init(settings=given)
second = tensormeter.init(settings=given)
assert first._finished and not second._finished
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=300)
