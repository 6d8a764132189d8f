"""Makes an export as neptune-exporter does, by its published schema (`src/neptune_exporter/model.py`) and its layout.

The service is switched off, so no test can export from it. The columns, the names of folders and files, the types of
attributes and the paths of files are those of neptune-exporter, for Neptune 2 and 3.
"""

import hashlib
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

__all__ = ["PROJECT_2", "PROJECT_3", "SCHEMA", "START", "folder_name", "make_export", "row", "write_run"]

SCHEMA = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_path", pa.string()),
        ("attribute_type", pa.string()),
        ("step", pa.decimal128(18, 6)),
        ("timestamp", pa.timestamp("ms", tz="UTC")),
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", pa.timestamp("ms", tz="UTC")),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", pa.struct([("path", pa.string())])),
        (
            "histogram_value",
            pa.struct([("type", pa.string()), ("edges", pa.list_(pa.float64())), ("values", pa.list_(pa.float64()))]),
        ),
    ]
)
START = datetime(2025, 1, 1, 12, tzinfo=UTC)
PROJECT_3 = "workspace/proj 3"
PROJECT_2 = "workspace/proj2"

_VALUES = {
    "float_series": "float_value",
    "string_series": "string_value",
    "histogram_series": "histogram_value",
    **dict.fromkeys(("file", "file_series", "file_set", "artifact"), "file_value"),
}


def folder_name(text: str) -> str:
    """The name of a project's folder, and the start of a run's files."""
    safe = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in text)
    return f"{safe}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def row(path, kind, value, step=None, time=None):
    fields = {"attribute_path": path, "attribute_type": kind, _VALUES.get(kind, f"{kind}_value"): value}
    return fields | {
        "step": None if step is None else Decimal(str(step)).quantize(Decimal("1.000000")),
        "timestamp": time,
    }


def write_run(data: Path, project: str, run: str, *parts: list[dict]) -> list[Path]:
    paths = []
    for number, rows in enumerate(parts):
        path = data / folder_name(project) / f"{folder_name(run)}_part_{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([{"project_id": project, "run_id": run} | fields for fields in rows], SCHEMA)
        pq.write_table(table, path, compression="snappy")
        paths.append(path)
    return paths


def make_export(folder: Path) -> None:
    """Make the folders `data` and `files` with two runs of Neptune 3, one of them a fork, and one of Neptune 2."""
    _neptune_3(folder)
    _neptune_2(folder)


def _neptune_3(folder: Path) -> None:
    files = folder / "files" / folder_name(PROJECT_3)
    for path, data in {
        "run-a/image/one.png": _png(),
        "run-a/samples/step_3_000000.png": _png(),
        "run-a/weights.bin": b"\0\1\2",
        "run-a/notes.txt": b"text of a file",
    }.items():
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(data)

    def system(run, number, name="experiment"):
        return [
            row("sys/id", "string", f"PRO-{number}"),
            row("sys/custom_run_id", "string", run),
            row("sys/name", "string", name),
            row("sys/creation_time", "datetime", START),
            row("sys/modification_time", "datetime", START + timedelta(hours=1)),
            row("sys/owner", "string", "someone"),
        ]

    parameters = [
        row("config/lr", "float", 0.1),
        row("config/layers", "int", 3),
        row("config/on", "bool", value=True),
        row("config/when", "datetime", START),
        row("config/empty", "float", None),  # a parameter that only another run of the batch has
        row("sys/tags", "string_set", ["b", "a"]),
        row("sys/description", "string", "a note"),
    ]
    metrics = [
        row(name, "float_series", value, step, START + timedelta(milliseconds=step // 4))
        for name in ("loss", "metrics/acc")
        for step, value in enumerate([0.1 + step for step in range(20)] + [None])
    ]
    series = [
        row("text", "string_series", "hello", 1, START),
        row("text", "string_series", "world", 2, START),
        row("runtime/stderr", "string_series", "one line\n", 0, START),
        row("hist", "histogram_series", {"type": "COUNTING", "edges": [0.0, 1.0, 3.0], "values": [2.0, 5.0]}, 4, START),
        row("density", "histogram_series", {"type": "DENSITY", "edges": [0.0, 1.0], "values": [1.0]}, 4, START),
        row("image/one", "file", {"path": "run-a/image/one.png"}),
        row("samples", "file_series", {"path": "run-a/samples/step_3_000000.png"}, 3, START),
        row("weights", "file", {"path": "run-a/weights.bin"}),
        row("notes", "file", {"path": "run-a/notes.txt"}),
        row("lost", "file", None),
    ]
    write_run(folder / "data", PROJECT_3, "run-a", [*system("run-a", 1), *parameters, *metrics], series)
    fork = [row("sys/forking/parent", "string", "run-a"), row("sys/forking/step", "float", 5.0)]
    fork.append(row("sys/failed", "bool", value=True))
    write_run(
        folder / "data", PROJECT_3, "run-b", [*system("run-b", 2), *fork, row("loss", "float_series", 9.0, 6, START)]
    )


def _neptune_2(folder: Path) -> None:
    files = folder / "files" / folder_name(PROJECT_2) / PROJECT_2 / "RUN-1"  # the client repeats the project's name
    for path, data in {
        "charts/image": _png(),
        "samples/0.5.png": _png(),
        "source_code/diff": b"diff --git a b",
    }.items():
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(data)
    (files / "source_code/files").mkdir()
    times = [START + timedelta(seconds=second) for second in range(3)]
    rows = [
        row("sys/id", "string", "RUN-1"),
        row("sys/name", "string", "first"),
        row("sys/tags", "string_set", ["a"]),
        row("sys/group_tags", "string_set", ["sweep"]),
        row("sys/creation_time", "datetime", START),
        row("sys/hostname", "string", "machine"),
        row("parameters/lr", "float", 0.5),
        *(row("train/loss", "float_series", 1.5 + n, n / 2, time) for n, time in enumerate(times)),
        *(row("monitoring/5f3e/cpu", "float_series", 50.0 + n, n, time) for n, time in enumerate(times)),
        row("monitoring/5f3e/stdout", "string_series", "printed\n", 0, START),
        row("charts/image", "file", {"path": f"{PROJECT_2}/RUN-1/charts/image"}),
        row("samples", "file_series", {"path": f"{PROJECT_2}/RUN-1/samples/0.5.png"}, 0.5),
        row("source_code/diff", "file", {"path": f"{PROJECT_2}/RUN-1/source_code/diff"}),
        row("source_code/files", "file_set", {"path": f"{PROJECT_2}/RUN-1/source_code/files"}),
    ]
    write_run(folder / "data", PROJECT_2, "RUN-1", rows)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, "PNG")
    return file.getvalue()
