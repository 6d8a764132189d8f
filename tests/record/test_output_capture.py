"""Capture of a process's output: streams stay as they are, and every text is copied once."""

import contextlib
import io
import json
import logging
import os
import signal
import sys
import threading

import pytest

from support.forks import call_in_child
from tensormeter.errors import RingError
from tensormeter.record.logs import relay
from tensormeter.record.logs.logging_tap import severity
from tensormeter.record.logs.output_capture import OutputCapture
from tensormeter.ring.console_file import ConsoleFile, child_console_files, console_file
from tensormeter.ring.format import CONSOLE_HEADER_BYTES, ConsoleKind, ConsoleWord


class Captured:
    """A capture in progress, and what it has copied."""

    def __init__(self, folder, level=logging.INFO):
        self.woken = 0
        self.ring_path = folder / "process.ring"
        self.capture = OutputCapture.start(self.ring_path, self.wake, level=level)
        self.file = ConsoleFile.open(console_file(self.ring_path))

    def wake(self):
        self.woken += 1

    def texts(self, kind: ConsoleKind, file: ConsoleFile | None = None) -> str:
        self.capture._sink.flush()
        file = file or self.file
        chunks = file.chunks(file.words[ConsoleWord.TAIL], file.words[ConsoleWord.HEAD])
        return "".join(chunk.data.decode() for chunk in chunks if chunk.kind == kind)

    def records(self) -> list[dict]:
        decoder, rest, records = json.JSONDecoder(), self.texts(ConsoleKind.LOG_RECORD), []
        while rest:
            record, end = decoder.raw_decode(rest)
            records.append(record)
            rest = rest[end:]
        return records


@pytest.fixture
def start(tmp_path):
    started = []

    def start(**options):
        started.append(Captured(tmp_path, **options))
        return started[-1]

    yield start
    for captured in started:
        captured.capture.stop()


@pytest.fixture
def streams(monkeypatch):
    """Puts streams that write to memory in place of those of pytest."""

    def streams() -> list[io.TextIOWrapper]:
        pair = [io.TextIOWrapper(io.BytesIO(), "utf-8", line_buffering=True) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", pair[0])
        monkeypatch.setattr(sys, "stderr", pair[1])
        return pair

    return streams


def test_streams_are_copied_and_restored(start, streams):
    out, err = streams()
    captured = start()
    assert (sys.stdout, sys.stderr) == (out, err)
    print("a", 1, end="|")
    print("b")
    sys.stdout.writelines(["c\n", "d"])
    print("problem", file=sys.stderr)
    assert captured.texts(ConsoleKind.STDOUT) == "a 1|b\nc\nd"
    assert captured.texts(ConsoleKind.STDERR) == "problem\n"
    captured.capture.stop()
    assert "write" not in out.__dict__
    assert "write" not in err.__dict__
    print("later")
    out.flush()
    assert out.buffer.getvalue() == b"a 1|b\nc\ndlater\n"
    assert captured.texts(ConsoleKind.STDOUT) == "a 1|b\nc\nd"


def test_replaced_streams_in_any_order(start, streams):
    out, _ = streams()
    with contextlib.redirect_stdout(io.StringIO()) as collected:
        captured = start()
        print("collected")
    print("shown")
    other = contextlib.redirect_stdout(io.StringIO())
    with other:
        captured.capture.stop()
    assert sys.stdout is out
    assert collected.getvalue() == "collected\n"
    captured = start() if not console_file(captured.ring_path).unlink() else None
    first = out.write
    out.write = lambda text: first(text.upper())
    replacement = out.write
    print("loud")
    captured.capture.stop()
    assert out.write is replacement
    print("after")
    assert captured.texts(ConsoleKind.STDOUT) == "LOUD\n"
    assert b"LOUD\nAFTER\n" in out.buffer.getvalue()


@pytest.mark.parametrize("stream", [None, io.RawIOBase(), object()])
def test_missing_and_odd_streams(start, monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    captured = start()
    logging.getLogger("odd").error("recorded")
    assert [record["message"] for record in captured.records()] == ["recorded"]


def test_a_closed_stream_raises_as_before(start, streams):
    out, _ = streams()
    start()
    out.close()
    with pytest.raises(ValueError, match="closed file"):
        print("x")


def test_log_records_arrive_once(start, streams, monkeypatch):
    _, err = streams()
    captured = start()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    logging.warning("with basicConfig")  # noqa: LOG015 - adds a handler, as it does without a capture
    logging.getLogger("quiet").propagate = False
    logging.getLogger("quiet").warning("only by %s", "lastResort")
    logging.getLogger("level").setLevel(logging.ERROR)
    logging.getLogger("level").warning("below the logger's level")
    logging.getLogger("level").log(37, "between")
    try:
        raise LookupError("why")
    except LookupError:
        logging.getLogger("failing").exception("not %d", "a number")
        logging.getLogger("failing").exception("it failed")
    shown = err.buffer.getvalue().decode()
    assert "WARNING:root:with basicConfig\n" in shown
    assert "ERROR:failing:it failed\nTraceback" in shown
    first, quiet, failed = [record for record in captured.records() if record["name"] != "level"]
    assert (first["message"], first["level"], first["severity"]) == ("with basicConfig", "WARN", 13)
    assert quiet["message"] == "only by lastResort"
    assert (failed["message"], failed["function"]) == ("it failed", "test_log_records_arrive_once")
    assert failed["exception"]["type"] == "LookupError"
    assert failed["exception"]["message"] == "why"
    assert failed["exception"]["stacktrace"].endswith("LookupError: why\n")
    assert "it failed" not in captured.texts(ConsoleKind.STDERR)
    assert "it failed" in captured.texts(ConsoleKind.LOGGED_STDERR)
    assert "--- Logging error ---" in captured.texts(ConsoleKind.STDERR)  # of the message that does not fit


def test_records_without_a_name_do_not_raise(start, streams, monkeypatch):
    streams()
    captured = start()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger("given").handle(logging.makeLogRecord({"msg": "received", "levelno": logging.WARNING}))
    (record,) = captured.records()
    assert (record["name"], record["message"]) == ("None", "received")


def test_the_level_of_records(start, streams):
    streams()
    captured = start(level=logging.ERROR)
    logger = logging.getLogger("some")
    logger.warning("printed only")
    logger.error("recorded")
    logging.getLogger("tensormeter.agent").error("of a thread that delivers")
    assert [record["message"] for record in captured.records()] == ["recorded"]


def test_severities_are_those_of_opentelemetry():
    levels = {5: 1, 10: 5, 11: 6, 13: 8, 19: 8, 20: 9, 25: 12, 30: 13, 40: 17, 50: 21, 52: 23, 60: 24, 1000: 24}
    assert {level: severity(level) for level in levels} == levels


def test_a_full_file_drops_lines_and_counts_them(start, streams):
    streams()
    captured = start()
    line = "x" * 1000
    for _ in range(2000):
        print(line)
    dropped = captured.capture.drops()["console_full"]
    kept = captured.texts(ConsoleKind.STDOUT)
    assert kept.count(line) + dropped == 2000
    assert captured.woken >= 7
    captured.file.words[ConsoleWord.TAIL] = captured.file.words[ConsoleWord.HEAD]
    print("again")
    assert captured.texts(ConsoleKind.STDOUT) == "\nagain\n"
    print("y" * (2 << 20))
    print("and again")
    assert captured.texts(ConsoleKind.STDOUT).split() == ["again", "and", "again"]
    assert captured.capture.drops()["console_full"] == dropped + 1, "a line that is larger than the file"


def test_a_damaged_position_is_reported_at_once(start, streams):
    streams()
    captured = start()
    print("printed")
    captured.texts(ConsoleKind.STDOUT)
    captured.file.words[ConsoleWord.HEAD] = 1 << 62
    with pytest.raises(RingError, match="the position 4611686018427387904 of the last chunk is damaged"):
        list(captured.file.chunks(0, captured.file.words[ConsoleWord.HEAD]))


def test_a_bar_that_redraws_all_the_time_costs_little(start, streams):
    streams()
    captured = start()
    for number in range(100_000):
        sys.stderr.write(f"\r{number} of 100000")
    assert captured.file.words[ConsoleWord.HEAD] < 10_000
    assert captured.texts(ConsoleKind.STDERR).endswith("\r99999 of 100000")
    sys.stderr.write("\n")
    assert captured.texts(ConsoleKind.STDERR).endswith("\r99999 of 100000\n")


def test_threads_and_signal_handlers(start, streams):
    streams()
    captured = start()

    def say(name: str) -> None:
        for number in range(500):
            sys.stdout.write(f"{name}{number}\n")

    def handler(*_: object) -> None:
        print("signal")

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        threads = [threading.Thread(target=say, args=(f"thread {index} line ",)) for index in range(4)]
        for thread in threads:
            thread.start()
        say("main line ")
        for thread in threads:
            thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    lines = captured.texts(ConsoleKind.STDOUT).split("\n")
    expected = {
        f"{name}{number}" for name in ["main line ", *(f"thread {i} line " for i in range(4))] for number in range(500)
    }
    assert expected <= set(lines)
    assert len([line for line in lines if line in expected]) == len(expected)


def test_a_forked_child_has_a_file_of_its_own(start, streams):
    streams()
    captured = start()
    print("of the parent", end="")
    call_in_child(lambda: print("of the child"))
    call_in_child(lambda: call_in_child(lambda: print("of the grandchild")))
    print()
    files = [ConsoleFile.open(path) for path in child_console_files(captured.ring_path).values()]
    assert sorted(captured.texts(ConsoleKind.STDOUT, file) for file in files) == [
        "of the child\n",
        "of the grandchild\n",
    ]
    assert all(file.words[ConsoleWord.WRITER_PID] != os.getpid() for file in files)
    assert captured.texts(ConsoleKind.STDOUT) == "of the parent\n"


def test_a_child_forked_while_another_thread_prints(start, streams):
    streams()
    captured = start()
    with captured.capture._sink._lock:  # as if a thread was copying
        call_in_child(lambda: print("not blocked"))
    (path,) = child_console_files(captured.ring_path).values()
    assert captured.texts(ConsoleKind.STDOUT, ConsoleFile.open(path)) == "not blocked\n"


def test_secrets_of_the_environment_are_not_copied(start, streams, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "correct-horse-7")
    captured = start()
    print("login with", "correct-horse-7")
    logging.getLogger("hub").error("token %s", "correct-horse-7")
    assert captured.texts(ConsoleKind.STDOUT) == "login with ***\n"
    assert captured.records()[0]["message"] == "token ***"


def test_one_run_at_a_time(start, tmp_path):
    captured = start()
    assert OutputCapture.start(tmp_path / "other.ring", lambda: None, level=20) is None
    captured.capture.stop()
    other = OutputCapture.start(tmp_path / "other.ring", lambda: None, level=20)
    assert other is not None
    other.stop()


def test_no_space_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tensormeter"):
        assert OutputCapture.start(tmp_path / "missing" / "x.ring", lambda: None, level=20) is None
    assert "the console output is not recorded" in caplog.text


def test_the_relay_uses_the_words_of_the_console_file():
    """It cannot import them."""
    assert (
        *(ConsoleWord.RELAY_BUSY, ConsoleWord.RELAY_READY, ConsoleWord.RELAY_SUPERVISOR),
        *(ConsoleWord.RELAY_WORKER, ConsoleWord.RELAY_RELEASED),
    ) == (relay.BUSY, relay.READY, relay.SUPERVISOR, relay.WORKER, relay.RELEASED)
    assert (*(ConsoleWord.SIZE, ConsoleWord.HEAD, ConsoleWord.FULL, ConsoleWord.TAIL),) == (
        relay._SIZE,
        relay._HEAD,
        relay._FULL,
        relay._TAIL,
    )
    assert relay._HEADER_BYTES == CONSOLE_HEADER_BYTES
