"""Record what NVML answers on this machine, in the form that `nvml_library.py` replays.

``python tests/sensors/record_nvml.py > tests/sensors/nvml_NAME.json``, on a machine with an NVIDIA GPU. It runs the sensor three
times, on top of the real library, and notes every answer.
"""

import ctypes
import json
import sys
from typing import Any

import pynvml

from tensormeter.sensors.gpu.nvidia import NvidiaSensor
from tensormeter.sensors.instrument import observe
from tensormeter.sensors.targets import TrainingProcess, Watch

_HANDLES = ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMigDeviceHandleByIndex")
_NOT_NOTED = ("nvmlInit", "nvmlShutdown", "nvmlErrorString", "nvmlEvent", "nvmlGpm")


class Notes:
    """Stands between pynvml and the library."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._names: dict[int, str] = {}
        self._sampled = ""
        self.system: dict[str, Any] = {}
        self.devices: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> int:
            code = int(function(*arguments))
            self._note(name, arguments, code)
            return code

        return function if name == "nvmlErrorString" else call

    def _note(self, name: str, arguments: tuple[Any, ...], code: int) -> None:
        device = isinstance(arguments[0], pynvml.c_nvmlDevice_t) if arguments else False
        if name in _HANDLES:
            index = arguments[-2].value
            path = f"{self._name(arguments[0])}/{index}" if device else str(index)
            if code == 0:
                self._names[_address(arguments[-1]._obj)] = path
                self.devices.setdefault(path, {})
            elif code != pynvml.NVML_ERROR_NOT_FOUND:
                self.devices[path] = {"error": code}
        elif name == "nvmlGpmSampleGet":
            self._sampled = self._name(arguments[0])
        elif name == "nvmlGpmMigSampleGet":
            parent, instance = self._name(arguments[0]), arguments[1]
            self._sampled = next(
                path
                for path, answers in self.devices.items()
                if path.startswith(f"{parent}/") and answers.get("nvmlDeviceGetGpuInstanceId") == instance
            )
        elif name == "nvmlDeviceRegisterEvents":
            if code:
                self.devices[self._name(arguments[0])]["events"] = code
        elif name == "nvmlGpmMetricsGet" and code == 0:
            request = arguments[0]._obj
            metrics = request.metrics[: request.numMetrics]
            self.devices[self._sampled]["profile"] = {str(m.metricId): m.value for m in metrics if m.nvmlReturn == 0}
        elif not name.startswith(_NOT_NOTED):
            table = self.devices[self._name(arguments[0])] if device else self.system
            self._note_answer(table, name, arguments[1:] if device else arguments, code)

    def _note_answer(self, table: dict[str, Any], name: str, arguments: tuple[Any, ...], code: int) -> None:
        if name == "nvmlDeviceGetFieldValues":
            fields = table.setdefault("fields", {})
            for value in arguments[1]._obj:
                key = f"{value.fieldId},{value.scopeId}" if value.scopeId else str(value.fieldId)
                fields[key] = {"error": value.nvmlReturn} if value.nvmlReturn else _value(value)
            return
        if name.startswith("nvmlDeviceGetComputeRunningProcesses"):
            if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                return
            count = arguments[0]._obj.value
            table["processes"] = {"error": code} if code else [_plain(arguments[1][i]) for i in range(count)]
            return
        targets = [item for item in arguments if hasattr(item, "_obj") or isinstance(item, ctypes.Array)]
        text = bool(targets) and isinstance(targets[0], ctypes.Array)
        inputs = (
            [] if text else [getattr(i, "value", i) for i in arguments if isinstance(i, (int, ctypes._SimpleCData))]
        )
        answers = [_plain(getattr(target, "_obj", target)) for target in targets]
        key = f"{name}({','.join(map(str, inputs))})" if inputs else name
        table[key] = {"error": code} if code else answers if len(answers) > 1 else answers[0]

    def _name(self, handle: Any) -> str:
        return self._names[_address(handle)]


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _value(field: Any) -> float:
    return float(field.value.dVal) if field.valueType == pynvml.NVML_VALUE_TYPE_DOUBLE else int(field.value.ullVal)


def _plain(target: Any) -> Any:
    if isinstance(target, ctypes.Structure):
        return {name: _plain(getattr(target, name)) for name, *_ in target._fields_ if name != "version"}
    value = getattr(target, "value", target)
    return value.decode() if isinstance(value, bytes) else value


def record() -> dict[str, Any] | None:
    """Everything that was answered; None if there is no GPU."""
    load = pynvml.CDLL
    notes: list[Notes] = []

    def library(name: str) -> Notes:
        notes.append(Notes(load(name)))
        return notes[0]

    pynvml.CDLL = library
    sensor = NvidiaSensor(Watch(processes=(TrainingProcess("p", 1, 0.0, None),)))
    if not sensor.instruments:
        return None
    for _ in range(3):
        observe(sensor, {})
    (note,) = notes
    source = f"Recorded with driver {note.system.get('nvmlSystemGetDriverVersion')}."
    return {"source": source, "system": note.system, "devices": note.devices}


if __name__ == "__main__":
    recorded = record()
    if recorded is None:
        sys.exit("there is no NVIDIA GPU here")
    print(json.dumps(recorded, indent=2))
