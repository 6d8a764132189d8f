"""Train on nothing until told to stop: say the pid, then log a row for each line of input."""

import os
import sys

import tensormeter

run = tensormeter.init("statistics", id=sys.argv[1])
print(os.getpid(), flush=True)
for step, _ in enumerate(sys.stdin):
    run.log({"loss": 1 / (step + 1)}, step)
run.finish()
