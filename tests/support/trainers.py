"""Training processes that do what tests write to their standard input, and their environments."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.processes import clean_environment

__all__ = ["TrainingProcess", "named_settings", "training_environment"]


def training_environment(folder: Path, endpoint: str, run_id: str) -> dict[str, str]:
    """The environment of a training process, without the user's settings, metrics of the node and console output.

    Args:
        folder: A folder of the test. The process keeps its runs in `state` and its rings in `rings`.
        endpoint: The URL of the receiver.
        run_id: The id of the run.
    """
    return clean_environment() | {
        "TENSORMETER_DIR": str(folder / "state"),
        "TENSORMETER_BUFFER_DIR": str(folder / "rings"),
        "TENSORMETER_BUFFER_BYTES": str(1 << 20),
        "TENSORMETER_ENDPOINT": endpoint,
        "TENSORMETER_SCHEDULE_DELAY": "0.05",
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_SELF_METRICS_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_RUN_ID": run_id,
        "OMP_NUM_THREADS": "1",
    }


def named_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings by name, as environment variables."""
    return {f"TENSORMETER_{name.upper()}": str(value) for name, value in settings.items()}


class TrainingProcess:
    """A Python process with pipes to its standard input, output and error."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._input, self._output, self._errors = self.process.stdin, self.process.stdout, self.process.stderr

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> str:
        """Wait for the next line of output."""
        line = self._output.readline()
        assert line.endswith("\n"), self._errors.read()
        return line[:-1]

    def expect(self, line: str) -> None:
        """Wait for the next line of output, which must be this one."""
        assert self.read() == line

    def write(self, line: str) -> None:
        """Write a line to the input of the process."""
        self._input.write(f"{line}\n")
        self._input.flush()

    def end(self) -> tuple[int, str]:
        """Close the input and wait for the end. Returns the exit status and the standard error."""
        try:
            _, errors = self.process.communicate(timeout=300)
        finally:
            self.kill()
        return self.process.returncode, errors

    def finish(self) -> str:
        """Wait for the end, whose exit status must be 0. Returns the standard error."""
        status, errors = self.end()
        assert status == 0, errors
        return errors

    def kill(self) -> None:
        """End the process with SIGKILL if it still runs."""
        self.process.kill()
        self.process.wait(300)
        for pipe in (self._input, self._output, self._errors):
            pipe.close()
