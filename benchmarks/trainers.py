"""Processes of contenders that train in short turns, so that threads and helpers of one slow only its own steps.

A script with contenders runs itself with their names as arguments, and answers a turn's line on standard input with the
duration of each step and the thread's total processor time, as JSON, in nanoseconds.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Turn", "paired_turns", "start_trainers"]


class Turn(NamedTuple):
    """Each step's duration, and the training thread's total processor time, in nanoseconds."""

    durations: np.ndarray
    running: int


class Trainer:
    """A contender's process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def turn(self, steps: int) -> Turn:
        """Train one turn.

        Raises:
            OSError, ValueError: The contender cannot run on this machine.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        durations, running = json.loads(self._process.stdout.readline())
        return Turn(np.array(durations), running)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()


@contextlib.contextmanager
def start_trainers(commands: Mapping[str, Sequence[str]], warm_up: int) -> Iterator[dict[str, Trainer]]:
    """Start a process per contender, and end them afterwards. Contenders that cannot run on this machine are left out.

    Args:
        commands: Script and arguments by the contender's name.
        warm_up: Number of steps that are not measured.
    """
    trainers: dict[str, Trainer] = {}
    for name, command in commands.items():
        trainer = Trainer(command)
        try:
            trainer.turn(warm_up)
            trainers[name] = trainer
        except (OSError, ValueError):
            print(f"skipping {name}: it does not start on this machine", file=sys.stderr)
            trainer.end()
    yield trainers
    for trainer in trainers.values():
        trainer.end()


def paired_turns(
    trainers: Mapping[str, Trainer], rounds: int, steps: int, rest: float
) -> Iterator[tuple[str, Turn, Turn]]:
    """Yield a contender's name, a turn of the contender "nothing", and the contender's turn directly after it.

    Changes in the machine's speed usually last longer than two turns, so they affect both turns of a pair.

    Args:
        trainers: Trainers by the contender's name.
        rounds: Number of turns of each contender.
        steps: Number of steps of a turn.
        rest: Pause before each pair in seconds, so that a contender's background work does not slow the next one.
    """
    pause = threading.Event()
    for _ in range(rounds):
        for name in trainers:
            if name != "nothing":
                pause.wait(rest)
                yield name, trainers["nothing"].turn(steps), trainers[name].turn(steps)
