"""Log from every kind of child that training has, and from hooks on other threads, into one run."""

import os
import sys

import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset

import tensormeter


class Squares(Dataset):
    """Its workers log each item that they make."""

    def __init__(self, run: tensormeter.Run, metric: str) -> None:
        self.run = run
        self.metric = metric

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        self.run.log({self.metric: index * index}, index)
        return index * index


def rank(number: int, run: tensormeter.Run) -> None:
    run.log({"spawned": number * 0.5}, number)


def main() -> None:
    run = tensormeter.init("children", id=sys.argv[1])
    run.log({"parent": 0.0}, 0)
    kept = run.log  # the writer of the parent, which a forked child must not use
    for context in ("fork", "spawn"):
        list(DataLoader(Squares(run, f"loader/{context}"), num_workers=2, multiprocessing_context=context))
    mp.spawn(rank, args=(run,), nprocs=2)
    child = os.fork()
    if child == 0:
        run.alert("from a forked child")
        kept({"parent": 1.0}, 1)
        run.log({"forked": 2.0}, 2)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    weight = torch.ones(3, requires_grad=True)
    weight.register_hook(lambda gradient: run.log({"hook": gradient.sum()}, 3))
    (weight * 2).sum().backward()
    run.log({"parent": 4.0}, 4)
    run.finish()


if __name__ == "__main__":
    main()
