"""Synthetic logs of runs, for browser tests and screenshots."""

import time

from sample_runs import SECOND, Post, Sender

from tensormeter.otlp.batch import Event, Scope

LONG = 30_000
"""Number of lines of the run `long`. Line number 1,234 is "line 01234 ..."."""

TRACEBACK = """Traceback (most recent call last):
  File "/home/user/vision/train.py", line 212, in <module>
    main()
  File "/home/user/vision/train.py", line 204, in main
    trainer.fit(model, loaders["train"], loaders["validation"])
  File "/home/user/vision/trainer.py", line 88, in fit
    self.train_epoch(epoch)
  File "/home/user/vision/trainer.py", line 131, in train_epoch
    loss = self.step(batch)
           ^^^^^^^^^^^^^^^^
  File "/home/user/vision/trainer.py", line 154, in step
    loss.backward()
  File "/usr/lib/python3.11/site-packages/torch/_tensor.py", line 626, in backward
    torch.autograd.backward(
  File "/usr/lib/python3.11/site-packages/torch/autograd/__init__.py", line 347, in backward
    _engine_run_backward(
  File "/usr/lib/python3.11/site-packages/torch/autograd/graph.py", line 823, in _engine_run_backward
    return Variable._execution_engine.run_backward(  # Calls into the C++ engine to run the backward pass
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB
  1.20 GiB of it is free. Process 4711 has 77.90 GiB memory in use."""


def printed(text: str, when: int, stream: str = "stdout") -> Event:
    """A line of the console, without its newline."""
    number, level = (9, "INFO") if stream == "stdout" else (13, "WARN")
    return Event("", when, text, {"log.iostream": stream}, severity_number=number, severity_text=level)


def logged(text: str, when: int, logger: str, number: int, level: str, **attributes: object) -> Event:
    """A record of Python's logging."""
    named = {"code.file.path": "/home/user/vision/trainer.py", "code.line.number": 131} | attributes
    return Event("", when, text, named, severity_number=number, severity_text=level, scope=Scope(logger))  # type: ignore[arg-type]


def send_logs(post: Post) -> None:
    """Send runs with logs in the project `console`."""
    now = time.time_ns()
    _training(post, now)
    _failed(post, now)
    sender = Sender(post, "console", "long", "a long night")
    began = now - LONG * SECOND
    sender.event("run.start", began)
    for first in range(0, LONG, 10_000):
        sender.lines(
            *(
                printed(
                    f"line {number:05}  loss {3 / (1 + number / 4000):.4f}  {'needle' if number % 7000 == 17 else 'hay'}",
                    began + number * SECOND,
                )
                for number in range(first, min(LONG, first + 10_000))
            )
        )
    sender.event("run.end", now, {"state": "finished"})


def _training(post: Post, now: int) -> None:
    """Send a running run of four ranks on two nodes."""
    began = now - 900 * SECOND
    for rank in range(4):
        sender = Sender(
            post,
            "console",
            "ranks",
            "llama-1b-calm",
            f"rank{rank}",
            host__name=f"node-{rank // 2}",
            tensormeter__rank=rank,
        )
        sender.event("run.start", began, {"config": {"model": "llama-1b", "lr": 3e-4}})
        records = [
            logged(
                f"initialized process group, rank {rank} of 4", began + rank * 10**6, "torch.distributed", 9, "INFO"
            ),
            logged("NCCL version 2.21.5+cuda12.4", began + SECOND + rank * 10**6, "torch.distributed", 5, "DEBUG"),
        ]
        if rank == 0:
            records += [
                printed(
                    "\x1b[32mLoading checkpoint shards\x1b[0m:   0%|          | 0/4\rLoading checkpoint shards: 100%|##########| 4/4 [00:09<00:00]",
                    began + 10 * SECOND,
                    "stderr",
                ),
                printed("model: 1.24 B parameters, 2.31 GiB in bfloat16", began + 11 * SECOND),
                *(
                    printed(
                        f"step {step:>5} | loss {2.2 + 7 / (1 + step / 90):.4f} | grad norm {0.8 + step % 7 / 10:.2f} | lr 3.00e-04 | {51_200 + step % 13 * 60:,} tokens/s",
                        began + (20 + step) * SECOND,
                    )
                    for step in range(0, 860, 4)
                ),
                logged(
                    "gradient norm 14.2 exceeds 10.0, clipping",
                    began + 500 * SECOND,
                    "trainer",
                    13,
                    "WARNING",
                    **{"grad.norm": 14.2},
                ),
            ]
        if rank == 3:
            records.append(
                logged(
                    "data loader worker 2 did not answer in time; retrying\nshard: s3://corpus/train/00731.tar\nattempt: 1 of 5", began + 610 * SECOND, "data.loader", 17, "ERROR",
                    **{"exception.type": "TimeoutError", "exception.message": "no batch within 30 s", "exception.stacktrace": 'Traceback (most recent call last):\n  File "loader.py", line 9, in get\nTimeoutError: no batch within 30 s'},
                )
            )  # fmt: skip
        sender.lines(*records)
    sender.event("run.heartbeat", now)


def _failed(post: Post, now: int) -> None:
    sender = Sender(post, "console", "broken", "resnet50-large-batch", host__name="gpu-node-1", tensormeter__rank=0)
    began = now - 3000 * SECOND
    sender.event("run.start", began, {"config": {"batch_size": 4096, "lr": 1e-3}})
    sender.lines(
        *(printed(f"epoch 0, step {step}: loss {6.9 - step / 100:.3f}", began + step * SECOND) for step in range(40)),
        logged("memory is nearly full: 77.9 of 79.1 GiB", began + 41 * SECOND, "trainer", 13, "WARNING"),
        *(printed(line, began + 42 * SECOND + number, "stderr") for number, line in enumerate(TRACEBACK.splitlines())),
    )
    end = {"state": "failed", "message": "OutOfMemoryError", "exit_code": 1, "traceback": TRACEBACK}
    sender.event("run.end", began + 43 * SECOND, end)
