"""Whether a device can store straight into the page-locked ring, tried out before it is relied upon.

The trial is launched when a device is first used, and looked at by later log calls; nothing waits for it. It stores a known
value of each dtype into a page of shared memory like the ring's. Only after all of them have been seen there, and are right,
is the ring written to in that way.
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
    """The ring as one device sees it.

    Attributes:
        view: The ring's words as a tensor on the device, once the trial has passed; None before, and if it has failed.
        verdict: `passed`, `running`, or why there is none or it has failed.
    """

    def __init__(self, ring: "torch.Tensor", device: "torch.device", *, try_it: bool = True) -> None:
        """Launch the trial. Never raises, never waits.

        Args:
            ring: The ring's words, float64, page-locked.
            device: With its index.
            try_it: False for no trial: the ring is not to be written to in that way.
        """
        self.view: torch.Tensor | None = None
        self._locked: torch.Tensor | None = None
        self.verdict = "running" if try_it else "none, as device_path says"
        if not try_it:
            return
        # Shared anonymous memory is of the same kind as a file in /dev/shm.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._page).cast("q")
        self._values = memoryview(self._page).cast("d")
        self._ring_view: torch.Tensor | None = None
        try:
            self._launch(ring, device)
        except Exception as error:  # a device that does not play along leaves the other way
            self.verdict = f"{error}" if isinstance(error, Refused) else f"{type(error).__name__}: {error}"

    def look(self) -> None:
        """See whether the trial is over. Costs a microsecond while it is not, and nothing afterwards."""
        if self.verdict != "running" or not self._has_come():
            return
        wrong = [name for i, (name, value) in enumerate(_TRIAL.items()) if self._values[i] != value]
        if wrong:
            self.verdict = f"the trial stored wrong values for {', '.join(wrong)}"
        else:
            self.verdict = "passed"
            self.view = self._ring_view

    def retire(self) -> None:
        """Give the page of the trial back: see `page_locking.retire`. No value is to be stored by way of `view` any more."""
        if self._locked is not None:
            retire(self._locked, self._has_come)

    def _has_come(self) -> bool:
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
            torch.full((), value, dtype=getattr(torch, name), device=device)  # a kernel, no copy from the host
            for name, value in _TRIAL.items()
        ]
        with NoGradients():
            gather(sources, trial)
