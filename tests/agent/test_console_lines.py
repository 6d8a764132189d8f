"""Output becomes lines as a terminal shows them."""

import random
from itertools import pairwise

import pytest

from tensormeter.agent.ingest.console_lines import LONGEST_LINE, Line, LineAssembler

SECOND = 1_000_000_000


def assemble(chunks, interval: float = 0.1) -> list[Line]:
    """The lines of chunks that were written `interval` seconds apart, in time order."""
    assembler, lines, position = LineAssembler(), [], 0
    for number, chunk in enumerate(chunks):
        lines += assembler.feed(chunk, position, int(number * interval * SECOND))
        position += len(chunk)
        assert 0 <= assembler.safe <= position
    lines += assembler.flush()
    assert assembler.safe == position
    return sorted(lines, key=lambda line: line.time)


def texts(chunks, interval: float = 0.1) -> list[str]:
    return [line.text for line in assemble(chunks, interval)]


def test_lines_do_not_depend_on_how_they_are_cut():
    data = "one\ntwo\r\n\n  three\t3 \n\x1b[1;32mgreen\x1b[0m é\nlast".encode()
    expected = ["one", "two", "  three\t3", "green é", "last"]
    for seed in range(50):
        cuts = sorted(random.Random(seed).choices(range(len(data)), k=seed))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert texts(pieces, 0) == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff\xfe bytes\n", "�� bytes"),
        (b"\x1b]0;title\x07text\n", "text"),
        (b"\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\n", "link"),
        (b"a\x00b\x07c\x7f\n", "abc"),
        (b"x" * 3 * LONGEST_LINE + b"\n", "x" * LONGEST_LINE),
    ],
)
def test_odd_characters(data, text):
    assert texts([data, b"next\n"]) == [text, "next"]


@pytest.mark.parametrize("form", [b"\r%3d%% of work", b"%3d%% of work\r"])
def test_a_redrawn_line_is_one_line_a_second_and_its_last_state(form):
    lines = assemble([form % number for number in range(101)] + [b"\n", b"done\n"], 0.03)
    assert [line.text for line in lines[-2:]] == ["100% of work", "done"]
    assert [line.redrawn for line in lines] == [True] * (len(lines) - 1) + [False]
    gaps = [after.time - before.time for before, after in pairwise(lines[:-2])]
    assert len(gaps) == 2
    assert min(gaps) >= SECOND


def test_several_bars_that_move_the_cursor():
    chunks = []
    for epoch in range(3):
        chunks += [b"\repochs: %d%%" % (epoch * 33)]
        for batch in range(20):
            chunks += [b"\n", b"\rbatches: %d%%" % (batch * 5), b"\x1b[A"]
    lines = assemble([*chunks, b"\repochs: 100%", b"\n", b"done\n"], 0.02)
    assert [line.text for line in lines if not line.redrawn] == ["done"]
    for name in ("epochs", "batches"):
        times = [line.time for line in lines if line.text.startswith(name)]
        assert 2 <= len(times) <= 6
    assert "epochs: 100%" in [line.text for line in lines]


def test_a_cleared_bar_leaves_nothing():
    assert texts([b"\r10%", b"\r    \r", b"message\n"]) == ["10%", "message"]


def test_a_state_that_stays_is_shown_after_a_second():
    assembler = LineAssembler()
    lines = [*assembler.feed(b"\r10%", 0, 0), *assembler.feed(b"\r20%", 4, SECOND // 10)]
    assert [line.text for line in lines] == ["10%"]
    assert not list(assembler.expire(SECOND // 2))
    assert [line.text for line in assembler.expire(3 * SECOND)] == ["20%"]
    assert not list(assembler.expire(9 * SECOND))
    assert [line.text for line in assembler.feed(b"\n", 8, 10 * SECOND)] == []
    assert assembler.safe == 9
