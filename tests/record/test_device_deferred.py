"""Rows written from inside compiled functions: here on CPU tensors, which take the same operations as a GPU's."""

import math
import os
import signal

import pytest
import torch

import tensormeter
from support.forks import call_in_child
from support.processes import run_python
from tensormeter.errors import UsageError
from tensormeter.record import deferred_log
from tensormeter.record.deferred_log import DeferredLog
from tensormeter.ring.format import State


@pytest.fixture
def log(recording):
    return DeferredLog(recording.recorder, ["loss", "n"], capacity=8, device="cpu", first_step=0)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


def rows(recording):
    return [(row.step, row.values) for row in recording.rows()]


def written(numbers):
    return [(number, {"loss": 3.0 * number * number, "n": float(number)}) for number in numbers]


def step_of(log):
    def step(x, number):
        loss = (x * x).sum()
        log.write({"loss": loss, "n": number})
        return loss + 1

    return step


def run(step, number):
    assert step(torch.full((3,), float(number)), torch.tensor(number)) == 3 * number * number + 1


def test_rows_come_in_order_with_the_steps_of_the_writes(recording, log):
    for number in range(5):
        run(step_of(log), number)
    assert rows(recording) == []
    log.flush()
    assert rows(recording) == written(range(5))
    for number in range(5, 12):
        run(step_of(log), number)
    log.flush()
    log.flush()
    assert rows(recording) == written(range(5, 12))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_write_in_a_compiled_function_breaks_no_graph(recording, log, backend):
    step = step_of(log)
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for number in range(6):
        run(compiled, number)
    log.flush()
    assert rows(recording) == written(range(6))
    assert torch._dynamo.explain(step)(torch.ones(3), torch.tensor(6)).graph_break_count == 0


def test_writes_around_a_log_call_that_breaks_the_graph_are_recorded(recording, log):
    """The log call is in another file of this package, and stays out of graphs."""
    recording.recorder.log({"a": 1.0}, 0)

    def step(x, number):
        log.write({"loss": x.sum(), "n": number})
        recording.recorder.log({"a": 2.0}, 1)
        log.write({"loss": x.sum() + 1, "n": number})
        return x

    compiled = torch.compile(step, backend="eager")
    compiled(torch.ones(3), torch.tensor(1))
    log.flush()
    values = [values for _, values in rows(recording) if "loss" in values]
    assert values == [{"loss": 3.0, "n": 1.0}, {"loss": 4.0, "n": 1.0}]


def test_the_gradient_is_what_it_was(recording, log):
    step = step_of(log)
    compiled = torch.compile(lambda weight, number: step(weight * 2, number), backend="aot_eager", fullgraph=True)
    weight = torch.ones(3, requires_grad=True)
    for _ in range(2):
        compiled(weight, torch.tensor(0)).backward()
    assert weight.grad.tolist() == [16.0] * 3
    log.flush()
    assert rows(recording) == [(step, {"loss": 12.0, "n": 0.0}) for step in range(2)]


def test_values_of_any_dtype_and_grad_mode_are_recorded(recording, log):
    with torch.inference_mode():
        log.write({"loss": torch.tensor([1.5], dtype=torch.bfloat16), "n": torch.tensor(True)})
    log.write({"loss": torch.nn.Parameter(torch.tensor([[2.5]])), "n": torch.tensor(7)})
    with torch.no_grad():
        log.write({"loss": torch.tensor(3.5, dtype=torch.float16), "n": torch.tensor(0.25).to(torch.float8_e4m3fn)})
    log.flush()
    assert [values for _, values in rows(recording)] == [
        {"loss": 1.5, "n": 1.0},
        {"loss": 2.5, "n": 7.0},
        {"loss": 3.5, "n": 0.25},
    ]


def test_a_write_is_a_snapshot(recording, log):
    tensor = torch.zeros(())
    for _ in range(3):
        tensor += 1
        log.write({"loss": tensor, "n": tensor})
    tensor.zero_()
    log.flush()
    assert [values["loss"] for _, values in rows(recording)] == [1.0, 2.0, 3.0]


def test_overwritten_rows_are_counted(recording, log, warnings_logged):
    for _ in range(2):
        for number in range(20):
            run(step_of(log), number)
        log.flush()
    assert rows(recording) == [
        (20 * lap + number, values) for lap in range(2) for number, values in written(range(12, 20))
    ]
    assert recording.dropped("ring_full") == 48  # of two names
    (message,) = warnings_logged()
    assert "raise `capacity`" in message


def test_a_forked_child_leaves_the_counts_of_its_parent_alone(recording, log):
    def child():
        for number in range(20):
            run(step_of(log), number)
        log.flush()

    call_in_child(child)
    log.flush()
    assert rows(recording) == []
    assert recording.ring.drops() == {}


def test_log_calls_fetch_what_has_been_written(recording, log, monkeypatch):
    recording.log({"host": 1.0}, 100)
    recording.log({"host": 1.0}, 101)
    recording.rows()
    run(step_of(log), 0)
    recording.log({"host": 1.0}, 102)
    assert rows(recording) == [(102, {"host": 1.0})]  # not yet again
    monkeypatch.setattr("tensormeter.record.deferred_log._INTERVAL", 0.0)
    log._next_copy = 0.0
    recording.log({"host": 1.0}, 103)
    assert rows(recording) == [*written([0]), (103, {"host": 1.0})]


def test_the_end_of_the_run_fetches_deferred_rows(recording, log):
    run(step_of(log), 0)
    recording.recorder.close(State.FINISHED)
    assert rows(recording) == written([0])


def test_a_copy_is_taken_only_when_it_has_come(recording, log):
    """The host learns what a device has written by a copy that takes its time; here it is held back by hand."""
    come = []
    taken = log._copies.begin

    class Held:
        def __init__(self):
            self.copy = taken()
            self.state = self.copy.read()
            self.rows = log._rows.clone()

        def read(self):
            return (self.state[0], lambda index: self.rows[index].tolist()) if come else None

    log._copies.begin = Held
    run(step_of(log), 0)
    log.flush()
    run(step_of(log), 1)
    log.flush()
    assert rows(recording) == []
    come.append(True)
    log.flush()
    assert rows(recording) == written([0, 1])


@pytest.mark.parametrize("failing", ["a copy", "a question"])
def test_a_failing_device_does_not_stop_the_program(recording, log, warnings_logged, monkeypatch, failing):
    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    if failing == "a copy":
        monkeypatch.setattr(log._copies, "begin", fail)
    else:
        monkeypatch.setattr(log, "_capturing", fail)
    for _ in range(2):
        log.flush()
    recording.log({"a": 1.0}, 0)
    recording.recorder.close(State.FINISHED)
    assert rows(recording) == [(0, {"a": 1.0})]
    failure, loss = warnings_logged()
    assert "illegal memory access" in failure
    assert "lost the last rows" in loss
    assert recording.ring.drops() == {"device_unfinished": 2}  # a row of two names, however many failures


def test_rows_are_recorded_after_a_copy_that_failed(recording, log, monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: out of memory")

    run(step_of(log), 0)
    with monkeypatch.context() as patch:
        patch.setattr(log._copies, "begin", fail)
        log.flush()
    recording.recorder.close(State.FINISHED)
    assert rows(recording) == written([0])
    assert recording.ring.drops() == {}


@pytest.mark.parametrize(
    "questions", [[math.inf], [0, math.inf], [2, math.inf]], ids=["no copy", "a copy", "a late copy"]
)
def test_a_device_that_does_not_finish_loses_a_row_of_points(recording, log, warnings_logged, monkeypatch, questions):
    """Each copy is asked for in vain so many times. The last one, which the end of the run begins, never comes."""
    monkeypatch.setattr(deferred_log, "_TIMEOUT", 0.0)
    taken, left = log._copies.begin, iter(questions)

    class Held:
        def __init__(self):
            self.copy, self.questions = taken(), next(left)

        def read(self):
            self.questions -= 1
            return self.copy.read() if self.questions < 0 else None

    monkeypatch.setattr(log._copies, "begin", Held)
    run(step_of(log), 0)
    log.flush()
    recording.recorder.close(State.FINISHED)
    assert rows(recording) == written(range(len(questions) - 1))
    assert recording.ring.drops() == {"device_unfinished": 2}
    (message,) = warnings_logged()
    assert "lost the last rows" in message


@pytest.mark.parametrize("interrupted", ["_copies.begin", "_record_copied_rows"])
def test_a_signal_handler_may_finish_the_run_during_a_copy(
    recording, log, warnings_logged, monkeypatch, request, interrupted
):
    """The handler does not wait for the copy that it has interrupted, and the interrupted call returns."""
    previous = signal.signal(signal.SIGUSR1, lambda *_: recording.recorder.close(State.FINISHED))
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, previous))
    monkeypatch.setattr(deferred_log, "_TIMEOUT", 600.0)
    owner = log._copies if interrupted == "_copies.begin" else log
    taken = getattr(owner, interrupted.removeprefix("_copies."))

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGUSR1)
        return taken(*arguments)

    run(step_of(log), 0)
    monkeypatch.setattr(owner, interrupted.removeprefix("_copies."), interrupt)
    log.flush()
    monkeypatch.undo()
    log.flush()
    assert recording.ring.drops()["device_unfinished"] == 2
    assert "lost the last rows" in warnings_logged()[0]


@pytest.mark.parametrize(
    "values", [{}, {"loss": torch.zeros(())}, {"loss": torch.zeros(()), "m": torch.zeros(())}, {"loss": 1.0, "n": 2.0}]
)
def test_wrong_values_are_an_error(log, values):
    with pytest.raises(UsageError, match="each name"):
        log.write(values)


@pytest.mark.parametrize(
    ("names", "capacity", "message"),
    [
        ([], 8, "names"),
        ("loss", 8, "names"),
        (["a", "a"], 8, "names"),
        (["a"], 0, "capacity"),
        (["a"], 1.5, "capacity"),
    ],
)
def test_wrong_arguments_are_an_error(recording, names, capacity, message):
    with pytest.raises(UsageError, match=message):
        DeferredLog(recording.recorder, names, capacity=capacity, device="cpu", first_step=0)


def test_a_disabled_run_records_nothing(tmp_path):
    with tensormeter.init(mode="disabled", settings={"directory": str(tmp_path)}) as run_:
        log = tensormeter.deferred_log(run_, ["loss"], device="cpu")
        log.write({"loss": torch.ones(())})
        log.flush()
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
import torch, tensormeter
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.ring.file import RingFile

settings = {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "agent": "off"}
run = tensormeter.init(settings=settings)
log = tensormeter.deferred_log(run, ["loss", "number"], device="cpu", first_step=10)
run.log({"host": 1.0}, 0)

def step(x):
    loss = (x * x).sum()
    log.write({"loss": loss, "number": x[0]})
    return loss

compiled = torch.compile(step, fullgraph=True)
weight = torch.ones((), requires_grad=True)
for number in range(5):
    compiled(torch.full((3,), float(number)) * weight).backward()
log.flush()
ring = RingFile.open(run._process.ring.path)
_, rows = LaneReader(Layouts(ring), 0, Cursor()).read(1000, abandon_pending=False)
print(rows.steps.tolist(), *(column.tolist() for column in rows.columns))
"""


def test_writes_work_with_the_default_compiler(tmp_path):
    """inductor, with the public function, after a log call has told dynamo to keep out of this package."""
    done = run_python("-c", SCRIPT, tmp_path, environment={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    if "InvalidCxxCompiler" in done.stderr:
        pytest.skip("inductor finds no C++ compiler")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[10, 11, 12, 13, 14] [0.0, 3.0, 12.0, 27.0, 48.0] [0.0, 1.0, 2.0, 3.0, 4.0]\n"
