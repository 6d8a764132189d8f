"""Cost of capturing console output: `print` with and without a capture, in turns in one process.

Each call prints one line to /dev/null, so that the cost of a terminal does not hide that of the capture. The file through which
the agent reads is emptied between the turns, as an agent that keeps up would do.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import print_table

from tensormeter.record.logs.output_capture import OutputCapture
from tensormeter.ring.console_file import ConsoleFile, console_file
from tensormeter.ring.format import ConsoleWord

TURNS = 40
LINES = 2000
LINE = "epoch 12 step 3400: loss 0.3456 accuracy 0.987 learning rate 0.001"


def measure() -> np.ndarray:
    """Return the duration of each `print` in microseconds."""
    clock = time.perf_counter_ns
    empty = min(-(clock() - clock()) for _ in range(10_000))
    taken = np.empty(LINES)
    for index in range(LINES):
        start = clock()
        print(LINE)
        taken[index] = clock() - start
    return np.maximum(taken - empty, 0) / 1000


def main() -> None:
    """Print percentiles, and the difference of the medians."""
    samples: dict[str, list[np.ndarray]] = {"print": [], "print, captured": []}
    logging.basicConfig(level=logging.INFO)
    with Path("/dev/null").open("w") as nothing, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        terminal, sys.stdout = sys.stdout, nothing
        try:
            for turn in range(TURNS + 1):
                plain = measure()
                ring_path = Path(folder) / f"{turn}.ring"
                capture = OutputCapture.start(ring_path, lambda: None, level=logging.INFO)
                assert capture is not None
                captured = measure()
                capture.stop()
                file = ConsoleFile.open(console_file(ring_path))
                assert file is not None
                assert file.words[ConsoleWord.FULL] == 0
                if turn:  # the first turn does not count
                    samples["print"].append(plain)
                    samples["print, captured"].append(captured)
        finally:
            sys.stdout = terminal
    taken = {name: np.concatenate(parts) for name, parts in samples.items()}
    print_table("print of one line, in microseconds", taken, beside="print")
    difference = np.median(taken["print, captured"]) - np.median(taken["print"])
    print(f"Capturing a line costs {difference:.2f} µs more (medians).")


if __name__ == "__main__":
    main()
