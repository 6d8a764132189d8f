"""Watching a model: what is logged when, and that the model and its training do not notice."""

import copy
import gc
import logging
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, optimizer

import tensormeter
from tensormeter import Histogram, UsageError
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.record.model_watch import Watch, _euclidean_norms
from tensormeter.record.values.classify import Refused, classify
from tensormeter.ring.file import RingFile


class Net(nn.Module):
    """Two layers whose weights are tied, one that is frozen, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(requires_grad=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.frozen(self.tied(self.first(x))).square().sum()


@pytest.fixture
def watching(caplog):
    """Watches models, and gathers rows."""
    watches = []

    class Watching:
        def __init__(self):
            self.rows = []

        def __call__(self, model, **options):
            options = {"log": "gradients", "every": 1, "norms": True, "histograms": True} | options
            watches.append(Watch(model, self.rows.append, **options))
            watches[-1].start()
            return watches[-1]

        def warnings(self):
            return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    yield Watching()
    for watch in watches:
        watch._rows += 1  # no warning about nothing recorded
        watch.stop()


def train(model, optimizers, steps=1, after_backward=lambda: None):
    for _ in range(steps):
        for each in optimizers:
            each.zero_grad()
        model(torch.ones(3, 4)).backward()
        after_backward()
        for each in optimizers:
            each.step()


def test_gradients_are_those_before_the_step(watching):
    model = Net()
    watching(model)
    sgd = SGD(model.parameters(), 0.01)
    seen = {}
    train(
        model,
        [sgd],
        1,
        lambda: seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}),
    )
    (row,) = watching.rows
    assert set(seen) == {"first.weight", "first.bias"}
    assert set(row) == {
        "gradient_norm",
        *(f"{what}/{name}" for what in ("gradient_norm", "gradients") for name in seen),
    }
    for name, gradient in seen.items():
        assert row[f"gradient_norm/{name}"].item() == pytest.approx(gradient.norm().item())
        assert isinstance(row[f"gradients/{name}"], Histogram)
    whole = nn.utils.parameters_to_vector(seen.values()).norm().item()
    assert row["gradient_norm"].item() == pytest.approx(whole)


@pytest.mark.parametrize(
    ("options", "prefixes"),
    [
        ({"log": "parameters"}, {"parameter_norm", "parameters"}),
        ({"log": "all"}, {"parameter_norm", "parameters", "gradient_norm", "gradients"}),
        ({"log": "all", "norms": False}, {"parameters", "gradients"}),
        ({"log": "gradients", "histograms": False}, {"gradient_norm"}),
    ],
)
def test_options_choose_the_metrics_that_are_logged(watching, options, prefixes):
    model = Net()
    watching(model, **options)
    train(model, [SGD(model.parameters(), 0.01)])
    (row,) = watching.rows
    assert {name.partition("/")[0] for name in row} == prefixes
    if "parameters" in prefixes:
        named = {name.partition("/")[2] for name in row if name.startswith("parameters/")}
        assert named == {"first.weight", "first.bias", "frozen.weight", "unused.weight", "unused.bias"}


def test_a_row_is_logged_every_so_many_steps(watching):
    model = Net()
    watching(model, every=3)
    train(model, [SGD(model.parameters(), 0.01)], 7)
    assert len(watching.rows) == 3


def test_several_optimizers_make_one_row_a_step(watching):
    model, other = Net(), Net()
    watching(model)
    train(other, [SGD(other.parameters(), 0.01)], 3)
    assert watching.rows == []
    halves = [SGD(model.first.parameters(), 0.01), SGD(model.unused.parameters(), 0.01)]
    train(model, halves, 4)
    assert len(watching.rows) == 4
    del halves[0]
    gc.collect()
    train(model, halves, 2)  # another takes the lead
    assert len(watching.rows) == 6


def test_a_parameter_may_join_an_optimizer_later(watching):
    model, other = Net(), nn.Linear(2, 2)
    watching(model)
    sgd = SGD(other.parameters(), 0.01)
    train(model, [sgd])
    assert watching.rows == []
    sgd.add_param_group({"params": model.parameters()})
    train(model, [sgd])
    assert len(watching.rows) == 1


def test_the_model_is_not_changed_and_not_kept_alive(watching):
    model = Net()
    before = pickle.dumps(model)
    watch = watching(model)
    sgd = SGD(model.parameters(), 0.0)
    train(model, [sgd])
    sgd.zero_grad()
    assert pickle.dumps(model) == before
    copy.deepcopy(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    sgd.step()
    watch.log()
    assert len(watching.rows) == 1
    assert watching.warnings() == []


def test_nothing_is_called_after_stop(watching):
    model = Net()
    before = dict(optimizer._global_optimizer_pre_hooks)
    watch = watching(model)
    sgd = SGD(model.parameters(), 0.01)
    train(model, [sgd])
    watch.stop()
    watch.stop()
    train(model, [sgd])
    assert len(watching.rows) == 1
    assert optimizer._global_optimizer_pre_hooks == before


def test_a_watch_may_be_stopped_in_the_middle_of_a_step(watching):
    """By a signal handler, say: torch must not find its hooks changed while it goes through them."""
    model = Net()
    watch = watching(model)
    watching(model)
    watch._record = lambda values: watch.stop()
    train(model, [SGD(model.parameters(), 0.01)], 2)
    assert len(watching.rows) == 2


def test_nothing_stops_the_training(watching, monkeypatch):
    model = Net()
    watch = watching(model)

    def fail(*_):
        raise RuntimeError("of the recorder")

    watch._record = fail
    train(model, [SGD(model.parameters(), 0.01)], 3)
    monkeypatch.setattr(watch, "_follows", fail)
    train(model, [SGD(model.parameters(), 0.01)], 3)
    (message,) = watching.warnings()
    assert message == "watch(Net) could not record a row: RuntimeError: of the recorder"


def test_a_watch_that_never_sees_a_step_says_so(watching):
    model = Net()
    watch = watching(model)
    watch.stop()
    (message,) = watching.warnings()
    assert "no torch optimizer" in message


def test_rows_can_be_logged_without_an_optimizer_and_on_another_thread(watching):
    model = Net()
    watch = watching(model)
    model(torch.ones(3, 4)).backward()
    thread = threading.Thread(target=watch.log)
    thread.start()
    thread.join(300)
    watch.stop()
    assert len(watching.rows) == 1
    assert watching.warnings() == []


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # within torch
def test_compiled_models_and_steps_are_watched(watching):
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager")
    watching(compiled)
    sgd = SGD(compiled.parameters(), 0.01)
    train(compiled, [sgd])
    assert "gradients/first.weight" in watching.rows[0]
    step = torch.compile(sgd.step, backend="eager")
    compiled(torch.ones(3, 4)).backward()
    step()
    step()
    assert len(watching.rows) == 3
    assert watching.rows[2].keys() == watching.rows[0].keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_norms_do_not_lose_what_the_dtype_cannot_hold(dtype):
    tensors = {"a": torch.full((300, 300), 200.0).to(dtype), "b": torch.full((5,), 3.0)}
    total, norms = _euclidean_norms(tensors)
    assert norms["a"].item() == pytest.approx(tensors["a"].float().norm().item(), rel=1e-6)
    assert norms["b"].item() == pytest.approx(45**0.5)
    assert total.item() == pytest.approx((norms["a"].item() ** 2 + 45) ** 0.5)


def test_of_sharded_parameters_the_part_that_is_here(watching):
    dist = pytest.importorskip("torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(4, 4)
        weight = model.weight.detach().clone()
        model.weight = nn.Parameter(distribute_tensor(model.weight.data, mesh, [Shard(0)]))
        model.bias = nn.Parameter(distribute_tensor(model.bias.data, mesh, [Replicate()]))
        watch = watching(model, log="parameters")
        watch.log()
        (row,) = watching.rows
        assert row["parameter_norm/weight"].item() == pytest.approx(weight.norm().item())
        assert row["parameters/bias"].reduce().code == "E"
        model.bias.grad = torch.distributed.tensor.DTensor.from_local(torch.ones(4), mesh, [Partial()])
        watch._log = "gradients"
        watch.log()
        assert set(watching.rows[1]) == {"gradient_norm/bias", "gradients/bias"}
        with pytest.raises(Refused, match="local part"):
            watching.rows[1]["gradients/bias"].reduce()
        with pytest.raises(Refused, match=r"DTensor; log .* local part \(`gradient_norm` also excludes this tensor\)"):
            classify(watching.rows[1]["gradient_norm/bias"])
    finally:
        dist.destroy_process_group()


class Special(torch.Tensor):
    """A tensor of a library, whose elements may be anything."""


def test_norms_that_cannot_be_computed_are_counted_and_named(recording, warnings_logged):
    model = Net()
    model.special = nn.Parameter(torch.ones(2).as_subclass(Special))
    model.sparse = nn.Parameter(torch.ones(2).to_sparse())
    model.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    model.integers = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)
    plain = [name for name, tensor in Net().named_parameters()]
    watch = Watch(model, recording.recorder.log_at_next_step, log="parameters", every=1, norms=True, histograms=False)
    for _ in range(2):
        watch.log()
    rows = recording.values()
    assert [set(row) for row in rows] == [{"parameter_norm", *(f"parameter_norm/{name}" for name in plain)}] * 2
    assert recording.ring.drops() == {"unsupported_value": 8}
    messages = warnings_logged()
    assert len(messages) == 4
    for name, reason in {
        "special": "Special; log a plain tensor",
        "sparse": "sparse",
        "complex": "complex",
        "integers": "log the norm of its .float()",
    }.items():
        (message,) = [message for message in messages if f"'parameter_norm/{name}' is not recorded: " in message]
        assert reason in message


def test_without_tensors_there_is_no_norm():
    assert _euclidean_norms({}) == (None, {})


def test_norms_take_few_launches_and_do_not_synchronize():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            name = function.__name__
            if not any(word in name for word in ("device", "detach", "unbind")):
                self.launches += 1
            return function(*arguments, **(options or {}))

    with FakeTensorMode(), Count() as count:
        tensors = {f"f{i}": torch.empty(100, 100, device="cuda") for i in range(150)}
        tensors |= {f"b{i}": torch.empty(100, device="cuda", dtype=torch.bfloat16) for i in range(50)}
        count.launches = 0
        total, norms = _euclidean_norms(tensors)
        assert total.device.type == "cuda"
        assert len(norms) == 200
        assert count.launches <= 13


@pytest.mark.parametrize(
    "arguments",
    [{"model": 5}, {"model": Net(), "log": "weights"}, {"model": Net(), "every": 0}, {"model": Net(), "every": True}],
    ids=["model", "log", "zero", "bool"],
)
def test_arguments_that_cannot_be_used(tmp_path, arguments):
    with tensormeter.init(mode="disabled") as run, pytest.raises(UsageError, match="watch: "):
        run.watch(**arguments)


def test_a_run_watches_models(tmp_path, caplog):
    settings = {"directory": tmp_path, "buffer_directory": tmp_path, "agent": "off", "mode": "offline"}
    model, again = Net(), Net()
    run = tensormeter.init(settings=settings)
    run.watch(model, every=2)
    run.watch(model, every=1, histograms=False)  # again
    run.watch(again)
    sgd = SGD(model.parameters(), 0.01)
    for step in range(10, 13):
        run.log({"loss": 1.0}, step - 1)
        train(model, [sgd])
    run.unwatch(model)
    train(model, [sgd])
    run.finish()
    assert run._watches == []
    run.watch(model)
    train(model, [sgd])
    processor = BatchMeasurementProcessor(
        RingFile.open(run._process.ring.path), {}, schedule_delay=1.0, max_export_batch_size=1 << 20
    )
    processor.poll(abandon_pending=True)
    batch, _ = processor.batch({})
    by_name = {gauge.name: gauge for gauge in batch.gauges}
    steps = dict(zip(by_name[STEP_METRIC].times.tolist(), by_name[STEP_METRIC].values.tolist(), strict=True))
    assert [steps[time] for time in by_name["gradient_norm"].times.tolist()] == [10, 11, 12]
    assert [steps[time] for time in by_name["loss"].times.tolist()] == [9, 10, 11]
    assert "watch(Net) recorded nothing" in caplog.text  # of `again`


def test_a_run_that_records_nothing_watches_nothing():
    with tensormeter.init(mode="disabled") as run:
        model = Net()
        before = dict(optimizer._global_optimizer_pre_hooks)
        run.watch(model)
        assert optimizer._global_optimizer_pre_hooks == before


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float64), ("xpu", torch.float64), ("mps", torch.float32)])
def test_norms_are_as_wide_as_the_device_allows(device, dtype):
    with FakeTensorMode():
        tensors = {"a": torch.empty(3, device=device), "b": torch.empty(3, device=device, dtype=torch.bfloat16)}
        total, norms = _euclidean_norms(tensors)
    assert {total.dtype, *(norm.dtype for norm in norms.values())} == {dtype}
    assert total.device.type == device


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    def test_no_step_synchronizes(self, watching):
        from tensormeter.record.histogram.counting import DeviceTables

        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))).cuda()
        tables = DeviceTables()
        watch = watching(model, log="all")
        gather = watch._record

        def record(values):
            gather(values)
            from tensormeter.ring.histogram_buckets import SINGLE

            tables.count([v.reduce().tensor for v in values.values() if isinstance(v, Histogram)], SINGLE)

        watch._record = record
        sgd = SGD(model.parameters(), 0.01)
        model(torch.ones(4, 64, device="cuda")).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sgd.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert watching.warnings() == []
        assert len(watching.rows) == 1
        vector = nn.utils.parameters_to_vector(p.grad for p in model.parameters())
        assert watching.rows[0]["gradient_norm"].item() == pytest.approx(vector.norm().item(), rel=1e-5)
