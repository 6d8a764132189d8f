"""The agent reads the files that output leads to, and leaves out the lines that the process has captured itself."""

import pytest

from tensormeter.agent.ingest.console_lines import Line
from tensormeter.agent.ingest.output_tail import CapturedLines, OutputTail


@pytest.fixture
def tail(tmp_path):
    """A file with its tail and the lines that the process has captured."""

    class Tail:
        def __init__(self) -> None:
            self.path = tmp_path / "out"
            self.path.write_bytes(b"before\n")
            self.captured = CapturedLines()
            self.tail = self.open()

        def open(self, position: int = 0) -> OutputTail:
            status = self.path.stat()
            place = {"path": str(self.path), "identity": [status.st_dev, status.st_ino], "position": status.st_size}
            return OutputTail({"kind": 1, "time": 5, **place}, position, self.captured)

        def write(self, data: bytes, mode: str = "ab") -> None:
            with self.path.open(mode) as file:
                file.write(data)

        def lines(self, *partial: str, final: bool = False) -> list[str]:
            self.tail.fetch()
            return [line.text for line in self.tail.lines(partial, final=final)]

    return Tail()


def test_captured_lines_are_left_out_once(tail):
    for text in ("a", "b", "b"):
        tail.captured.add(Line(7, text))
    tail.write(b"a\nnative\nb\nb\nb\nlast")
    assert tail.lines() == ["native", "b"]
    assert tail.lines(final=True) == ["last"]


def test_lines_without_a_line_feed_between_them(tail):
    tail.captured.checks = 1
    tail.captured.add(Line(7, "captured"))
    tail.write(b"20% barcaptured\n")
    assert tail.lines("20% bar") == []


def test_states_of_captured_bars_are_left_out(tail):
    tail.captured.add(Line(7, "train: 5%", redrawn=True))
    tail.write(b"\rtrain: 6%\rtrain: 7%\rother: 1%\n")
    assert tail.lines() == ["other: 1%"]


def test_times_follow_the_captured_lines(tail):
    tail.captured.add(Line(70, "captured"))
    tail.write(b"native 1\ncaptured\nnative 2\n")
    tail.tail.fetch()
    first, second = tail.tail.lines((), final=False)
    assert (first.text, second.text) == ("native 1", "native 2")
    assert first.time <= second.time


def test_truncated_and_long_files(tail):
    tail.write(b"first\n")
    assert tail.lines() == ["first"]
    tail.write(b"new\n", "wb")
    assert tail.lines() == ["new"]
    tail.write(b"x" * 100 + b"\n" + b"y\n" * (5 << 20))
    assert set(tail.lines()) == {"y"}
    assert tail.tail.skipped == 1


def test_a_line_across_two_reads_stays_whole_at_the_end(tail):
    tail.write(b"x" * 1023 + b"\n")
    tail.write(b"y" * 100 + b"\n" + (b"z" * 999 + b"\n") * 1100)  # the first read ends within a line
    lines = []
    while batch := tail.lines(final=True):
        lines += batch
    assert lines == ["x" * 1023, "y" * 100, *["z" * 999] * 1100]


def test_output_ends_with_the_run(tail):
    tail.write(b"of the run\n")
    tail.tail.end = tail.path.stat().st_size
    tail.write(b"of another program\n")
    assert tail.lines(final=True) == ["of the run"]
    assert not tail.tail.has_news()


def test_another_file_in_its_place(tail):
    status = tail.path.stat()
    file = {"path": str(tail.path), "identity": [status.st_dev, status.st_ino + 1], "position": 0}
    with pytest.raises(ValueError, match="was replaced"):
        OutputTail({"kind": 1, "time": 0, **file}, 0, CapturedLines())
