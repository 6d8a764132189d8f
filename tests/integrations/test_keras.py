"""The callback for Keras with the real `fit` and `evaluate`, on torch."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

from collections.abc import Iterator

import keras
import numpy as np
import pytest

import tensormeter
from support.documents import examples
from support.recorded_runs import RecordedRuns, record_runs
from tensormeter.integrations.keras import TensormeterCallback
from tensormeter.session import open_runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

BATCHES = 4


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedRuns]:
    with record_runs(tmp_path_factory.mktemp("recorded")) as recorded:
        yield recorded


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test():
    yield
    open_runs.finish_all()


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator.random((32, 4)).astype("float32"), generator.integers(0, 2, 32)


def build(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.5), loss="binary_crossentropy", metrics=["accuracy"], **options
    )
    return model


def fit(callback, data, **options):
    return build().fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[callback], **options)


class Seen(keras.callbacks.Callback):
    """Keeps the logs that Keras hands to callbacks."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))


def test_batches_and_epochs_have_the_values_of_keras(recorded, data):
    with tensormeter.init("keras tests", name="fit") as run:
        seen, callback = Seen(), TensormeterCallback()
        history = build().fit(
            *data, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[seen, callback], validation_data=data
        )
        assert callback.run is run
        assert not run.finished
    points = recorded.points("fit")
    for name in ("loss", "accuracy"):
        assert points[f"batch/{name}"] == [(step + 1, logs[name]) for step, logs in enumerate(seen.batches)]
    for name, values in history.history.items():
        assert points[f"epoch/{name}"] == [(BATCHES, values[0]), (2 * BATCHES, values[1])]
    assert points["epoch/learning_rate"] == [(step, float(np.float32(0.1))) for step in (BATCHES, 2 * BATCHES)]
    assert points["epoch"] == [(BATCHES, 0), (2 * BATCHES, 1)]
    assert "epoch/val_loss" in points
    assert not any(name.startswith("test/") for name in points)
    config = recorded.run("fit").config
    assert config["model"]["parameters"] == config["model"]["trainable_parameters"] == 19
    assert config["optimizer"]["class"] == "SGD"
    assert config["optimizer"]["momentum"] == 0.5
    assert config["optimizer"]["learning_rate"] == pytest.approx(0.1)
    assert config["loss"] == "binary_crossentropy"
    assert config["fit"]["epochs"] == 2
    definitions = {definition["name"]: definition.get("step_metric") for definition in recorded.run("fit").definitions}
    assert definitions["epoch/*"] == "epoch"


def test_every_thins_batches_and_none_leaves_them_out(recorded, data):
    for name, every, steps in (("every 3", 3, [3, 6]), ("epochs", None, [])):
        with tensormeter.init("keras tests", name=name):
            fit(TensormeterCallback(every=every), data)
        points = recorded.points(name)
        assert [step for step, _ in points.get("batch/loss", [])] == steps
        assert [step for step, _ in points["epoch/loss"]] == [4, 8]
    with pytest.raises(tensormeter.UsageError, match="every"):
        TensormeterCallback(every=0)


def test_steps_per_execution_counts_all_batches(recorded):
    """Keras on torch does not support it. On other backends, the callback sees only the last batch of each execution."""
    with tensormeter.init("keras tests", name="execution"):
        callback = TensormeterCallback()
        callback.set_model(build())
        for epoch in range(2):
            callback.on_epoch_begin(epoch)
            for batch in (1, 3):
                callback.on_train_batch_end(batch, {"loss": 0.5})
    assert [step for step, _ in recorded.points("execution")["batch/loss"]] == [2, 4, 6, 8]


def test_a_run_that_the_callback_starts_stays_open_for_evaluate(recorded, data, monkeypatch):
    monkeypatch.delenv("TENSORMETER_PROJECT", raising=False)
    callback = TensormeterCallback(name="own run")
    model = build()
    model.fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=[callback])
    run = callback.run
    assert run is not None
    assert not run.finished
    assert run.project == "keras"
    result = model.evaluate(*data, batch_size=8, verbose=0, callbacks=[callback], return_dict=True)
    model.fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=[callback])
    callback.finish()
    assert run.finished
    points = recorded.points("own run")
    assert points["test/loss"] == [(BATCHES, result["loss"])]
    assert [step for step, _ in points["batch/loss"]] == list(range(1, 2 * BATCHES + 1))


def test_each_fold_has_its_own_run(recorded, data):
    runs = []
    for fold in range(2):
        callback = TensormeterCallback(name=f"fold {fold}")
        fit(callback, data)
        runs.append(callback.run)
    assert runs[0].finished
    assert not runs[1].finished
    callback.finish()
    assert len(recorded.points("fold 0")["epoch/loss"]) == len(recorded.points("fold 1")["epoch/loss"]) == 2


class Interrupts(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def test_an_evaluation_after_an_interrupted_training_is_recorded(recorded, data):
    callback = TensormeterCallback(name="interrupted")
    model = build()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=[callback, Interrupts()])
    first = callback.run
    result = model.evaluate(*data, batch_size=8, verbose=0, callbacks=[callback], return_dict=True)
    other = TensormeterCallback(name="next training")
    model.fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=[other], validation_data=data)
    assert first.finished
    assert recorded.points("interrupted")["test/loss"] == [(1, result["loss"])]
    result = model.evaluate(*data, batch_size=8, verbose=0, callbacks=[callback], return_dict=True)
    assert callback.run.id == first.id
    callback.finish()
    other.finish()
    assert recorded.points("interrupted")["test/loss"] == [(1, result["loss"])]
    assert not {name for name in recorded.points("next training") if name.startswith("test/")}


def test_misspelt_arguments_are_refused_before_the_training():
    with pytest.raises(TypeError, match="projct"):
        TensormeterCallback(projct="digits")


def test_a_schedule_is_recorded_and_the_results_do_not_change(recorded, data):
    plain = build().fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    with tensormeter.init("keras tests", name="schedule"):
        assert fit(TensormeterCallback(), data).history == plain
        model = build()
        model.compile(
            optimizer=keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)), loss="mse"
        )
        model.fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=[TensormeterCallback(initial_step=100)])
    rates = [value for step, value in recorded.points("schedule")["batch/learning_rate"] if step > 100]
    assert len(rates) == BATCHES
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


def test_invalid_options_are_refused_before_the_training():
    with pytest.raises(TypeError, match="projct"):
        TensormeterCallback(projct="a")
    with pytest.raises(tensormeter.SettingsError, match="tags"):
        TensormeterCallback(tags=5)


def test_the_examples_of_the_page_run(recorded):
    for example in examples("integrations/keras.md"):
        exec(example, {"__name__": "__main__"})
    (run,) = recorded.client.runs("my project")
    points = recorded.points(run)
    assert [step for step, _ in points["batch/loss"]] == [2, 4, 6]
    assert {"epoch/loss", "epoch/val_loss", "epoch/learning_rate", "test/loss"} <= points.keys()
