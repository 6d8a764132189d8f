"""The same scripts with W&B's package, offline, and with `tensormeter.wandb`: names, steps, values and configuration are equal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripts

from support.processes import clean_environment, run_python
from support.servers import Server
from support.stored_points import points_of
from support.wandb_records import nested, records
from tensormeter.client import Client
from tensormeter.client.run import StoredRun

pytest.importorskip("wandb")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result.update(flat(value, f"{name}.") if isinstance(value, dict) and "_type" not in value else {name: value})
    return result


class Recorded:
    """The output of a script, its points by name, and its configuration."""

    def __init__(self, output: str, points: dict[str, list[tuple[int, float]]], config: dict[str, Any]) -> None:
        self.output, self.points, self.config = output, points, config


def with_wandb(script: str, folder: Path) -> Recorded:
    """Run a script with W&B's package, and read its file."""
    environment = clean_environment("WANDB_", "TENSORMETER_") | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    output = run_python("-c", f"import wandb\n{script}", environment=environment, folder=folder, check=True).stdout
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    points: dict[str, list[tuple[int, float]]] = {}
    config: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = flat(nested(record.history.item))
            step = record.history.step.num
            for name, value in row.items():
                if not name.startswith("_") and isinstance(value, int | float):
                    points.setdefault(name, []).append((step, float(value)))
        elif kind in ("run", "config"):
            changes = record.run.config if kind == "run" else record.config
            for item in changes.update:
                path_of = list(item.nested_key) or [item.key]
                if not path_of[0].startswith("_"):
                    config[path_of[0]] = json.loads(item.value_json)
    return Recorded(output, points, config)


def with_tensormeter(script: str, folder: Path, server: Server) -> Recorded:
    """Run a script with one changed line, and read its run from the server."""
    environment = clean_environment("WANDB_", "TENSORMETER_") | {
        "TENSORMETER_ENDPOINT": server.url,
        "TENSORMETER_DIR": str(folder / "state"),
        "TENSORMETER_RUN_ID": "same",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
    }
    patched = f"import tensormeter.wandb as wandb\n{script}"
    output = run_python("-c", patched, environment=environment, folder=folder, check=True).stdout
    (run,) = (run for run in Client(server.url).runs() if run.id == "same")
    stored: StoredRun = run.refresh()
    return Recorded(output, points_of(stored), dict(stored.config))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Callable[[str], tuple[Recorded, Recorded]]:
    done: dict[str, tuple[Recorded, Recorded]] = {}

    def run(script: str) -> tuple[Recorded, Recorded]:
        if script not in done:
            folder = tmp_path_factory.mktemp("both")
            (folder / "real").mkdir()
            (folder / "ours").mkdir()
            done[script] = (
                with_wandb(script, folder / "real"),
                with_tensormeter(script, folder / "ours", server),
            )
        return done[script]

    return run


def test_names_steps_and_values_are_those_of_wandb(both: Callable[[str], tuple[Recorded, Recorded]]) -> None:
    """About 20 s on a busy machine: W&B's own service process starts and ends."""
    real, ours = both(scripts.STEPS)
    assert len(real.points) > 15
    assert ours.points == real.points


def test_configuration_is_that_of_wandb(both: Callable[[str], tuple[Recorded, Recorded]]) -> None:
    real, ours = both(scripts.STEPS)
    assert ours.config == real.config
    assert math.isclose(ours.config["lr"], 0.2)


def test_scripts_read_the_same_from_the_run(both: Callable[[str], tuple[Recorded, Recorded]]) -> None:
    real, ours = both(scripts.STEPS)
    assert ours.output == real.output
