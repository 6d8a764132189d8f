from array import array
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

class KeySets:
    def __init__(
        self,
        *,
        names: list[object],
        numbers: dict[str, int],
        add_layout: Callable[[tuple[str, ...], str], int],
        first: int,
        few: int,
        frequent: int,
    ) -> None: ...

class RowWriter:
    direct: bool
    def __init__(
        self,
        *,
        sets: KeySets,
        ring: mmap,
        cursor: array[int],
        last_step: array[int],
        most_bytes: int,
        owner: int | None,
        make_room: Callable[[int], bool],
        on_full: Callable[[int], None],
        fallback: Callable[..., None],
        durations: int,
    ) -> None: ...
    def write(self, values: dict[str, Any], step: int) -> bool: ...
    def __call__(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None: ...
