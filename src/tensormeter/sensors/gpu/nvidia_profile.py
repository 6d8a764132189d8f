"""Multiprocessor activity between two samples, read with NVML's GPU performance monitoring (GPM; Hopper and later)."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from tensormeter.sensors.gpu import instruments
from tensormeter.sensors.instrument import AbsentError, Instrument

__all__ = ["Profile"]

_METRICS: Final = {
    "NVML_GPM_METRIC_SM_UTIL": instruments.SM_ACTIVITY,
    "NVML_GPM_METRIC_SM_OCCUPANCY": instruments.SM_OCCUPANCY,
    "NVML_GPM_METRIC_ANY_TENSOR_UTIL": instruments.TENSOR_ACTIVITY,
    "NVML_GPM_METRIC_DRAM_BW_UTIL": instruments.DRAM_ACTIVITY,
}


class Profile:
    """Activity of one device, computed from each sample and the previous one."""

    def __init__(self, nvml: Any, take: Callable[[Any], Any], handle: Any) -> None:
        """
        Args:
            nvml: Module `pynvml`.
            take: Function that stores the current counters in an allocated sample.
            handle: Handle of the GPU, or of the GPU that contains the MIG device.
        """
        self._nvml = nvml
        self._take = take
        self._handle = handle
        self._samples: list[Any] = []
        self._begun = False

    def read(self) -> Iterable[tuple[Instrument, float]]:
        """Yield each instrument with its average since the last call. The first call yields nothing.

        Raises:
            AbsentError: The device does not support GPM.
            NVMLError: The query failed.
        """
        nvml = self._nvml
        if not self._samples:
            if not nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                raise AbsentError
            # Samples are allocated only once, because the library has no finalizer for them.
            self._samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        before, now = self._samples
        self._take(now)
        self._samples.reverse()
        if not self._begun:
            self._begun = True
            return
        request = nvml.c_nvmlGpmMetricsGet_t()
        request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(_METRICS)
        request.sample1, request.sample2 = before, now
        for place, name in enumerate(_METRICS):
            request.metrics[place].metricId = getattr(nvml, name)
        nvml.nvmlGpmMetricsGet(request)
        for place, instrument in enumerate(_METRICS.values()):
            if request.metrics[place].nvmlReturn == nvml.NVML_SUCCESS:
                yield instrument, request.metrics[place].value / 100
