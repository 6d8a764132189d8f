"""Descriptions of the exceptions that end runs."""

import sys

import pytest

from tensormeter.session.exit_hooks.failure import TRACEBACK_BYTES, Failure, describe_failure


def failure_of(raising) -> Failure:
    with pytest.raises(BaseException) as caught:
        raising()
    return describe_failure(caught.type, caught.value)


def test_the_cause_and_the_innermost_calls_are_kept():
    def read() -> None:
        try:
            {}["key"]
        except KeyError:
            raise RuntimeError("cannot read\nthe file") from None

    def fail() -> None:
        try:
            read()
        except RuntimeError as error:
            raise ValueError("no data") from error

    failure = failure_of(fail)
    assert failure.message == "ValueError: no data"
    cause, _, last = failure.traceback.partition(
        "\nThe above exception was the direct cause of the following exception:\n"
    )
    assert cause.endswith("RuntimeError: cannot read\nthe file\n")
    assert 'raise ValueError("no data") from error' in last
    assert "KeyError" not in failure.traceback


def test_control_characters_are_escaped():
    def fail() -> None:
        raise ValueError("a\x00b\x1b[31mred\tü")

    failure = failure_of(fail)
    assert failure.message == "ValueError: a\\x00b\\x1b[31mred\tü"
    assert failure.traceback.endswith("ValueError: a\\x00b\\x1b[31mred\tü\n")


def test_secrets_are_masked(monkeypatch):
    monkeypatch.setenv("SERVICE_PASSWORD", "open sesame 42")

    def fail() -> None:
        raise OSError("open sesame 42 at https://me:pw@host.example/x, key sk-abcdefghijklmnop1234")

    failure = failure_of(fail)
    assert failure.message == "OSError: *** at https://***@host.example/x, key ***"
    assert failure.traceback.endswith(f"{failure.message}\n")
    assert "sesame" not in failure.traceback


def test_a_long_traceback_loses_its_outer_calls():
    names = "\n".join(f"def call{i}():\n    call{i + 1}()" for i in range(2000))
    program = f"{names}\ndef call2000():\n    raise ValueError('the reason')\ncall0()"

    def fail() -> None:

        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(5000)
        try:
            exec(compile(program, "a" * 40, "exec"), {})
        finally:
            sys.setrecursionlimit(limit)

    failure = failure_of(fail)
    assert len(failure.traceback.encode()) <= TRACEBACK_BYTES
    assert failure.traceback.startswith("  [outer calls omitted]\n  File ")
    assert failure.traceback.endswith("in call2000\nValueError: the reason\n")


def test_a_long_message_leaves_room_for_the_calls():
    def fail() -> None:
        raise ValueError("x" * 1_000_000)

    failure = failure_of(fail)
    assert len(failure.message) < 1100
    assert "in fail\n" in failure.traceback
    assert len(failure.traceback) < TRACEBACK_BYTES


def test_exceptions_that_cannot_be_described():
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise Odd

    failure = failure_of(fail)
    assert failure.message == f"{Odd.__qualname__}"
    assert "in fail\n" in failure.traceback


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(), ""),
        (SystemExit(0), ""),
        (SystemExit("text\nmore"), "exit status 1: text"),
        (SystemExit(True), "exit status 1"),
        (KeyboardInterrupt("x"), "KeyboardInterrupt"),
    ],
)
def test_exits_and_interrupts_have_no_traceback(error, message):
    def fail() -> None:
        raise error

    assert failure_of(fail) == Failure(message)
