"""A training process that does what its standard input says, a line at a time, and answers each line with `ok`."""

import sys

import tensormeter

run = tensormeter.init("driven", config={"lr": 0.1, "path": "a\udc80"})
print("ok", flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "log":
        for step in range(*map(int, arguments)):
            run.log({"loss": step / 7, "n": step}, step)
    elif command == "finish":
        run.finish(*arguments)
    elif command == "raise":
        raise ValueError("asked to")
    print("ok", flush=True)
