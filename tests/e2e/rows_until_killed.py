"""Log rows until killed, and keep count, in shared memory, of the calls that have returned."""

import mmap
import sys

import numpy as np

import tensormeter

with open(sys.argv[1], "r+b") as file:
    returned = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
run = tensormeter.init("killed", id=sys.argv[2])
weights = np.eye(64) * 0.999
step = 0
while True:
    weights = weights @ weights.T / np.linalg.norm(weights)  # what training would do between two calls
    run.log({"loss": step * 0.5, "negative": -float(step), "count": step}, step)
    step += 1
    returned[0] = step  # one store: `struct.pack_into` writes zeros first, and a kill may come between
