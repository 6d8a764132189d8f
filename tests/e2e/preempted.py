"""A training script that is preempted: saves a checkpoint every ten steps, and goes on from the last one."""

import json
import os
import select
import sys
from pathlib import Path

import tensormeter

checkpoint = Path(os.environ["CHECKPOINT"])
last = int(sys.argv[1])
step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
run = tensormeter.init("preempted", id="resumed", resume=step > 0)
while step < last:
    run.log({"loss": 1 / (1 + step), "attempt": run.attempt}, step=step)
    step += 1
    if step % 10 == 0:
        checkpoint.write_text(json.dumps(step))
if len(sys.argv) > 2:  # waits for the scheduler to take the machine away
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass  # Python would handle a signal that comes right before a call that blocks only after it
run.finish()
