"""Warnings that have no place to go: no call of a run raises."""

import pytest

from support.processes import run_python

CLOSED = {
    "closed": "sys.stderr.close()",
    "none": "sys.stderr = None",
    "no method": "sys.stderr = object()",
    "descriptor closed": "os.close(2)",
    "disk full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "broken pipe": "r, w = os.pipe(); os.close(r); os.dup2(w, 2)",
    "both closed": "sys.stderr.close(); sys.stdout.close()",
    "handler raises": "logging.getLogger().addHandler(Bad())",
    "filter raises": "logging.getLogger('tensormeter').addFilter(lambda record: 1 // 0)",
    "warnings are errors": "warnings.simplefilter('error'); logging.captureWarnings(True); sys.stderr.close()",
}

SCRIPT = """
import logging, os, signal, sys, warnings
import tensormeter
class Bad(logging.Handler):
    def emit(self, record): raise RuntimeError("no room")
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
run = tensormeter.init("p", id="r", mode="offline", settings={"directory": sys.argv[1], "finish_timeout": 60})
SURROUNDINGS
run.log({"loss": 1.0, "bad": "a text"}, 0)
run.log({"loss": 2.0, 5: 1.0}, 1)
tensormeter.log({"loss": 3.0}, "a")
run.update_config({"x": 1})
run.alert("title", "text")
with run.step(), run.phase("x"):
    pass
run.finish()
run.log({"loss": 4.0}, 3)
run.update_config({"x": 2})
run.finish()
open(sys.argv[2], "w").write("done")
"""


@pytest.mark.parametrize("case", CLOSED)
def test_no_call_raises_where_warnings_have_no_place_to_go(tmp_path, case):
    done = tmp_path / "done"
    script = SCRIPT.replace("SURROUNDINGS", CLOSED[case])
    result = run_python("-c", script, tmp_path / "state", done)
    assert done.exists(), result.stderr
