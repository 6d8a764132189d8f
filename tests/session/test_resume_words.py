"""The words that the argument `resume` of `init` accepts."""

import pytest

import tensormeter
from support.processes import clean_environment, run_python
from support.servers import Server
from tensormeter import Settings, SettingsError

SCRIPT = """
import sys, tensormeter
run = tensormeter.init(project="p", id=sys.argv[1], resume=eval(sys.argv[2]))
run.log({"loss": 1.0})
run.finish()
"""


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def test_must_and_never_warn_without_delaying_the_start(tmp_path, server):
    """Each script runs on another machine, so only the server knows the earlier attempts."""

    def train(run_id, resume, *, machine, **variables):
        environment = {**clean_environment(), "TENSORMETER_DIR": str(tmp_path / machine), "TENSORMETER_QUIET": "true"}
        environment |= {"TENSORMETER_ENDPOINT": server.url, **variables}
        done = run_python("-c", SCRIPT, run_id, repr(resume), environment=environment, check=True)
        return done.stderr.strip()

    new = "run {0} is new, although resume='must' was given: no earlier attempt is known. Check its id and project"
    exists = "run {0} already exists, although resume='never' was given; this is its attempt {1}. Pass another id"
    assert train("a", "never", machine="1") == ""
    assert train("a", "must", machine="2") == ""
    assert train("a", "never", machine="3") == exists.format("a", 3)
    assert train("a", "allow", machine="3") == ""
    assert train("b", "must", machine="1") == new.format("b")
    assert train("b", "never", machine="1") == exists.format("b", 2)
    assert train("b", "never", machine="2", RANK="1", WORLD_SIZE="2") == "", "one rank warns"
    assert train("c", "auto", machine="1") == ""
    (series,) = server.query("a", metrics=["loss"])["series"]
    assert series["x"] == [0, 1, 2, 3], "each attempt continues after the last step of the one before"


def test_other_values_are_refused(tmp_path):
    settings = Settings(directory=tmp_path, agent="off")
    with pytest.raises(SettingsError, match="resume: expected True, False, allow, auto, must or never, got 'yes'"):
        tensormeter.init(id="a", resume="yes", settings=settings)
    for resume in (True, "must"):
        with pytest.raises(SettingsError, match="resume: the ID of the run to resume is missing"):
            tensormeter.init(resume=resume, settings=settings)
