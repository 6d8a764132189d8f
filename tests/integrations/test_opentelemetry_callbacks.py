"""Callbacks of trainers that report through OpenTelemetry record to the run, although they set their own provider."""

from support.documents import examples
from support.processes import run_python

CALLBACK = """
import threading
from opentelemetry import metrics
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

class OpenTelemetryCallback:
    def __init__(self):
        set_meter_provider(MeterProvider(metric_readers=[InMemoryMetricReader()]))
        self.meter = metrics.get_meter("axolotl.training")
        self.loss = self.meter.create_gauge(name="axolotl_train_loss", description="Current training loss", unit="1")
        self.steps = self.meter.create_counter(name="axolotl_global_steps", description="Steps", unit="1")

    def on_log(self, logs):
        self.loss.set(logs["loss"])

    def on_step_end(self):
        self.steps.add(1)

    def on_evaluate(self, metrics):
        for key, value in metrics.items():  # as Axolotl does, which creates the instrument each time
            self.meter.create_gauge(name=f"axolotl_{key}", description=f"Evaluation metric: {key}", unit="1").set(value)

callback = OpenTelemetryCallback()
for step in range(5):
    callback.on_step_end()
    callback.on_log({"loss": 1 / (step + 1)})
    callback.on_evaluate({"eval_accuracy": step / 4})
"""


def values(run, metric: str) -> list[float]:
    (line,) = run.series(metric, x="time")
    assert line.scope == "axolotl.training"
    return list(line.y)


def test_a_callback_that_sets_its_own_provider_records_to_the_run(experiment):
    """Without a line of the script, but the one that axolotl's page names: the first measurement starts the run."""
    program = f"import tensormeter; tensormeter.configure()\n{CALLBACK}"
    run_python("-c", program, environment={**experiment.environment, "TENSORMETER_PROJECT": "axolotl"}, check=True)
    (run,) = experiment.runs("axolotl", 1)
    assert run.state == "finished"
    assert values(run, "axolotl_train_loss") == [1 / (step + 1) for step in range(5)]
    assert values(run, "axolotl_eval_accuracy") == [step / 4 for step in range(5)]
    assert values(run, "axolotl_global_steps")[-1] == 5


def test_the_example_of_the_page_runs(experiment):
    (example,) = examples("integrations/opentelemetry.md")
    run_python("-c", example, environment=experiment.environment, check=True)
    (run,) = experiment.runs("finetuning", 1)
    assert values(run, "axolotl_train_loss") == [1 / (step + 1) for step in range(10)]
