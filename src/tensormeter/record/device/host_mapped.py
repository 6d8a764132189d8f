"""A trial that determines whether a device can store values directly in the page-locked ring.

When a device is first used, it stores a known value of each dtype in a separate page of shared memory. Later log calls check
this page, so nothing waits for the trial. The device may store values in the ring only after all trial values have arrived
correctly.
"""

import mmap
from typing import TYPE_CHECKING, Final

from tensormeter.record.device.gather import NoGradients, gather
from tensormeter.record.device.page_locking import page_lock, retire, view_on_device
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import PENDING

if TYPE_CHECKING:
    import torch

__all__ = ["MappedRing"]

_TRIAL: Final = {
    "float64": 0.1,
    "float32": -2.5,
    "bfloat16": 3.0,
    "float16": -0.25,
    "int64": 1 << 40,
    "int32": -70000,
    "int16": 1234,
    "int8": -7,
    "uint8": 200,
    "bool": 1.0,
}


class MappedRing:
    """The ring, mapped into the address space of one device.

    Attributes:
        view: Words of the ring as a tensor on the device. None unless the trial has passed.
        verdict: `passed`, `running`, or the reason why the trial failed or was not run.
    """

    def __init__(self, ring: "torch.Tensor", device: "torch.device", *, try_it: bool = True) -> None:
        """Launch the trial. Never raises or waits.

        Args:
            ring: Page-locked words of the ring, as float64.
            device: CUDA device, including its index.
            try_it: Whether to run the trial. Without the trial, the device never stores values directly in the ring.
        """
        self.view: torch.Tensor | None = None
        self._locked: torch.Tensor | None = None
        self.verdict = "running" if try_it else "none, as set by device_path"
        if not try_it:
            return
        # Shared anonymous memory is the same kind of memory as a file in /dev/shm.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._page).cast("q")
        self._values = memoryview(self._page).cast("d")
        self._ring_view: torch.Tensor | None = None
        try:
            self._launch(ring, device)
        except Exception as error:  # the slower path still works
            self.verdict = f"{error}" if isinstance(error, Refused) else f"{type(error).__name__}: {error}"

    def poll(self) -> None:
        """Check whether the trial has ended. This takes about a microsecond during the trial, and almost no time afterwards."""
        if self.verdict != "running" or not self._has_arrived():
            return
        wrong = [name for i, (name, value) in enumerate(_TRIAL.items()) if self._values[i] != value]
        if wrong:
            self.verdict = f"the trial stored wrong values for {', '.join(wrong)}"
        else:
            self.verdict = "passed"
            self.view = self._ring_view

    def retire(self) -> None:
        """Retire the trial's page (see `page_locking.retire`). Do not use `view` afterwards."""
        if self._locked is not None:
            retire(self._locked, self._has_arrived)

    def _has_arrived(self) -> bool:
        return all(self._words[i] != PENDING for i in range(len(_TRIAL)))

    def _launch(self, ring: "torch.Tensor", device: "torch.device") -> None:
        import torch

        for index in range(len(_TRIAL)):
            self._words[index] = PENDING
        with torch.inference_mode(mode=False):
            page = torch.frombuffer(self._page, dtype=torch.float64)
        page_lock(page, device)
        self._locked = page
        trial = view_on_device(page, device)
        self._ring_view = view_on_device(ring, device)
        sources = [
            torch.full((), value, dtype=getattr(torch, name), device=device)  # a kernel, not a copy from the host
            for name, value in _TRIAL.items()
        ]
        with NoGradients():
            gather(sources, trial)
