from array import array
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

class Writer:
    def __init__(
        self,
        *,
        ring: mmap,
        cursor: array[int],
        last_step: array[int],
        keys: tuple[str, ...],
        codes: bytes,
        layout: int,
        advance: int,
        owner: int | None,
        make_room: Callable[[int], bool],
        fallback: Callable[..., None],
        durations: int,
    ) -> None: ...
    def __call__(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None: ...
