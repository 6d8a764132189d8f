"""Stands in for `libnvidia-ml.so`: answers from a file, below all of pynvml's own Python code.

An answer is what the function writes behind its pointers: a number, a text, or an object of the structure's fields; or
`{"error": CODE}`. Answers are named by the function and the numbers that it was asked with, such as `nvmlDeviceGetClockInfo(1)`.
"""

import ctypes
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pynvml

_FIRST_HANDLE = 0x1000
_SCALARS = (ctypes._SimpleCData,)


class Library:
    """The library that pynvml gets from `CDLL`."""

    def __init__(self, path: Path) -> None:
        recorded = json.loads(path.read_text())
        self.system: dict[str, Any] = recorded["system"]
        self.devices: dict[str, dict[str, Any]] = recorded["devices"]
        self.calls: Counter[str] = Counter()
        self.events: list[tuple[str, int]] = []
        """(device, XID) of errors that have not been fetched yet."""
        self.hang: threading.Event | None = None
        """While it is there, calls for devices do not come back before it is set."""
        self._handles = {name: _FIRST_HANDLE + 8 * i for i, name in enumerate(self.devices)}
        self._names = {address: name for name, address in self._handles.items()}
        self._functions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        special = getattr(type(self), f"_{name}", None)

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            return special(self, *arguments) if special else self._answer(name, arguments)

        return self._functions.setdefault(name, call)

    def device(self, handle: Any) -> dict[str, Any]:
        if self.hang is not None:
            self.hang.wait()
        return self.devices[self._names[ctypes.cast(handle, ctypes.c_void_p).value or 0]]

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        table, rest = self.system, arguments
        if arguments and isinstance(arguments[0], pynvml.c_nvmlDevice_t):
            table, rest = self.device(arguments[0]), arguments[1:]
        targets = [item for item in rest if hasattr(item, "_obj") or isinstance(item, ctypes.Array)]
        inputs = [] if targets and isinstance(targets[0], ctypes.Array) else [_number(i) for i in rest if _is_number(i)]
        key = f"{name}({','.join(map(str, inputs))})" if inputs else name
        if key not in table:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        answer = table[key]
        if isinstance(answer, dict) and "error" in answer:
            return int(answer["error"])
        values = answer if len(targets) > 1 else [answer]
        for target, value in zip(targets, values, strict=True):
            _fill(getattr(target, "_obj", target), value)
        return pynvml.NVML_SUCCESS

    def _handle(self, name: str, target: Any) -> int:
        if name not in self._handles:
            return pynvml.NVML_ERROR_NOT_FOUND
        if "error" in self.devices[name]:
            return int(self.devices[name]["error"])
        pointer = ctypes.cast(self._handles[name], pynvml.c_nvmlDevice_t)
        ctypes.memmove(ctypes.addressof(target._obj), ctypes.addressof(pointer), ctypes.sizeof(pointer))
        return pynvml.NVML_SUCCESS

    def _nvmlInitWithFlags(self, flags: int) -> int:
        return int(self.system.get("nvmlInitWithFlags", 0))

    def _nvmlShutdown(self) -> int:
        return pynvml.NVML_SUCCESS

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, target: Any) -> int:
        return self._handle(str(index.value), target)

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: Any, target: Any) -> int:
        parent = self._names[ctypes.cast(device, ctypes.c_void_p).value or 0]
        return self._handle(f"{parent}/{index.value}", target)

    def _nvmlDeviceGetFieldValues(self, device: Any, count: Any, target: Any) -> int:
        table = self.device(device).get("fields", {})
        for value in target._obj:
            key = f"{value.fieldId},{value.scopeId}" if value.scopeId else str(value.fieldId)
            number = table.get(key, {"error": pynvml.NVML_ERROR_NOT_SUPPORTED})
            if isinstance(number, dict):
                value.nvmlReturn = number["error"]
            else:
                value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, number
        return pynvml.NVML_SUCCESS

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, target: Any) -> int:
        processes = self.device(device).get("processes", {"error": pynvml.NVML_ERROR_NOT_SUPPORTED})
        if isinstance(processes, dict):
            return int(processes["error"])
        room, count._obj.value = count._obj.value, len(processes)
        if room < len(processes):
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for place, process in enumerate(processes):
            _fill(target[place], process)
        return pynvml.NVML_SUCCESS

    def _nvmlEventSetCreate(self, target: Any) -> int:
        return pynvml.NVML_SUCCESS

    def _nvmlDeviceRegisterEvents(self, device: Any, types: Any, events: Any) -> int:
        assert types.value == pynvml.nvmlEventTypeXidCriticalError
        return int(self.device(device).get("events", 0))

    def _nvmlEventSetWait_v2(self, events: Any, target: Any, timeout: Any) -> int:
        assert timeout.value == 0
        if not self.events:
            return pynvml.NVML_ERROR_TIMEOUT
        target._obj.eventData = self.events.pop(0)[1]
        return pynvml.NVML_SUCCESS

    def _nvmlGpmQueryDeviceSupport(self, device: Any, target: Any) -> int:
        target._obj.isSupportedDevice = "profile" in self.device(device)
        return pynvml.NVML_SUCCESS

    def _nvmlGpmSampleAlloc(self, target: Any) -> int:
        return pynvml.NVML_SUCCESS

    def _nvmlGpmSampleGet(self, device: Any, sample: Any) -> int:
        self._profile = self.device(device)["profile"]
        return pynvml.NVML_SUCCESS

    def _nvmlGpmMigSampleGet(self, device: Any, instance: Any, sample: Any) -> int:
        parent = self._names[ctypes.cast(device, ctypes.c_void_p).value or 0]
        (part,) = [
            part
            for name, part in self.devices.items()
            if name.startswith(f"{parent}/") and part.get("nvmlDeviceGetGpuInstanceId") == instance
        ]
        self._profile = part["profile"]
        return pynvml.NVML_SUCCESS

    def _nvmlGpmMetricsGet(self, target: Any) -> int:
        request = target._obj
        assert request.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        for metric in request.metrics[: request.numMetrics]:
            percent = self._profile.get(str(metric.metricId))
            metric.nvmlReturn = pynvml.NVML_SUCCESS if percent is not None else pynvml.NVML_ERROR_NOT_SUPPORTED
            metric.value = percent or 0
        return pynvml.NVML_SUCCESS


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (int, *_SCALARS))


def _number(argument: Any) -> int:
    return argument if isinstance(argument, int) else argument.value


def _fill(target: Any, value: Any) -> None:
    if isinstance(target, ctypes.Structure):
        for name, part in value.items():
            setattr(target, name, part)
    else:
        target.value = value.encode() if isinstance(value, str) else value
