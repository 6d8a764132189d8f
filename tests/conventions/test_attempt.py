"""The rule by which processes of a run get the number of their attempt."""

import random

import pytest

from tensormeter.conventions.attempt_number import KnownMember, Member, choose_attempt


def known(process, attempt=1, rank=None, world_size=None, launch="", *, alive=False, age=60.0):
    return KnownMember(process, rank, world_size, launch, attempt, alive, age)


@pytest.mark.parametrize(
    ("member", "others", "expected"),
    [
        (Member("a"), [], 1),
        (Member("a"), [known("a", 3)], 3),
        (Member("b"), [known("a")], 2),
        (Member("b"), [known("a", alive=True)], 1),
        (Member("b", 1, 2), [known("a", rank=0, world_size=2)], 1),
        (Member("b", 1, 2), [known("a", rank=0, world_size=2, age=7200)], 2),
        (Member("b", 1, 2), [known("a", rank=0, world_size=2, age=7200, alive=True)], 1),
        (Member("b", 1, 3), [known("a", rank=0, world_size=2)], 2),
        (Member("b", 0, 2), [known("a", rank=0, world_size=2)], 2),
        (Member("b", 0, 2), [known("a", rank=0, world_size=2), known("c", rank=1, world_size=2, alive=True)], 2),
        (Member("b", 0, 2), [known("a", rank=0, world_size=2, alive=True)], 1),
        (Member("b", 0, 1), [known("a", rank=0, world_size=1)], 2),
        (Member("b", 1, 2, "x"), [known("a", rank=0, world_size=2, launch="x", age=7200)], 1),
        (Member("b", 1, 2, "y"), [known("a", rank=0, world_size=2, launch="x")], 2),
        (Member("b", 0, 2, "x"), [known("a", rank=0, world_size=2, launch="x")], 2),
        (Member("b", 1, 2), [known("a", 1, 1, 2), known("c", 2, 0, 2)], 2),
    ],
)
def test_the_attempt_of_a_process(member, others, expected):
    assert choose_attempt(member, others) == expected


def test_a_resumed_run_is_attempted_a_second_time_at_least():
    assert choose_attempt(Member("a"), [], resume=True) == 2
    assert choose_attempt(Member("a"), [], least=5) == 5
    assert choose_attempt(Member("b"), [known("a", 2, alive=True)], least=4) == 4


@pytest.mark.parametrize("launch", ["", "job 7"])
@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_ranks_that_ask_at_once_agree_in_any_order(launch, attempts):
    """Each of them sees those that were delivered before it asked, however few."""
    order = random.Random(attempts)
    before = [known(f"{n} {rank}", n, rank, 8, age=99999) for n in range(1, attempts + 1) for rank in range(8)]
    for _ in range(200):
        ranks = order.sample(range(8), 8)
        delivered = []
        for rank in ranks:
            seen = order.sample(delivered, order.randrange(len(delivered) + 1))
            number = choose_attempt(Member(f"new {rank}", rank, 8, launch), [*before, *seen], resume=attempts > 0)
            assert number == attempts + 1
            delivered.append(known(f"new {rank}", number, rank, 8, launch, alive=order.random() < 0.5, age=1.0))
