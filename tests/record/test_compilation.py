"""`torch.compile`: a log call in a compiled function records what it should, at the price of one graph break."""

import pytest
import torch

from support.processes import run_python

SCRIPT = """
import json, sys
import tensormeter
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.ring.file import RingFile

if sys.argv[3] == "Python":
    tensormeter.record.rows.lane._writer = None
settings = {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "agent": "off"}
if sys.argv[2] == "before":
    import torch, torch._dynamo
run = tensormeter.init(settings=settings)
if sys.argv[2] == "after":
    import torch, torch._dynamo
    run.log({"n": -1}, -1)  # outside, as most loops do

def step(x, number):
    loss = (x * x).sum()
    run.log({"loss": loss, "n": number}, number)
    return loss + 1

compiled = torch.compile(step, backend="eager")
for number in range(5):
    assert compiled(torch.full((3,), float(number)), number) == 3 * number * number + 1
assert torch._dynamo.explain(step)(torch.ones(3), 5).graph_break_count == 1
ring = RingFile.open(run._process.ring.path)
*_, rows = LaneReader(Layouts(ring), 0, Cursor()).read(1000, abandon_pending=False)
print(json.dumps([rows.steps.tolist(), *(column.tolist() for column in rows.columns)]))
"""


@pytest.mark.parametrize("dynamo_loaded", ["before", "after"])
def test_log_calls_in_a_compiled_function_record_every_row(tmp_path, writers, dynamo_loaded):
    done = run_python("-W", "error::UserWarning", "-c", SCRIPT, tmp_path, dynamo_loaded, writers, check=True)
    assert done.stdout == "[[0, 1, 2, 3, 4, 5], [0.0, 3.0, 12.0, 27.0, 48.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]\n"
    assert "Graph break" not in done.stderr


@pytest.mark.usefixtures("writers")
def test_fullgraph_compilation_of_a_log_call_fails_with_a_clear_error(recording):
    recording.log({"loss": 0.0}, 0)

    def step(x):
        recording.log({"loss": x.sum()}, 1)
        return x

    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable|class `RowWriter`|no traceable __call__"
    ):
        torch.compile(step, backend="eager", fullgraph=True)(torch.ones(3))
    torch._dynamo.reset()
    assert [row.values for row in recording.rows()] == [{"loss": 0.0}]
